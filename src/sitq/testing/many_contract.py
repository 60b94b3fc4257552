"""The suite for backends that look at many tasks at once; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.many import ManyTests

__all__ = ["ManyResultsContract"]


class ManyResultsContract(ManyTests):
    """Tests of everything that :class:`~sitq.backends.many.ManyResults` promises.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store.
    """
