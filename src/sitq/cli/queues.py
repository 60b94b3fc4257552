"""The commands and options that concern named queues."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sitq._checks import DEFAULT_QUEUE, check_queue, check_queues
from sitq.cli import render
from sitq.cli.opening import ask
from sitq.cli.options import JSON, PATH


def served(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    """Refuses what is no name of a queue, and one that is given twice."""
    for value in values:
        name(ctx, param, value)
    try:
        return check_queues(values) if values else ()
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Returns the name as the store has it; refuses an empty one, which an unset variable would be."""
    try:
        return None if value is None else check_queue(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


SERVED = click.option(
    "--queue",
    "queues",
    callback=served,
    multiple=True,
    metavar="NAME",
    help="Run tasks of this queue; may be given again. Without it, those of all queues. The tasks that were given "
    f"no queue are in `{DEFAULT_QUEUE}`.",
)
OF_QUEUE = click.option("--queue", callback=name, metavar="NAME", help="Only tasks of this queue.")
QUEUE = click.argument("queue", metavar="QUEUE", callback=name)


@click.command()
@PATH
@JSON
def queues(path: Path, as_json: bool) -> None:
    """Show what waits and runs in each queue, by priority.

    The queue of the tasks that were given none is named `default`. OLDEST is
    for how long the oldest task that is due has been waiting.
    """

    async def question(backend: Any) -> Any:
        return await backend.lanes()

    lanes = ask(path, question)
    if as_json:
        render.show_json([render.as_json(lane) for lane in lanes])
    else:
        render.show(render.lanes(lanes))


@click.command()
@PATH
@QUEUE
@JSON
def pause(path: Path, queue: str, as_json: bool) -> None:
    """Have no worker take tasks of a queue, until it is resumed.

    It is kept in the file. What runs already is finished, and tasks can still
    be enqueued.
    """
    _set(path, queue, "paused", as_json=as_json)


@click.command()
@PATH
@QUEUE
@JSON
def resume(path: Path, queue: str, as_json: bool) -> None:
    """Let workers take tasks of a paused queue again."""
    _set(path, queue, "resumed", as_json=as_json)


def _set(path: Path, queue: str, done: str, *, as_json: bool) -> None:
    async def question(backend: Any) -> None:
        await (backend.pause(queue) if done == "paused" else backend.resume(queue))

    ask(path, question, changes=True)
    shown = queue or DEFAULT_QUEUE
    if as_json:
        render.show_json({done: shown})
    else:
        render.show(f"{done} {render.line(shown)}")
