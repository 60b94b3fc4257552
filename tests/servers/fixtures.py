"""Real servers for the session: each is started when the first test asks for it, once in each process of pytest.

A test that stops, kills or fills one leaves it running. For connections that fail, `server.proxy()` gives an address
that is the test's own.
"""

from collections.abc import Iterator

import pytest

from dev.servers import NatsServer, PostgresServer, RedisServer, Server, ServerUnavailableError


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL with fsync on."""
    yield from running(PostgresServer)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis with an append-only file."""
    yield from running(RedisServer)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A NATS server with JetStream."""
    yield from running(NatsServer)


def running[S: Server](kind: type[S]) -> Iterator[S]:
    """A server until the generator is closed; a skip with its reason if this platform has none."""
    try:
        server = kind()
    except ServerUnavailableError as error:
        pytest.skip(str(error))
    with server:
        yield server
