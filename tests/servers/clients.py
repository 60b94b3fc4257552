"""As much of each server's protocol as it takes to write a text under a key, and to read it."""

import base64
import json
import socket
import struct
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from dev.servers import NatsServer, PostgresServer, RedisServer, Server
from dev.servers.postgres import startup_message
from tests.support import DEADLINE_SECONDS


class Client(ABC):
    """A connection to a server, ready for use when it is made."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect to a server, or to a proxy before it."""
        self.socket = socket.create_connection(address, DEADLINE_SECONDS)
        self.answers = self.socket.makefile("rb")
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.answers.close()
        self.socket.close()

    def write(self, key: str, value: str) -> None:
        """Store a text."""
        self.ask_to_write(key, value)
        self._confirm()

    def sync(self) -> None:  # noqa: B027  # most have nothing to wait for
        """Wait until what was written survives a kill of the server."""

    @abstractmethod
    def ask_to_write(self, key: str, value: str) -> None:
        """Send what stores a text, and do not wait for the answer."""

    @abstractmethod
    def read(self, key: str) -> str | None:
        """Return the text under a key."""

    @abstractmethod
    def _greet(self) -> None:
        """Do what comes before the first text."""

    @abstractmethod
    def _confirm(self) -> None:
        """Wait until what was asked for is stored."""

    def _line(self) -> bytes:
        line = self.answers.readline()
        if not line:
            raise ConnectionResetError("the connection has ended")
        return line.rstrip(b"\r\n")


class Postgres(Client):
    """Simple queries on one table."""

    def ask_to_write(self, key: str, value: str) -> None:
        self._ask(f"INSERT INTO kept VALUES ('{key}', '{value}')")

    def read(self, key: str) -> str | None:
        self._ask(f"SELECT value FROM kept WHERE key = '{key}'")
        rows = self._rows()
        return rows[0] if rows else None

    def _greet(self) -> None:
        self.socket.sendall(startup_message())
        self._rows()
        self._ask("CREATE TABLE IF NOT EXISTS kept (key text PRIMARY KEY, value text)")
        self._rows()

    def _confirm(self) -> None:
        self._rows()

    def _ask(self, sql: str) -> None:
        text = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)

    def _rows(self) -> list[str]:
        """Return the first column of what comes until the server is ready for the next query."""
        rows = []
        while True:
            head = self.answers.read(5)
            if len(head) < 5:
                raise ConnectionResetError("the connection has ended")
            kind, length = struct.unpack("!ci", head)
            body = self.answers.read(length - 4)
            if kind == b"E" and b"\0C57P0" in body:
                raise ConnectionResetError("the server has said that it ends")
            if kind == b"E":
                raise RuntimeError(body.decode())
            if kind == b"D":
                (size,) = struct.unpack_from("!i", body, 2)
                rows.append(body[6 : 6 + size].decode())
            if kind == b"Z":
                return rows


class Redis(Client):
    """Inline commands."""

    def ask_to_write(self, key: str, value: str) -> None:
        self.socket.sendall(f"SET {key} {value}\r\n".encode())

    def read(self, key: str) -> str | None:
        self.socket.sendall(f"GET {key}\r\n".encode())
        return None if self._line() == b"$-1" else self._line().decode()

    def sync(self) -> None:
        self.socket.sendall(b"WAITAOF 1 0 0\r\n")
        assert [self._line() for _ in range(3)] == [b"*2", b":1", b":0"]

    def _greet(self) -> None:
        self.socket.sendall(b"PING\r\n")
        assert self._line() == b"+PONG"

    def _confirm(self) -> None:
        assert self._line() == b"+OK"


class Nats(Client):
    """Messages in a stream of JetStream."""

    def ask_to_write(self, key: str, value: str) -> None:
        self._ask(f"kept.{key}", value)

    def read(self, key: str) -> str | None:
        self._ask("$JS.API.STREAM.MSG.GET.kept", json.dumps({"last_by_subj": f"kept.{key}"}))
        message = self._answer().get("message")
        return base64.b64decode(message["data"]).decode() if message else None

    def _greet(self) -> None:
        self.inbox = f"answers.{id(self)}"
        self.socket.sendall(f'CONNECT {{"verbose":false}}\r\nSUB {self.inbox} 1\r\n'.encode())
        self._ask("$JS.API.STREAM.CREATE.kept", json.dumps({"name": "kept", "subjects": ["kept.*"]}))
        assert self._answer()["config"]["storage"] == "file"

    def _confirm(self) -> None:
        assert self._answer()["stream"] == "kept"

    def _ask(self, subject: str, text: str) -> None:
        self.socket.sendall(f"PUB {subject} {self.inbox} {len(text)}\r\n{text}\r\n".encode())

    def _answer(self) -> dict[str, Any]:
        while not (line := self._line()).startswith(b"MSG "):
            pass
        answer: dict[str, Any] = json.loads(self.answers.read(int(line.split()[-1])))
        self.answers.readline()
        return answer


CLIENTS: dict[type[Server], type[Client]] = {PostgresServer: Postgres, RedisServer: Redis, NatsServer: Nats}


def connect(server: Server, address: tuple[str, int] | None = None) -> Client:
    """Return a connection to a server, straight or by the address of a proxy."""
    return CLIENTS[type(server)](address or server.address)
