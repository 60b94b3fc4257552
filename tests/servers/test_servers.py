"""The servers that other tests stand on: they start, keep, fail as they are told, and leave nothing behind."""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dev.servers import Proxy, RedisServer, Server, ServerStartError
from dev.servers import server as server_module
from tests.servers.clients import connect
from tests.servers.fixtures import running
from tests.support import DEADLINE_SECONDS, ROOT

SERVER_AND_THEN_SILENCE = """
import sys
from dev import servers
with getattr(servers, sys.argv[1])() as server:
    print(server.pid, server.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["postgres", "redis", "nats"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each of the session's servers, running before and after."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    server.start()
    yield server
    server.start()


def exists(pid: int | None) -> bool:
    """Whether there is a process of that number."""
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_ended(connection: socket.socket) -> bool:
    """Whether a connection ends without another byte; waits until it does."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_server_answers_once_it_is_started(server: Server) -> None:
    """What one connection writes another one reads."""
    with connect(server) as client:
        client.write("answers", "yes")
    with connect(server) as client:
        assert client.read("answers") == "yes"
        assert client.read("never-written") is None


def test_a_restart_keeps_data_and_address(server: Server) -> None:
    """Stopped in order and started again, it is another process with the same data behind the same URL."""
    url, pid = server.url, server.pid
    with connect(server) as client:
        client.write("restarted", "kept")
    server.restart()
    assert server.url == url
    assert server.pid != pid
    with connect(server) as client:
        assert client.read("restarted") == "kept"


def test_a_kill_keeps_what_was_stored(server: Server) -> None:
    """A kill ends connections and the process; started again the server has what it had stored."""
    pid = server.pid
    with connect(server) as client:
        client.write("killed", "kept")
        client.sync()
        server.kill()
        assert not exists(pid)
        with pytest.raises(ConnectionError):
            client.read("killed")
    with pytest.raises(ConnectionError):
        connect(server)
    server.start()
    with connect(server) as client:
        assert client.read("killed") == "kept"


def test_a_stopped_server_is_gone_until_it_is_started(server: Server) -> None:
    """After stop there is no process and nobody listens; a second stop and a second start do nothing."""
    pid = server.pid
    server.stop()
    server.stop()
    assert server.pid is None
    assert not exists(pid)
    with pytest.raises(ConnectionError):
        connect(server)
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid


def test_two_servers_share_nothing_and_a_closed_one_leaves_nothing(server: Server) -> None:
    """A second one of the kind has an address and data of its own; closed, it takes process and folder along."""
    with type(server)() as other:
        assert other.address != server.address
        with connect(other) as client:
            client.write("whose", "other")
        with connect(server) as client:
            assert client.read("whose") is None
        pid, folder = other.pid, other.folder
        assert exists(pid)
        assert folder.exists()
    assert not exists(pid)
    assert not folder.exists()


def test_a_server_ends_with_its_owner_however_that_ends(server: Server) -> None:
    """When the process that started it is killed, the server goes, and its folder too."""
    command = [sys.executable, "-c", SERVER_AND_THEN_SILENCE, type(server).__name__]
    owner = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        pid, _, folder = owner.stdout.readline().strip().partition(" ")
        assert exists(int(pid)), folder
        owner.send_signal(signal.SIGKILL)
        # Its keeper has the same standard error, and ends last: then this ends.
        assert owner.stderr.read() == ""
        assert not exists(int(pid))
        assert not os.path.exists(folder)


def test_a_cut_ends_connections_and_later_ones_work(server: Server) -> None:
    """A proxy carries a connection until it is told to cut it, and carries the next one."""
    with server.proxy() as proxy:
        assert str(proxy.address[1]) in proxy.url
        with connect(server, proxy.address) as client:
            client.write("cut", "before")
            proxy.cut()
            with pytest.raises(ConnectionError):
                client.read("cut")
        with connect(server, proxy.address) as client:
            assert client.read("cut") == "before"


def test_a_refusing_proxy_keeps_open_connections(server: Server) -> None:
    """Until it is healed new connections are refused, as if nobody listened, and old ones go on."""
    with server.proxy() as proxy, connect(server, proxy.address) as client:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(server, proxy.address)
        client.write("refused", "old")
        proxy.heal()
        with connect(server, proxy.address) as later:
            assert later.read("refused") == "old"


def test_a_half_open_connection_swallows_and_stays_silent(server: Server) -> None:
    """What is sent while the network swallows never arrives and raises no error, also after it has healed."""
    with server.proxy() as proxy, connect(server, proxy.address) as client, connect(server, proxy.address) as idle:
        proxy.swallow()
        client.ask_to_write("swallowed", "no")
        proxy.wait_for_loss()
        proxy.heal()
        client.ask_to_write("swallowed", "no")
        proxy.wait_for_loss()
        with connect(server, proxy.address) as later:
            later.write("healed", "yes")
            assert later.read("swallowed") is None
        assert idle.read("healed") == "yes"
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)


def test_a_connection_made_while_half_open_stays_silent(redis_server: RedisServer) -> None:
    """It is accepted, and its first question gets lost."""
    with redis_server.proxy() as proxy:
        proxy.swallow()
        with socket.create_connection(proxy.address, DEADLINE_SECONDS) as client:
            client.sendall(b"PING\r\n")
            proxy.wait_for_loss()
            proxy.cut()
            assert is_ended(client)


def test_a_lost_answer_leaves_the_work_done(server: Server) -> None:
    """The server does what it was asked, and the client sees its connection end instead of the answer."""
    with server.proxy() as proxy, connect(server, proxy.address) as client, connect(server) as witness:
        proxy.lose_next_answer()
        witness.write("asked", "elsewhere")
        client.ask_to_write("done", "unknown")
        proxy.wait_for_loss()
        with pytest.raises(ConnectionError):
            client.read("done")
        while (value := witness.read("done")) is None:
            pass
        assert value == "unknown"


@pytest.fixture
def both_ends() -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """A proxy, and both ends of a connection through it, which are the test's own."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy(listener.getsockname(), str) as proxy,
        socket.create_connection(proxy.address, DEADLINE_SECONDS) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(DEADLINE_SECONDS)
        yield proxy, client, server


def test_what_a_server_says_unasked_is_no_answer(both_ends: tuple[Proxy, socket.socket, socket.socket]) -> None:
    """A connection whose next answer is to be lost still hears what the server says before it is asked."""
    proxy, client, server = both_ends
    client.sendall(b"asked before")
    assert server.recv(12) == b"asked before"
    proxy.lose_next_answer()
    server.sendall(b"unasked")
    assert client.recv(7) == b"unasked"
    client.sendall(b"asked")
    assert server.recv(5) == b"asked"
    server.sendall(b"answer")
    assert is_ended(client)


def test_a_client_that_has_sent_all_still_hears_the_answer(
    both_ends: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    """The end of one direction is passed on, and the other direction goes on."""
    _, client, server = both_ends
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"answer")
    assert client.recv(6) == b"answer"


def test_a_reset_reaches_the_other_side(both_ends: tuple[Proxy, socket.socket, socket.socket]) -> None:
    """A connection that the server resets, as when it is killed, ends for the client."""
    _, client, server = both_ends
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    assert is_ended(client)


def test_a_start_that_fails_says_what_the_server_said(redis_server: RedisServer) -> None:
    """The error of a server that ends at once holds its log, and its folder is gone."""

    class Misconfigured(RedisServer):
        def _command(self) -> list[str]:
            return [*super()._command(), "--no-such-setting", "yes"]

    server = Misconfigured()
    folder = server.folder
    with pytest.raises(ServerStartError, match="no-such-setting"), server:
        pass
    assert not folder.exists()


def test_a_port_that_is_taken_is_given_up(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that finds a stranger on its port does not take it for itself, and starts on another port."""
    free = server_module._free_port()
    monkeypatch.setattr(server_module, "_free_port", iter([redis_server.port, free]).__next__)
    with RedisServer() as other:
        assert other.port == free


def test_a_server_that_is_not_installed_is_a_skip_with_its_reason() -> None:
    """A test that needs it is skipped, and says which distribution is missing."""

    class Missing(RedisServer):
        distribution = "no-such-distribution"

    with pytest.raises(pytest.skip.Exception, match="no-such-distribution is not installed"):
        next(running(Missing))
