"""Runs a code block that needs something around it; started as a program: KIND FILE SECONDS."""

import ast
import asyncio
import importlib
import inspect
import runpy
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sitq
from sitq import SQLiteBackend, TaskQueue, Worker

DEADLINE_SECONDS = float(sys.argv[3])


async def fragment(path: Path) -> None:
    """Runs statements that may await, where a queue is open and a worker is at work."""
    names: dict[str, Any] = {name: getattr(sitq, name) for name in sitq.__all__}
    names |= {"asyncio": asyncio, "datetime": datetime, "timedelta": timedelta, "UTC": UTC, "partial": partial}
    if path.with_name("tasks.py").exists():
        names |= vars(importlib.import_module("tasks"))
    source = path.read_text()  # noqa: ASYNC240 - nothing else is going on yet
    code = compile(source, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    backend = SQLiteBackend("app.db")
    async with TaskQueue(backend) as queue, Worker(backend), asyncio.timeout(DEADLINE_SECONDS):
        names |= {"__name__": "__main__", "queue": queue, "backend": backend}
        done = eval(code, names)
        if inspect.isawaitable(done):
            await done


async def lifespan(path: Path) -> None:
    """Enters the ``lifespan`` that the block defines, and has a task run inside of it."""
    names = runpy.run_path(str(path))
    async with names["lifespan"](object()):
        await run_a_task()


async def run_a_task() -> None:
    """Enqueues a task and waits for somebody else to run it."""
    async with TaskQueue(SQLiteBackend("app.db")) as queue:
        result = await queue.get_result(await queue.enqueue("operator:add", 1, 2), timeout=DEADLINE_SECONDS)
    assert result is not None
    assert result.value == 3


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serves an application on a free port of the loopback address."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        serving = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


async def asgi(path: Path) -> None:
    """Serves ``app``, and has the task run that a request enqueues."""
    import httpx

    app = runpy.run_path(str(path))["app"]
    async with served(app) as url, httpx.AsyncClient(trust_env=False, timeout=DEADLINE_SECONDS) as client:
        response = await client.post(f"{url}/welcome/ann@example.com")
        assert response.status_code == 202
        async with TaskQueue(SQLiteBackend("app.db")) as queue:
            result = await queue.get_result(response.json(), timeout=DEADLINE_SECONDS)
    assert result is not None
    assert result.unwrap() == "sent to ann@example.com"


if __name__ == "__main__":
    kinds = {"fragment": fragment, "lifespan": lifespan, "asgi": asgi}
    asyncio.run(kinds[sys.argv[1]](Path(sys.argv[2])))
