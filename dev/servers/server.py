"""What all servers have in common: a folder, a port, a process, and waiting until it answers."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from importlib import metadata
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Any, ClassVar, Self

from dev.servers.proxy import Proxy

HOST = "127.0.0.1"
START_SECONDS = 30.0
"""How long a server may take until it answers."""

PROBE_SECONDS = 2.0
"""How long one question to a server that is starting may take."""

PAUSE_SECONDS = 0.01
"""Between two such questions."""

PORTS = range(20_000, 32_768)
"""Ports that no system hands out to outgoing connections.

A port that was handed out by the system (bind to 0) may be taken by anybody's client while the server is down, and
then it could not come back on it.
"""

PORT_TRIES = 5


class ServerUnavailableError(Exception):
    """There is no such server on this machine; the message says why."""


class ServerStartError(Exception):
    """A server ended, or did not answer, when it was started; the message ends with its log."""


class Server(ABC):
    """A server program that runs for this process alone, on the loopback address.

    Data and port stay the same when it is stopped or killed and started again.
    """

    distribution: ClassVar[str]
    """The distribution that brings the program."""

    program: ClassVar[str]
    """The end of the program's path within that distribution."""

    stop_signal: ClassVar[int] = SIGTERM
    """On this signal the program ends in order."""

    discard_signal: ClassVar[int] = SIGKILL
    """On this signal the program ends when its data is to be deleted."""

    def __init__(self) -> None:
        """Find the program; nothing is started and nothing written.

        Raises:
            ServerUnavailableError: when it is not installed.
        """
        self.binary = self._find()
        self.port = 0
        self.pid: int | None = None
        self._folder: Path | None = None
        self._keeper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start the server."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the server and delete all that it wrote."""
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, straight to the server."""
        return HOST, self.port

    @property
    def url(self) -> str:
        """What a client is given to connect straight to the server."""
        return self.url_at(self.address)

    @property
    def folder(self) -> Path:
        """Where the server keeps its data and its log. It exists until `close`."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"sitq-{type(self).__name__.lower()}-"))
        return self._folder

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the server, on the data and the port that it had before. Nothing happens if it runs.

        Raises:
            ServerStartError: when it ends or does not answer.
        """
        if self._running():
            return
        if self.port:
            self._launch()
            return
        self._prepare()
        for _ in range(PORT_TRIES):
            self.port = _free_port()
            try:
                self._launch()
            except ServerStartError:
                if _is_free(self.port):
                    raise
                # Somebody else took the port between our look and the server's start.
            else:
                return
        raise ServerStartError(f"found no free port in {PORT_TRIES} tries")

    def stop(self) -> None:
        """End the server in order; its data stays. Nothing happens if it does not run."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End the server by SIGKILL and wait until every process of it is gone; its data stays."""
        self._end(SIGKILL)

    def restart(self) -> None:
        """Stop the server in order and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the server and delete all that it wrote. May be called twice."""
        if self._keeper is not None:
            # The keeper's end of input is its order to end the server and to delete the folder.
            self._keeper.communicate()
            self._keeper = None
        elif self._folder is not None:
            shutil.rmtree(self._folder)
        self._folder = None
        self.pid = None
        self.port = 0

    def proxy(self) -> Proxy:
        """A new address for this server, whose connections can be cut or silenced. Use it with `with`."""
        return Proxy(self.address, self.url_at)

    @abstractmethod
    def url_at(self, address: tuple[str, int]) -> str:
        """What a client is given to connect to this server at an address, that of a proxy included."""

    def _prepare(self) -> None:  # noqa: B027  # most have nothing to do
        """Make what the server needs in its folder before its first start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line of the server, with its port and its folder."""

    def _identity(self) -> dict[str, Any]:
        """Whose process it is to be, as arguments of `Popen`; that of this process, if empty."""
        return {}

    @abstractmethod
    def _answers(self, connection: socket.socket) -> bool:
        """Whether the server on the other end is this one, and can be used."""

    def _run(self, *command: str) -> None:
        """Run a program beside the server and wait for it."""
        code = self._ask(do="run", argv=command, identity=self._identity())["code"]
        if code:
            raise ServerStartError(f"{Path(command[0]).name} failed with {code}:\n{self.log}")

    def _launch(self) -> None:
        self.pid = self._ask(do="start", argv=self._command(), identity=self._identity())["pid"]
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if not self._running():
                self._end(self.stop_signal)
                raise ServerStartError(f"{self.binary.name} has ended:\n{self.log}")
            if time.monotonic() > deadline:
                self._end(SIGKILL)
                raise ServerStartError(f"{self.binary.name} did not answer in {START_SECONDS} s:\n{self.log}")
            time.sleep(PAUSE_SECONDS)

    def _ready(self) -> bool:
        try:
            with socket.create_connection(self.address, PROBE_SECONDS) as connection:
                return self._answers(connection)
        except OSError:
            return False

    def _running(self) -> bool:
        return self._keeper is not None and bool(self._ask(do="poll")["running"])

    def _end(self, signal: int) -> None:
        if self._keeper is not None:
            self._ask(do="end", signal=signal)
        self.pid = None

    def _ask(self, **command: Any) -> dict[str, Any]:
        """Give the keeper a command and return its answer."""
        if self._keeper is None:
            # In a session of its own, so that a Ctrl-C in the terminal reaches the tests and not the server under them.
            keeper = Path(__file__).with_name("keeper.py")
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper, self.folder, str(int(self.discard_signal))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps(command) + "\n")
        self._keeper.stdin.flush()
        answer: dict[str, Any] = json.loads(self._keeper.stdout.readline())
        if "error" in answer:
            raise ServerStartError(answer["error"])
        return answer

    def _find(self) -> Path:
        name = type(self).__name__
        if os.name != "posix":
            raise ServerUnavailableError(f"{name}: servers are started on POSIX systems only")
        try:
            files = metadata.files(self.distribution)
        except metadata.PackageNotFoundError:
            reason = f"{name}: {self.distribution} is not installed; it has no wheel for every platform and Python"
            raise ServerUnavailableError(reason) from None
        for file in files or []:
            if file.as_posix().endswith(self.program):
                return Path(file.locate()).resolve()
        raise ServerUnavailableError(f"{name}: {self.distribution} brings no {self.program}")


def _free_port() -> int:
    return next(port for port in random.sample(PORTS, len(PORTS)) if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
