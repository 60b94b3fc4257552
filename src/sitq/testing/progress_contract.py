"""The suite for backends that keep how far tasks have come; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.progressing import ProgressTests

__all__ = ["ProgressContract"]


class ProgressContract(ProgressTests):
    """Tests of everything that :class:`~sitq.backends.progressing.Progressing` promises.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store.
    """
