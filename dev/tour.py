"""A tour of a queue at work: enqueue, watch the table change, look at latencies.

As a notebook: ``uv run --group tour marimo edit dev/tour.py``. As a script, which prints what the
notebook plots: ``uv run --group tour python dev/tour.py``.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="A tour of sitq")


@app.cell
def _():
    import asyncio
    import atexit
    import random
    import shutil
    import signal
    import sqlite3
    import subprocess
    import sys
    import tempfile
    import time
    from collections import Counter
    from functools import partial
    from pathlib import Path

    import marimo as mo

    from sitq import Backoff, SQLiteBackend, TaskQueue, Worker, current_task, task

    return (
        Backoff,
        Counter,
        Path,
        SQLiteBackend,
        TaskQueue,
        Worker,
        asyncio,
        atexit,
        current_task,
        mo,
        partial,
        random,
        shutil,
        signal,
        sqlite3,
        subprocess,
        sys,
        task,
        tempfile,
        time,
    )


@app.cell
def _(mo):
    mo.md("""
    # A tour of sitq

    A queue is one SQLite file. This notebook makes one in a temporary folder, puts tasks into it, and looks at the
    table while workers run them. Run the cells from top to bottom, change a number, and run them again.
    """)
    return


@app.cell
def _(Path, atexit, shutil, sqlite3, tempfile):
    _folder = tempfile.mkdtemp(prefix="sitq-tour-")
    atexit.register(shutil.rmtree, _folder)
    queue_file = Path(_folder) / "tour.db"

    def look(sql):
        """Reads the file with a connection of its own, as any SQLite client may."""
        connection = sqlite3.connect(queue_file)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql)]
        finally:
            connection.close()

    return look, queue_file


@app.cell
def _(mo):
    mo.md("""
    ## Enqueue

    A task is any function. It is stored when `enqueue` returns; nobody runs it yet. `enqueue_many` stores all of
    its tasks in one transaction.
    """)
    return


@app.cell
async def _(
    SQLiteBackend,
    TaskQueue,
    asyncio,
    look,
    mo,
    partial,
    queue_file,
    random,
):
    async def nap(seconds):
        await asyncio.sleep(seconds)
        if seconds > 0.018:
            raise TimeoutError("overslept")
        return seconds

    async with TaskQueue(SQLiteBackend(queue_file)) as _queue:
        ids = await _queue.enqueue_many(partial(nap, random.uniform(0.001, 0.02)) for _ in range(60))

    print(f"enqueued {len(ids)} tasks")
    mo.ui.table(look("SELECT id, task_id, name, status, attempt, length(payload) AS bytes FROM tasks LIMIT 10"))
    return (ids,)


@app.cell
def _(mo):
    mo.md("""
    ## Watch the table change

    A worker with four slots starts. Each time a result is there, the states in the table are counted.
    """)
    return


@app.cell
async def _(
    Counter,
    SQLiteBackend,
    TaskQueue,
    Worker,
    bands,
    ids,
    look,
    mo,
    queue_file,
):
    states = ("pending", "in_progress", "success", "failed")
    counts = []
    _backend = SQLiteBackend(queue_file)
    async with TaskQueue(_backend) as _queue, Worker(_backend, max_concurrency=4):
        for _task_id in ids:
            await _queue.get_result(_task_id)
            _found = Counter(row["status"] for row in look("SELECT status FROM tasks"))
            counts.append([_found[state] for state in states])

    print("in the end:", dict(zip(states, counts[-1], strict=True)))
    mo.vstack(
        [
            mo.Html(bands(states, counts)),
            mo.ui.table(
                look(
                    """
                    SELECT id, status, attempt, error, finished_at - started_at AS microseconds
                    FROM tasks ORDER BY error IS NULL, id LIMIT 10
                    """
                )
            ),
        ]
    )
    return (counts,)


@app.cell
def _(mo):
    mo.md("""
    ## Say how a task is run

    `@task` declares what is to happen when a task raises, and how long a run may take. This one raises at first, then
    takes too long, and then works. Between two runs it waits in the table, with the error of the latest one.
    """)
    return


@app.cell
async def _(
    Backoff,
    SQLiteBackend,
    TaskQueue,
    Worker,
    asyncio,
    counts,
    current_task,
    mo,
    queue_file,
    task,
):
    @task(retry=Backoff(retries=3, first=0.05), timeout=0.5)
    async def knock():
        attempt = current_task().attempt
        if attempt == 1:
            raise ConnectionError("nobody is at home")
        if attempt == 2:
            await asyncio.sleep(60)
        return f"opened at attempt {attempt}"

    _backend = SQLiteBackend(queue_file)
    async with TaskQueue(_backend) as _queue, Worker(_backend):
        _task_id = await _queue.enqueue(knock)
        print(f"task {sum(counts[-1]) + 1} {(await _queue.get_result(_task_id)).unwrap()}")
        _failed = (await _queue.get(_task_id)).failed_attempts

    print("after", " and ".join(attempt.error.partition(":")[0] for attempt in _failed))
    mo.ui.table([{"attempt": attempt.attempt, "error": attempt.error} for attempt in _failed])
    return


@app.cell
def _(mo):
    mo.md("""
    ## Which first, and only one

    A priority is a head start. With one slot, the urgent task is run before those that were stored earlier. The three
    calls with one unique key are one task.
    """)
    return


@app.cell
async def _(SQLiteBackend, TaskQueue, Worker, counts, look, mo, queue_file):
    _backend = SQLiteBackend(queue_file)
    async with TaskQueue(_backend) as _queue:
        for _name, _priority in (("report", -5), ("thumbnail", 0), ("password mail", 5)):
            await _queue.options(priority=_priority).enqueue("builtins:str", _name)
        _same = {await _queue.options(unique="sync:42").enqueue("builtins:str", "sync") for _ in range(3)}
        await Worker(_backend, max_concurrency=1).drain()
        _latest = sorted(await _queue.list("success", limit=4), key=lambda info: info.started_at)
        _order = [(await _queue.get_result(info.task_id)).unwrap() for info in _latest]

    print("order:", ", ".join(_order))
    print("three calls with one key:", len(_same), "task")
    _sql = (
        f"SELECT id, name, priority, unique_key, started_at FROM tasks WHERE id > {sum(counts[-1])} ORDER BY started_at"
    )
    mo.ui.table(look(_sql))
    return


@app.cell
def _(mo):
    mo.md("""
    ## Latency

    From before `enqueue` until after `get_result`, one task after the other: with a worker in this process, and
    with one in another process, which is woken by the commit. Each includes a sync of the disk for the task.
    """)
    return


@app.cell
def _(SQLiteBackend, TaskQueue, queue_file, time):
    async def round_trips(number):
        """Returns how long each of some tasks took, in milliseconds."""
        taken = []
        async with TaskQueue(SQLiteBackend(queue_file)) as queue:
            for n in range(number):
                started = time.perf_counter()
                result = await queue.get_result(await queue.enqueue("operator:neg", n))
                taken.append((time.perf_counter() - started) * 1000)
                assert result.unwrap() == -n
        return sorted(taken[1:])  # the first one starts the worker's threads

    return (round_trips,)


@app.cell
async def _(
    SQLiteBackend,
    Worker,
    bars,
    mo,
    queue_file,
    round_trips,
    signal,
    subprocess,
    sys,
):
    async with Worker(SQLiteBackend(queue_file)):
        here = await round_trips(100)

    _code = "import asyncio, sys, sitq; asyncio.run(sitq.Worker(sitq.SQLiteBackend(sys.argv[1])).run())"
    _process = subprocess.Popen([sys.executable, "-c", _code, queue_file])
    try:
        elsewhere = await round_trips(100)
    finally:
        _process.send_signal(signal.SIGTERM)
        _process.wait()

    for _name, _taken in (("this process", here), ("another process", elsewhere)):
        print(f"worker in {_name}: median {_taken[len(_taken) // 2]:.2f} ms, slowest {_taken[-1]:.2f} ms")
    mo.hstack([mo.Html(bars("in this process", here)), mo.Html(bars("in another process", elsewhere))])
    return


@app.cell
def _(mo):
    mo.md("""
    ## How it is drawn
    """)
    return


@app.cell
def _():
    colors = ("#9fa8da", "#ffb300", "#26a69a", "#ef6c00")

    def bands(names, rows, width=640, height=200):
        """Returns a picture of how the parts of a whole change from row to row."""
        step = width / len(rows)
        total = sum(rows[0])
        parts = []
        for x, row in enumerate(rows):
            y = height
            for part, color in zip(row, colors, strict=True):
                tall = height * part / total
                y -= tall
                parts.append(f'<rect x="{x * step}" y="{y}" width="{step + 0.5}" height="{tall}" fill="{color}"/>')
        for n, (name, color) in enumerate(zip(names, colors, strict=True)):
            parts.append(f'<rect x="{n * 130}" y="{height + 10}" width="12" height="12" fill="{color}"/>')
            parts.append(f'<text x="{n * 130 + 18}" y="{height + 21}" font-size="13">{name}</text>')
        return f'<svg viewBox="0 0 {width} {height + 30}" width="{width}" role="img">{"".join(parts)}</svg>'

    def bars(name, milliseconds, width=310, height=160, count=20):
        """Returns a histogram of durations, the slowest twentieth left out."""
        shown = milliseconds[: len(milliseconds) * 19 // 20]
        low, high = shown[0], shown[-1]
        piles = [0] * count
        for value in shown:
            piles[min(int((value - low) / ((high - low) or 1) * count), count - 1)] += 1
        step = width / count
        drawn = "".join(
            f'<rect x="{n * step}" y="{height * (1 - pile / max(piles))}" width="{step - 1}" '
            f'height="{height * pile / max(piles)}" fill="{colors[0]}"/>'
            for n, pile in enumerate(piles)
        )
        label = f"{name}: {low:.2f} to {high:.2f} ms"
        return (
            f'<svg viewBox="0 0 {width} {height + 24}" width="{width}" role="img">{drawn}'
            f'<text x="0" y="{height + 18}" font-size="13">{label}</text></svg>'
        )

    return bands, bars


if __name__ == "__main__":
    app.run()
