"""What a command says of the tasks that it has changed, and of those that it was to change."""

import sys
from collections.abc import Iterable, Mapping, Sequence

import click

from sitq.backends.inspect import Inspectable
from sitq.cli import render

type Refused = dict[str, str | None]
"""The status of each task that was left as it is; ``None`` if there is no such task."""

WORDS = {"ask": "asked", "cut": "cut"}
"""What was done with tasks that run."""


def unique(task_ids: Iterable[str]) -> Sequence[str]:
    """Returns each id once, in order."""
    return list(dict.fromkeys(task_ids))


async def refused(backend: Inspectable, task_ids: Iterable[str], done: Iterable[str]) -> Refused:
    """Returns the tasks that were left as they are, with the reason."""
    left: Refused = dict.fromkeys(task_ids)
    for task_id in done:
        del left[task_id]
    for task_id in left:
        if (task := await backend.show(task_id)) is not None:
            left[task_id] = task.status
    return left


def report(done: Mapping[str, Sequence[str]], left: Refused, *, as_json: bool) -> None:
    """Says what was done, and on stderr what was not; the status is 1 if something was not."""
    if as_json:
        reasons = [{"task_id": task_id, "status": status} for task_id, status in left.items()]
        render.show_json({**{word: list(task_ids) for word, task_ids in done.items()}, "refused": reasons})
    else:
        first = next(iter(done))
        for word, task_ids in done.items():
            if task_ids or word == first:
                render.show(f"{word} {count(len(task_ids))}{' to end' if word == WORDS['ask'] else ''}")
        for task_id, status in left.items():
            why = "there is no such task" if status is None else f"it is {status}"
            click.echo(f"not {first}: {render.line(task_id)}: {why}", err=True)
    sys.exit(1 if left else 0)


def count(number: int) -> str:
    """Returns a number of tasks in words."""
    return "1 task" if number == 1 else f"{number:,} tasks"
