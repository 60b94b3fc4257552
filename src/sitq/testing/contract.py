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

The tests are plain functions that bring an event loop of their own: no plugin of pytest's is
needed, and none is in the way.
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
    :meth:`advance`, and :meth:`another` where two backends can share a store.
    """
