"""The suite that any backend can be run through; needs pytest.

A project that has a backend of its own subclasses :class:`BackendContract` in a test module::

    from sitq.testing import ManualClock
    from sitq.testing.contract import BackendContract


    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path):
            self.clock = ManualClock()
            return MyBackend(tmp_path / "store", clock=self.clock)

        def another(self, backend):
            return MyBackend(backend.path, clock=self.clock)

        def advance(self, backend, seconds):
            self.clock.advance(seconds)

Other hooks are there for what a store on a server needs: see :class:`BackendContract`. The tests are
plain functions that bring an event loop of their own: no plugin of pytest's is needed, and none
is in the way.
"""

from sitq.testing._contract.calling import Calling
from sitq.testing._contract.enduring import Enduring
from sitq.testing._contract.holding import Holding
from sitq.testing._contract.reserving import Reserving
from sitq.testing._contract.storing import Storing
from sitq.testing._contract.watching import Watching

__all__ = ["BackendContract"]


class BackendContract(Storing, Reserving, Holding, Watching, Calling, Enduring):
    """Tests of everything that :class:`~sitq.Backend` promises.

    A subclass, with a name that pytest collects, overrides the fixture ``backend`` and
    :meth:`advance`, and :meth:`another` if two backends can share a store. All else has a default:

    - :meth:`seconds`, :meth:`settle`: for a store whose clock cannot be moved, or that needs a moment
      until a query finds what was stored.
    - :meth:`cut`, :meth:`restart`: break a connection, and the store.
    - :meth:`host_clock_off`: puts the clock of the host wrong.
    - ``knows_next_due``, ``has_own_clock``, ``knows_extras``: what the store can do.
    """
