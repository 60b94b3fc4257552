"""Real servers for tests and benchmarks: PostgreSQL, Redis and NATS, each on a port and in a folder of its own.

    with RedisServer() as server, server.proxy() as proxy:
        ...  # clients use server.url, or proxy.url where connections are to be cut
        server.kill()
        server.start()

The programs come as wheels in the dependency group `servers`. Two that run at once, also in two test sessions, share
nothing. A server ends with the process that started it, however that one ends.
"""

from dev.servers.nats import NatsServer
from dev.servers.postgres import PostgresServer
from dev.servers.proxy import Proxy
from dev.servers.redis import RedisServer
from dev.servers.server import Server, ServerStartError, ServerUnavailableError

__all__ = [
    "NatsServer",
    "PostgresServer",
    "Proxy",
    "RedisServer",
    "Server",
    "ServerStartError",
    "ServerUnavailableError",
]
