"""The command line, ``sitq``: run workers, look into a queue file, mend what is in it.

It needs the extra ``cli`` (click and rich). ``import sitq`` never imports it.
"""

import os
import sys

NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Runs the command line; a missing package and a full disk behind the output are said in one line."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"Error: {error}")
