"""The command line, ``sitq``: run workers, look into a queue file, mend what is in it.

It needs the extra ``cli`` (click and rich). ``import sitq`` never imports it.
"""

import sys

NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Runs the command line; says in one line what is missing where the extra is not installed."""
    try:
        from sitq.cli.commands import root
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        sys.exit(
            f"sitq: the command line needs {error.name}, which is not installed: "
            "pip install './sitq[cli]' in the folder that holds the checkout"
        )
    root(prog_name="sitq")
