"""What the options of several commands take, and what makes no sense there."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from sitq._checks import check_positive_seconds
from sitq.cli.durations import parse_duration
from sitq.serializers.calls import split_import_path

MIN_PAUSE_SECONDS = 0.05
MAX_PROCESSES = 1_000
MAX_COUNT = 2**31 - 1


def count(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Refuses a number that nobody means, and that SQLite does not take."""
    if value > MAX_COUNT:
        raise click.BadParameter(f"at most {MAX_COUNT:,}")
    return value


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Turns the value of an option into seconds, or ends with a usage error."""
    return None if value is None else _parsed(value, unit="s")


def lease(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Turns the value of an option into seconds, of which there must be some."""
    try:
        return check_positive_seconds("it", _parsed(value, unit="s"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def age(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Turns the value of an option into seconds; it needs a unit, because 30 may be meant in days."""
    return None if value is None else _parsed(value, unit=None)


def retention_seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | str | None:
    """Turns the value of an option into seconds, ``forever`` into itself."""
    return value if value == "forever" else age(ctx, param, value)


def pause(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Turns the value of an option into seconds that are long enough for others to get a turn."""
    found = _parsed(value, unit="s")
    if found < MIN_PAUSE_SECONDS:
        raise click.BadParameter(f"at least {MIN_PAUSE_SECONDS} seconds: each query reads every row")
    return found


def text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuses an empty text, which every task would fit: an unset variable must not retry them all."""
    if value == "":
        raise click.BadParameter("it must not be empty: leave the option out")
    return value


def modules(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    """Refuses what cannot be the name of a module."""
    for value in values:
        if not all(part.isidentifier() for part in value.split(".")):
            raise click.BadParameter(f"{value!r} is not the name of a module: write package.module")
    return values


def import_path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuses what has not the form of an import path."""
    try:
        if value is not None:
            split_import_path(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not of the form package.module:attribute") from error
    return value


def _parsed(value: str, *, unit: str | None) -> float:
    try:
        return parse_duration(value, unit=unit)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


PATH = click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
IDS = click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def NARROWING[F: Callable[..., object]](command: F) -> F:  # noqa: N802 - used as the three above
    """Adds the options that narrow which tasks are meant."""
    since = click.option(
        "--since", callback=age, metavar="AGE", help="Finished, or else enqueued, within: 90s, 15m, 2h, 7d, 1w."
    )
    error = click.option("--error", callback=text, metavar="TEXT", help="With an error that contains this.")
    name = click.option(
        "--name", callback=text, metavar="TEXT", help="With a name that contains this, or fits it: *.send, m:[ab]?"
    )
    return name(error(since(command)))


def sizes(path: Path) -> tuple[int, int]:
    """Returns the bytes of a file and of its -wal file; 0 if there is none."""
    return _size(path), _size(Path(f"{os.path.realpath(path)}-wal"))


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # opening it says why
        return 0
