"""The command line, ``sitq``: run workers, look into a queue file, mend what is in it.

It needs the extra ``cli`` (click and rich). ``import sitq`` never imports it.
"""

import io
import os
import sys

NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Runs the command line; a missing package and a full disk behind the output are said in one line."""
    _prepare_streams()
    try:
        from sitq.cli.commands import root
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        sys.exit(
            f"sitq: the command line needs {error.name}, which is not installed: "
            "pip install './sitq[cli]' in the folder that holds the checkout"
        )
    try:
        root(prog_name="sitq")
    except OSError as error:
        # What could not be written must not be tried again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"Error: {error}")


def _prepare_streams() -> None:
    """Sees to it that nothing is written where it does not belong, and that everything can be written."""
    # A closed standard stream leaves its number free: the queue file, or a pipe, would get it, and what
    # a child writes to its standard output would go there.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # A name or an error may hold what the terminal's encoding does not have. One character for one
    # keeps the columns of a terminal straight.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "backslashreplace")
