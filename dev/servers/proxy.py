"""A network that fails when it is told to: TCP between clients and a server on the loopback address."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
LOSS_SECONDS = 30.0
"""How long `wait_for_loss` waits before it raises."""

CHUNK_BYTES = 65_536


@dataclass(eq=False)
class _Link:
    """A client's connection and the one to the server that belongs to it."""

    client: socket.socket
    server: socket.socket
    lossy: bool = False
    """Bytes were swallowed. What comes after them would make no sense to the other side, so it is swallowed too."""
    asked: bool = False
    """The client has sent something. NATS speaks unasked, and that is no answer."""
    pumps: set[threading.Thread] = field(default_factory=set)
    """A thread for each direction that is still carried."""

    def cut(self) -> None:
        """End both connections. The threads that wait on them wake up, and the last one closes them."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close both connections."""
        self.client.close()
        self.server.close()


class Proxy:
    """An address that leads to a server until it is told to fail.

    Each method has taken effect when it returns. `heal` ends all but `cut`, which is over at once.
    """

    def __init__(self, target: tuple[str, int], url_at: Callable[[tuple[str, int]], str]) -> None:
        """Nothing is opened yet.

        Args:
            target: The server's address.
            url_at: Makes of an address what a client is given to connect.
        """
        self._target = target
        self._url_at = url_at
        self._listener = _reusable()
        self._acceptor: threading.Thread | None = None
        self._waker, self._wake = socket.socketpair()
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._lost = threading.Event()
        self._swallowing = False
        self._losing_answer = False

    def __enter__(self) -> Self:
        """Take a free port and accept connections."""
        self._listener.bind((HOST, 0))
        self._address: tuple[str, int] = self._listener.getsockname()
        self._accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cut all connections and give up the port."""
        self._stop_accepting()
        self.cut()
        for end in (self._listener, self._waker, self._wake):
            end.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for clients."""
        return self._address

    @property
    def url(self) -> str:
        """What a client is given to connect through this proxy."""
        return self._url_at(self._address)

    def cut(self) -> None:
        """End every connection now. Later ones are carried."""
        with self._lock:
            pumps = [pump for link in self._links for pump in link.pumps]
            for link in self._links:
                link.cut()
        for pump in pumps:
            pump.join()

    def refuse(self) -> None:
        """Refuse new connections until `heal`, as a port on which nobody listens. Open ones stay."""
        if self._acceptor is None:
            return
        self._stop_accepting()
        self._listener.close()
        # Bound and not listening: the port stays ours, and a connection to it is refused.
        self._listener = _reusable()
        self._listener.bind(self._address)

    def swallow(self) -> None:
        """Be half-open until `heal`: take all bytes, of new connections too, and pass on none, without an error.

        A connection that has lost bytes so stays silent when the network heals, until one side gives it up.
        """
        with self._lock:
            self._swallowing = True
            self._lost.clear()

    def lose_next_answer(self) -> None:
        """Drop what the server says next to a client that asks from now on, and end that connection.

        The server carries out what it was asked, or has done so, and the client does not know.
        """
        with self._lock:
            self._losing_answer = True
            for link in self._links:
                link.asked = False
            self._lost.clear()

    def wait_for_loss(self, timeout: float = LOSS_SECONDS) -> None:
        """Wait until bytes were dropped since `swallow`, `lose_next_answer` or `heal` was called.

        Raises:
            TimeoutError: when none were dropped in `timeout` seconds.
        """
        if not self._lost.wait(timeout):
            raise TimeoutError(f"the network lost nothing in {timeout} s")

    def heal(self) -> None:
        """Carry new connections again, and those that have lost nothing."""
        with self._lock:
            self._swallowing = self._losing_answer = False
            self._lost.clear()
        if self._acceptor is None:
            self._accept()

    def _accept(self) -> None:
        self._listener.listen()
        self._acceptor = threading.Thread(target=self._accept_until_woken, name="proxy-accept")
        self._acceptor.start()

    def _stop_accepting(self) -> None:
        if self._acceptor is not None:
            self._wake.send(b"\0")
            self._acceptor.join()
            self._waker.recv(1)
            self._acceptor = None

    def _accept_until_woken(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._waker], [], [])
            if self._waker in ready:
                return
            with contextlib.suppress(OSError):  # the client may have gone already
                self._carry(self._listener.accept()[0])

    def _carry(self, client: socket.socket) -> None:
        """Begin to carry a new connection."""
        try:
            link = _Link(client, socket.create_connection(self._target))
        except OSError:
            client.close()
            return
        with self._lock:
            self._links.add(link)
            for ends in ((link.client, link.server), (link.server, link.client)):
                pump = threading.Thread(target=self._pump, args=(link, *ends), name="proxy-pump")
                link.pumps.add(pump)
                pump.start()

    def _pump(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        """Carry one direction of a connection to its end."""
        try:
            while data := source.recv(CHUNK_BYTES):
                if self._passes(link, from_server=source is link.server):
                    sink.sendall(data)
            if not link.lossy:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            # One side was reset. The other one hears of it, unless that is lost too.
            if not link.lossy:
                link.cut()
        self._end(link)

    def _passes(self, link: _Link, *, from_server: bool) -> bool:
        """Whether bytes that have arrived are passed on."""
        with self._lock:
            if not from_server:
                link.asked = True
            elif self._losing_answer and link.asked:
                self._losing_answer = False
                link.lossy = True
                link.cut()
            link.lossy = link.lossy or self._swallowing
            if link.lossy:
                self._lost.set()
            return not link.lossy

    def _end(self, link: _Link) -> None:
        """One direction has ended: with the last one the connections are closed."""
        with self._lock:
            link.pumps.discard(threading.current_thread())
            if not link.pumps:
                self._links.discard(link)
                link.close()


def _reusable() -> socket.socket:
    """A socket that can be bound to the port of a proxy beside its open connections."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener
