"""The suite for backends of which one of several tasks can be enough; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.unique import UniqueTests
from sitq.testing._contract.unique_calls import UniqueCalls
from sitq.testing._contract.unique_lives import UniqueLives

__all__ = ["UniqueContract"]


class UniqueContract(UniqueTests, UniqueCalls, UniqueLives):
    """Tests of everything that :class:`~sitq.backends.uniques.Uniques` promises.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store; :meth:`cut` if an answer can be
    lost. What needs ``Endings`` or ``Inspectable`` is skipped for a backend that has none.
    """
