"""The process between a server and whoever uses it: runs the server, and ends it when its user is gone.

It is a program of its own: `python keeper.py FOLDER SIGNAL`. Commands come as lines of JSON on standard input, and each
is answered by a line on standard output. When standard input ends, so does the server, and its folder is deleted. That
happens however the user ends, SIGKILL included, since the system closes a dead process's end of a pipe.

A parent-death signal (prctl) was the other way. It exists on Linux only, comes when the starting *thread* ends and not
the process, must be set between fork and exec, which is not safe beside threads, and deletes no folder.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from typing import Any, BinaryIO

GRACE_SECONDS = 10.0
"""How long a server may take to end in order before it is killed."""

FAMILY_SECONDS = 20.0
"""How long the processes that a killed server had started may take to notice and to end."""


class Keeper:
    """Runs one server at a time in a folder."""

    def __init__(self, folder: str, discard_signal: int) -> None:
        """Keep a server in `folder` that ends on `discard_signal` when nobody wants its data any more."""
        self._folder = folder
        self._discard_signal = discard_signal
        self._server: subprocess.Popen[bytes] | None = None
        self._family = -1

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        match command["do"]:
            case "run":
                self._start(command)
                return {"code": self._wait(None)}
            case "start":
                return {"pid": self._start(command)}
            case "poll":
                return {"running": self._server is not None and self._server.poll() is None}
            case "end":
                return {"code": self.end(command["signal"])}
        raise ValueError(command["do"])

    def end(self, how: int) -> int | None:
        """End the server and every process that it started. None: there was none."""
        if self._server is None:
            return None
        self._server.send_signal(how)
        try:
            return self._wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()
            return self._wait(None)

    def clean(self) -> None:
        """End the server and delete its folder."""
        try:
            self.end(self._discard_signal)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, command: dict[str, Any]) -> int:
        """Start a program, with what it prints in the log."""
        self.end(signal.SIGKILL)
        # The write end goes to the program and from there to every process that it starts. Nobody writes: the pipe
        # ends when the last of them has ended, which is how a killed PostgreSQL is known to have left its shared
        # memory.
        self._family, ours = os.pipe()
        try:
            with self._log() as log:
                self._server = subprocess.Popen(
                    command["argv"],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[ours],
                    **command["identity"],
                )
        finally:
            os.close(ours)
        return self._server.pid

    def _log(self) -> BinaryIO:
        return open(os.path.join(self._folder, "log"), "ab")

    def _wait(self, timeout: float | None) -> int:
        """Wait for the program, then for what it left running."""
        assert self._server is not None
        code = self._server.wait(timeout)
        readable, _, _ = select.select([self._family], [], [], FAMILY_SECONDS)
        os.close(self._family)
        self._server = None
        if not readable:
            raise TimeoutError(f"processes of the server live on {FAMILY_SECONDS} s after it")
        return code


def main() -> None:
    """Serve commands until there is nobody left who could give any."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    keeper = Keeper(sys.argv[1], int(sys.argv[2]))
    try:
        for line in sys.stdin:
            try:
                answer = keeper.answer(json.loads(line))
            except (OSError, subprocess.SubprocessError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        keeper.clean()


if __name__ == "__main__":
    main()
