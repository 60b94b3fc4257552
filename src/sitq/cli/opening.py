"""Opening an existing file for one question, also as a user who may read it but not write it."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from sitq import BackendError, SQLiteBackend
from sitq.backends.inspect import Inspectable
from sitq.backends.sqlite.reading import Reader
from sitq.cli import render


def ask[T](path: Path, question: Callable[[Inspectable], Awaitable[T]], *, changes: bool = False) -> T:
    """Opens an existing file, asks, and closes it; what is wrong with it becomes one line.

    Args:
        path: The file.
        question: What to ask.
        changes: Whether it may change something.
    """
    # SQLite would make a missing file, and sitq takes an empty one for its own.
    if not os.path.isfile(path):
        raise click.ClickException(f"{path}: {'it is a folder' if os.path.isdir(path) else 'there is no such file'}")
    if not os.path.getsize(path):
        raise click.ClickException(f"{path}: the file is empty; nothing was enqueued into it yet")

    async def answer() -> T:
        if not changes and not _may_write(path):
            return await question(Reader(path))
        backend = SQLiteBackend(path)
        await backend.connect()
        try:
            return await question(backend)
        finally:
            await backend.close()

    try:
        return asyncio.run(answer())
    except BackendError as error:
        raise click.ClickException(render.line(" ".join(str(error).split()))) from error


def _may_write(path: Path) -> bool:
    """Whether this user may write the file, and make its -wal file beside it."""
    real = os.path.realpath(path)
    return os.access(real, os.W_OK) and os.access(os.path.dirname(real), os.W_OK)
