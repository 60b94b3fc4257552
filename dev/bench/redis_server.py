"""The Redis that some contestants need: one of our own, or one that was started by hand and is to play with."""

import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from dev.servers import RedisServer, ServerStartError, ServerUnavailableError

TIMEOUT_SECONDS = 2.0


class RedisUnavailableError(Exception):
    """There is no Redis to measure with; the message says why."""


class EmptyRedis:
    """A Redis on the loopback address, spoken to without a client library.

    It is emptied after each measurement, so only one that was empty before is accepted.
    """

    def __init__(self, url: str) -> None:
        """Look at the server behind `url`.

        Raises:
            RedisUnavailableError: when it is not on this machine, does not answer or holds keys.
        """
        self.url = url
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._database = parts.path.strip("/") or "0"
        if self._address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RedisUnavailableError("the Redis is not on this machine's loopback address")
        try:
            keys = int(self._ask("DBSIZE").lstrip(":"))
        except (OSError, ValueError) as error:
            raise RedisUnavailableError("no Redis answers there") from error
        if keys:
            raise RedisUnavailableError(f"the Redis holds {keys} keys: start an empty one")
        info = self._ask("INFO server")
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        self.version = fields["redis_version"].strip()

    def empty(self) -> None:
        """Delete everything in the database."""
        self._ask("FLUSHDB")

    def _ask(self, command: str) -> str:
        with socket.create_connection(self._address, timeout=TIMEOUT_SECONDS) as connection:
            connection.sendall(f"SELECT {self._database}\r\n{command}\r\nQUIT\r\n".encode())
            with connection.makefile("rb") as answers:
                selected, *rest = answers.read().decode().split("\r\n")
        if selected != "+OK":
            raise ValueError(selected)
        return "\n".join(rest[:-2])


def find(url: str | None, stack: ExitStack) -> EmptyRedis:
    """The Redis at `url`, or for None one that is started here and ends with `stack`.

    Nothing is written to disk by the one that is started here: it is the fastest that Redis can be.

    Raises:
        RedisUnavailableError: when there is none to measure with.
    """
    if url is None:
        try:
            url = stack.enter_context(RedisServer(persistent=False)).url
        except (ServerUnavailableError, ServerStartError) as error:
            raise RedisUnavailableError(str(error)) from error
    return EmptyRedis(url)
