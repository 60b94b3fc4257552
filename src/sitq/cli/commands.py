"""The commands: what they take, what they ask of the backend, and how they end."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import click

from sitq import BackendError, SQLiteBackend
from sitq.backends.inspect import Inspectable
from sitq.cli import render
from sitq.cli.child import ChildSettings, configure_logging
from sitq.cli.doctor import examine
from sitq.cli.durations import parse_duration
from sitq.cli.supervisor import Supervisor, logger
from sitq.cli.watch import watch as watch_backend
from sitq.models import Status

type Refused = dict[str, str | None]
"""The status of each task that was left as it is; ``None`` where there is no such task."""


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Turns the value of an option into seconds, or ends with a usage error."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def age(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Turns the value of an option that deletes what is older into seconds: it needs a unit."""
    try:
        return parse_duration(value, unit=None)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def retention_seconds(ctx: click.Context, param: click.Parameter, value: str) -> float | None:
    """Turns the value of an option into seconds, ``forever`` into ``None``."""
    return None if value == "forever" else age(ctx, param, value)


def pause(ctx: click.Context, param: click.Parameter, value: str) -> float | None:
    """Turns the value of an option into seconds that are long enough for others to get a turn."""
    found = seconds(ctx, param, value)
    if found is not None and found < SHORTEST_PAUSE_SECONDS:
        raise click.BadParameter(f"at least {SHORTEST_PAUSE_SECONDS} seconds: each look reads every row")
    return found


SHORTEST_PAUSE_SECONDS = 0.05

PATH = click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
IDS = click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def ask[T](path: Path, question: Callable[[Inspectable], Awaitable[T]]) -> T:
    """Opens an existing file, asks, and closes it; what is wrong with it becomes one line."""
    # SQLite would make a missing file, and sitq takes an empty one for its own.
    if not os.path.isfile(path):
        raise click.ClickException(f"{path}: {'it is a folder' if os.path.isdir(path) else 'there is no such file'}")
    if not os.path.getsize(path):
        raise click.ClickException(f"{path}: the file is empty; nothing was enqueued into it yet")

    async def answer() -> T:
        backend = SQLiteBackend(path, retention=None)
        await backend.connect()
        try:
            return await question(backend)
        finally:
            await backend.close()

    try:
        return asyncio.run(answer())
    except BackendError as error:
        raise click.ClickException(" ".join(str(error).split())) from error


class InOrder(click.Group):
    """Lists its commands in the order in which they were written."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sitq", message="%(prog)s %(version)s")
def root() -> None:
    """Run workers on a queue file, look into it, and mend what is in it.

    PATH is the SQLite file that was given to SQLiteBackend. Only a worker
    makes a file that is missing; the other commands say so and end with
    status 1. No command but a worker loads a pickle.
    """


@root.command()
@PATH
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=10,
    metavar="N",
    show_default=True,
    help="Tasks that each process runs at the same time.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    show_default=True,
    help="Worker processes; more than one for work that keeps a CPU busy.",
)
@click.option(
    "--shutdown-timeout",
    callback=seconds,
    metavar="S",
    help="Seconds that running tasks get when the worker is to end; then they are given back to "
    "the queue. Without it, as long as they take.",
)
@click.option(
    "--retention",
    callback=retention_seconds,
    default="7d",
    metavar="AGE",
    show_default=True,
    help="How long finished tasks are kept, or `forever`.",
)
@click.option("--quiet", is_flag=True, help="Log warnings only, and no line for each task.")
def worker(
    path: Path, concurrency: int, processes: int, shutdown_timeout: float | None, retention: float | None, quiet: bool
) -> None:
    """Run tasks until SIGTERM or SIGINT (Ctrl-C).

    Functions are imported from the installed packages and from the current
    folder, so start it where your code is, or set PYTHONPATH.

    On the first signal no task is started any more, the running ones are
    finished, and the status is 0. A second one ends everything at once. A
    process that dies is replaced by another, after a pause that grows from
    0.1 to 30 seconds; its tasks are run again when their leases have ended.
    """
    if str(path) == ":memory:":
        raise click.UsageError("a queue in memory cannot be shared with worker processes: give it a file")
    configure_logging("supervisor", quiet=quiet)
    path = path.absolute()
    is_new = not os.path.exists(path)
    folder = os.getcwd()

    async def run() -> int:
        # Before the processes are: what is wrong with the file is said once, and by this one.
        backend = SQLiteBackend(path)
        await backend.connect()
        try:
            await backend.list(limit=1)
        finally:
            await backend.close()
        logger.info("%s %s, tasks are imported from %s", "made" if is_new else "working on", path, folder)
        settings = ChildSettings(str(path), concurrency, shutdown_timeout, retention, quiet)
        return await Supervisor(settings, processes).run()

    try:
        status = asyncio.run(run())
    except BackendError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    sys.exit(status)


@root.command()
@PATH
@JSON
def status(path: Path, as_json: bool) -> None:
    """Show how many tasks there are of each status."""
    counts = ask(path, lambda backend: backend.counts())
    size = os.path.getsize(path)
    if as_json:
        render.show_json({"path": os.path.realpath(path), "file_bytes": size, **render.as_json(counts)})
    else:
        render.show(f"{path}   {render.file_size(size)}", "", render.counts(counts))


@root.command("list")
@PATH
@click.option("--status", type=click.Choice(render.STATUSES), help="Only tasks of this status.")
@click.option("--limit", type=click.IntRange(1), default=20, metavar="N", show_default=True, help="How many at most.")
@JSON
def list_(path: Path, status: Status | None, limit: int, as_json: bool) -> None:
    """List tasks, the newest first.

    With a status that is final, the newest are those that were finished last;
    else those that were enqueued last. AGE is how long a task has been in its
    status, or, for one that is not due yet, how long it will be.
    """
    tasks = ask(path, lambda backend: backend.list(status=status, limit=limit))
    if as_json:
        render.show_json([render.as_json(task) for task in tasks])
    else:
        render.show(render.listing(tasks))


@root.command()
@PATH
@click.argument("task_id", metavar="ID")
@JSON
def show(path: Path, task_id: str, as_json: bool) -> None:
    """Show one task: times, attempts, error and remote traceback."""
    task = ask(path, lambda backend: backend.show(task_id))
    if task is None:
        raise click.ClickException(f"{path}: there is no task {render.printable(task_id)}")
    if as_json:
        render.show_json(render.as_json(task))
    else:
        render.show(render.details(task))


@root.command()
@PATH
@click.argument("task_ids", metavar="ID... | --failed", nargs=-1)
@click.option("--failed", is_flag=True, help="Every failed task.")
@JSON
def retry(path: Path, task_ids: tuple[str, ...], failed: bool, as_json: bool) -> None:
    """Run failed or cancelled tasks again, from their first attempt.

    Give the ids of tasks, or --failed for every task that is failed. They are
    due at once; their error and traceback are forgotten.
    """
    if failed is bool(task_ids):
        raise click.UsageError("give the ids of tasks, or --failed")

    async def question(backend: Inspectable) -> tuple[Sequence[str], Refused]:
        if failed:
            return await backend.retry_failed(), {}
        done = await backend.retry(unique(task_ids))
        return done, await refused(backend, task_ids, done)

    tell("retried", *ask(path, question), as_json=as_json)


@root.command()
@PATH
@IDS
@JSON
def cancel(path: Path, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel waiting tasks.

    They are finished without being run, and whoever waits for their result
    learns it at once. A task that is running cannot be cancelled.
    """

    async def question(backend: Inspectable) -> tuple[Sequence[str], Refused]:
        done = await backend.cancel(unique(task_ids))
        return done, await refused(backend, task_ids, done)

    tell("cancelled", *ask(path, question), as_json=as_json)


@root.command()
@PATH
@click.option(
    "--older-than",
    callback=age,
    required=True,
    metavar="AGE",
    help="How long ago they must have finished: 90s, 15m, 2h, 7d, 1w.",
)
@JSON
def prune(path: Path, older_than: float, as_json: bool) -> None:
    """Delete finished tasks, with their results and errors.

    Workers do the same by themselves, for tasks that finished longer ago than
    their retention, which is a week unless told otherwise. The file does not
    shrink: new tasks use the room.
    """
    pruned = ask(path, lambda backend: backend.prune(older_than=older_than))
    if as_json:
        render.show_json({"pruned": pruned})
    else:
        render.show(f"pruned {count(pruned)}")


@root.command()
@PATH
@click.option("--interval", callback=pause, default="1s", metavar="S", show_default=True, help="How often to look.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each look.")
def watch(path: Path, interval: float, as_json: bool) -> None:
    """Watch counts, rates and what is running.

    Ctrl-C ends it. Without a terminal it prints a line for each look.
    """
    try:
        ask(path, lambda backend: watch_backend(backend, str(path), interval, as_json=as_json))
    except KeyboardInterrupt:
        sys.exit(0)


@root.command()
@PATH
@JSON
def doctor(path: Path, as_json: bool) -> None:
    """Examine the file and what it stands on, and say what to do.

    The status is 1 when something is wrong. A note is not wrong. Reads the
    whole file. Run it with the Python that runs the workers.
    """
    findings = ask(path, examine)
    healthy = all(finding.level != "wrong" for finding in findings)
    if as_json:
        render.show_json({"healthy": healthy, "findings": [render.as_json(finding) for finding in findings]})
    else:
        render.show(render.findings(findings))
    sys.exit(0 if healthy else 1)


def unique(task_ids: Iterable[str]) -> Sequence[str]:
    """Returns each id once, in order."""
    return list(dict.fromkeys(task_ids))


async def refused(backend: Inspectable, task_ids: Iterable[str], done: Iterable[str]) -> Refused:
    """Looks why tasks were left as they are."""
    left: Refused = dict.fromkeys(task_ids)
    for task_id in done:
        del left[task_id]
    for task_id in left:
        if (task := await backend.show(task_id)) is not None:
            left[task_id] = task.status
    return left


def tell(done: str, task_ids: Sequence[str], left: Refused, *, as_json: bool) -> None:
    """Says what was done, and on stderr what was not; the status is 1 where something was not."""
    if as_json:
        reasons = [{"task_id": task_id, "status": status} for task_id, status in left.items()]
        render.show_json({done: list(task_ids), "refused": reasons})
    else:
        render.show(f"{done} {count(len(task_ids))}")
        for task_id, status in left.items():
            why = "there is no such task" if status is None else f"it is {status}"
            click.echo(f"not {done}: {render.printable(task_id)}: {why}", err=True)
    sys.exit(1 if left else 0)


def count(number: int) -> str:
    """Returns a number of tasks in words."""
    return "1 task" if number == 1 else f"{number:,} tasks"
