"""The suite for backends that carry out more of an outcome; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.ending import EndingTests

__all__ = ["EndingContract"]


class EndingContract(EndingTests):
    """Tests of everything that :class:`~sitq.backends.endings.Endings` promises.

    What the backend does not list in ``endings`` is skipped.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store.
    """
