"""The commands: what they take, what they ask of the backend, and how they end."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sitq import BackendError, BackendReadOnlyError, SQLiteBackend
from sitq._operations import Cancelled, cancel_tasks
from sitq.backends.cancelling import RunningTasks
from sitq.backends.inspect import Inspectable, TaskDetails
from sitq.cli import options, queues, render
from sitq.cli.child import ChildSettings, configure_logging
from sitq.cli.doctor import examine
from sitq.cli.mended import WORDS, Refused, count, refused, report, unique
from sitq.cli.opening import ask
from sitq.cli.options import IDS, JSON, NARROWING, PATH
from sitq.cli.supervisor import Supervisor, check, logger
from sitq.cli.watch import watch as watch_backend
from sitq.models import STATUSES

MAX_NAMED_IDS = 5
"""How many ids an error names at most."""


class InOrder(click.Group):
    """Lists its commands in the order in which they were written."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sitq", message="%(prog)s %(version)s")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Run workers on a queue file, look into it, and mend what is in it.

    PATH is the SQLite file that was given to SQLiteBackend. Only a worker
    makes a file that is missing; the other commands say so and end with
    status 1. No command but a worker loads a pickle.
    """
    if sys.stdout is None and ctx.invoked_subcommand != "worker":  # before anything is changed
        raise click.ClickException("the standard output is closed: there is nowhere to write to")


@root.command()
@PATH
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    callback=options.count,
    default=10,
    metavar="N",
    show_default=True,
    help="Tasks that each process runs at the same time.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, options.MAX_PROCESSES),
    default=1,
    metavar="N",
    show_default=True,
    help="Worker processes; more than one for work that keeps a CPU busy.",
)
@click.option(
    "--shutdown-timeout",
    callback=options.seconds,
    metavar="S",
    help="Seconds that running tasks get when the worker is to end; then they are given back to "
    "the queue. Without it, as long as they take.",
)
@click.option(
    "--lease",
    callback=options.lease,
    default="30",
    metavar="S",
    show_default=True,
    help="Seconds after which another worker takes over what this one no longer renews.",
)
@click.option(
    "--retention",
    callback=options.retention_seconds,
    metavar="AGE",
    help="How long finished tasks are kept, or `forever`. Without it, as the application chose with "
    "SQLiteBackend(retention=), or else 7d.",
)
@click.option(
    "--retention-failed",
    callback=options.retention_seconds,
    metavar="AGE",
    help="The same for failed tasks. Without it, as the application chose with "
    "SQLiteBackend(retention_failed=), or else as all others.",
)
@click.option(
    "--import",
    "modules",
    callback=options.modules,
    multiple=True,
    metavar="MODULE",
    help="Import this before the first task is taken; may be given again.",
)
@click.option(
    "--serializer",
    callback=options.import_path,
    metavar="MODULE:ATTRIBUTE",
    help="The serializer of the application, or what makes it.",
)
@queues.SERVED
@click.option("--quiet", is_flag=True, help="Log warnings only, and no line for each task.")
@click.option(
    "--log-exceptions",
    is_flag=True,
    help="Log a failed task at error, with its exception and the traceback. Messages tend to quote arguments.",
)
def worker(path: Path, processes: int, quiet: bool, **settings: Any) -> None:
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
    child = ChildSettings(str(path), quiet=quiet, **settings)

    async def run() -> int:
        # Before the processes are: what is wrong is said once, and by this one.
        if child.serializer is not None and not await check(child):
            return 1
        backend = SQLiteBackend(path)
        await backend.connect()
        try:
            await backend.list(limit=1)
        finally:
            await backend.close()
        if not os.access(path, os.W_OK):
            raise BackendReadOnlyError(
                f"{path}: this user cannot write it, which a worker has to: give this user the right to, or run the "
                "worker as the one who owns it"
            )
        logger.info("%s %s, tasks are imported from %s", "made" if is_new else "working on", path, os.getcwd())
        return await Supervisor(child, processes).run()

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
    # As it was found: opening it makes a -wal file, and closing it deletes that.
    size, wal = options.sizes(path)
    counts = ask(path, lambda backend: backend.counts())
    if as_json:
        sizes = {"file_bytes": size, "wal_bytes": wal}
        render.show_json({"path": os.path.realpath(path), **sizes, **render.as_json(counts)})
    else:
        beside = f", and {render.file_size(wal)} in its -wal file" if wal else ""
        render.show(f"{render.line(str(path))}   {render.file_size(size)}{beside}", "", render.counts(counts))


@root.command("list")
@PATH
@click.option("--status", type=click.Choice(STATUSES), help="Only tasks of this status.")
@NARROWING
@queues.OF_QUEUE
@click.option(
    "--limit",
    type=click.IntRange(1),
    callback=options.count,
    default=20,
    metavar="N",
    show_default=True,
    help="How many at most.",
)
@click.option(
    "--before", callback=options.text, metavar="ID", help="Go on after this task, the last one of the page before."
)
@JSON
def list_(path: Path, as_json: bool, **filters: Any) -> None:
    """List tasks, the newest first.

    With a status that is final, the newest are those that were finished last;
    else those that were enqueued last. AGE is how long a task has been in its
    status, or, for one that is not due yet, how long it will be.
    """

    async def question(backend: Inspectable) -> Sequence[Any]:
        try:
            return await backend.list(**filters)
        except ValueError as error:  # there is no such task to begin after
            raise click.ClickException(render.line(str(error))) from error

    tasks = ask(path, question)
    if as_json:
        render.show_json([render.as_json(task) for task in tasks])
    else:
        render.show(render.listing(tasks))


@root.command()
@PATH
@click.argument("task_id", metavar="ID")
@click.option("--tracebacks", is_flag=True, help="Print the traceback of each failed attempt, not of the last alone.")
@JSON
def show(path: Path, task_id: str, tracebacks: bool, as_json: bool) -> None:
    """Show one task: times, attempts, errors and remote traceback.

    The beginning of an ID is enough if no other id begins so.
    """
    task = ask(path, lambda backend: find(backend, task_id))
    if task is None:
        raise click.ClickException(f"{path}: there is no task {render.line(task_id)}")
    if as_json:
        render.show_json(render.as_json(task))
    else:
        render.show(render.details(task, tracebacks=tracebacks))


root.add_command(queues.queues)


@root.command()
@PATH
@click.argument("task_ids", metavar="ID... | --failed", nargs=-1)
@click.option("--failed", is_flag=True, help="Every failed task, or those of them that fit what follows.")
@NARROWING
@JSON
def retry(path: Path, task_ids: tuple[str, ...], failed: bool, as_json: bool, **filters: Any) -> None:
    """Run failed or cancelled tasks again, from their first attempt.

    Give the whole ids of tasks, or --failed for every task that is failed.
    They are due at once; their error and traceback are forgotten. A task that
    was abandoned, because its worker is gone, can be retried by its id, too.
    """
    if failed is bool(task_ids):
        raise click.UsageError("give the ids of tasks, or --failed")
    if task_ids and any(value is not None for value in filters.values()):
        raise click.UsageError("--name, --error and --since go with --failed")

    async def question(backend: Inspectable) -> tuple[Sequence[str], Refused]:
        if failed:
            return await backend.retry_failed(**filters), {}
        done = await backend.retry(unique(task_ids))
        return done, await refused(backend, task_ids, done)

    done, left = ask(path, question, changes=True)
    report({"retried": done}, left, as_json=as_json)


@root.command()
@PATH
@IDS
@click.option(
    "--running",
    type=click.Choice(["leave", "ask", "cut"]),
    default="leave",
    show_default=True,
    help="What to do with tasks that are running.",
)
@JSON
def cancel(path: Path, task_ids: tuple[str, ...], running: RunningTasks, as_json: bool) -> None:
    """Cancel waiting tasks, and running ones if told to.

    Waiting tasks are finished without being run, and whoever waits for their
    result learns it at once. So are abandoned ones: the worker is gone, and
    the lease is over.

    With --running ask, a running task is asked to end: it stays in progress
    until its code has ended, and has succeeded if it returns a value all the
    same. With --running cut it is cancelled at once, and what its code
    returns is thrown away; but the code may go on.
    """

    async def question(backend: Inspectable) -> tuple[Cancelled, Refused]:
        done = await cancel_tasks(backend, unique(task_ids), running)
        return done, await refused(backend, task_ids, [*done.waiting, *done.running])

    (waiting, ended), left = ask(path, question, changes=True)
    done = {"cancelled": waiting} if running == "leave" else {"cancelled": waiting, WORDS[running]: ended}
    report(done, left, as_json=as_json)


root.add_command(queues.pause)
root.add_command(queues.resume)


@root.command()
@PATH
@click.option(
    "--older-than",
    callback=options.age,
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
    pruned = ask(path, lambda backend: backend.prune(older_than=older_than), changes=True)
    if as_json:
        render.show_json({"pruned": pruned})
    else:
        render.show(f"pruned {count(pruned)}")


@root.command()
@PATH
@click.option(
    "--interval",
    callback=options.pause,
    default="1s",
    metavar="S",
    show_default=True,
    help="How often to query the file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each query.")
def watch(path: Path, interval: float, as_json: bool) -> None:
    """Watch counts, rates and what is running.

    Ctrl-C ends it. Without a terminal it prints a line for each query.
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


async def find(backend: Inspectable, task_id: str) -> TaskDetails | None:
    """Returns the task of this id, or the only one whose id begins so; ``None`` if there is none."""
    found = await backend.show(task_id)
    if found is not None or not task_id:
        return found
    ids = await backend.find_ids(task_id, limit=MAX_NAMED_IDS + 1)
    if len(ids) > 1:
        named = ", ".join(map(render.line, ids[:MAX_NAMED_IDS])) + (", …" if len(ids) > MAX_NAMED_IDS else "")
        raise click.ClickException(f"several ids begin with {render.line(task_id)}: {named}; give more of it")
    return await backend.show(ids[0]) if ids else None
