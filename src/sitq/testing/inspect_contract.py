"""The suite for backends that can be looked into; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.inspecting import Inspecting
from sitq.testing._contract.mending import Mending

__all__ = ["InspectContract"]


class InspectContract(Inspecting, Mending):
    """Tests of everything that :class:`~sitq.backends.inspect.Inspectable` promises.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store.
    """
