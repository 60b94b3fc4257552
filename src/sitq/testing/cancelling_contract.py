"""The suite for backends that can end tasks that run; needs pytest.

It is used like :class:`~sitq.testing.contract.BackendContract`, and beside it.
"""

from sitq.testing._contract.cancelling import CancellingTests

__all__ = ["CancellingContract"]


class CancellingContract(CancellingTests):
    """Tests of everything that :class:`~sitq.backends.cancelling.Cancelling` promises.

    What it says of retries is skipped if the backend does not list ``"retry"`` in ``endings``, and what it
    says of retries by hand if it is not ``Inspectable``.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store.
    """
