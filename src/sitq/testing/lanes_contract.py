"""The suite for backends that have named queues and priorities; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.lanes import LaneTests

__all__ = ["LanesContract"]


class LanesContract(LaneTests):
    """Tests of everything that :class:`~sitq.backends.lanes.Lanes` promises.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store.
    """
