"""Running Python programs to their end, for what only a whole process can show."""

import os
import signal
import subprocess
import textwrap

import pytest

from tests.support import DEADLINE_SECONDS, start_python

RUN_FILE = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
"""A program that runs the file that is its first argument; for what needs a script with a name."""


def run_script(code: str, *arguments: object, status: int = 0, quiet: bool = True, stdin: str | None = None) -> str:
    """Runs ``code`` as a program, its indentation taken away, and returns what it printed.

    Fails the test if the program hangs, ends with another status or, if it should be quiet and
    end well, complains on stderr.
    """
    process = start_python(textwrap.dedent(code), *arguments, stdin=subprocess.PIPE, start_new_session=True)
    try:
        printed, complaints = process.communicate(stdin, timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        # The whole group: a forked child that hangs keeps the pipes open.
        os.killpg(process.pid, signal.SIGKILL)
        printed, complaints = process.communicate()
        pytest.fail(f"the program hung, after it had printed {printed!r} and {complaints!r}")
    assert process.returncode == status, f"ended with {process.returncode}: {printed}{complaints}"
    assert not (complaints and quiet and status == 0), complaints
    return printed
