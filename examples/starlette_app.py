"""A Starlette service with its worker inside, and nothing global: the queue travels in the application's state.

    uvicorn --factory examples.starlette_app:make_app

    curl -d '[3, 4, 5]' localhost:8000/squares
    curl 'localhost:8000/squares/<task_id>'

The queue file is ``app.db``, or what the environment variable ``QUEUE_FILE`` says.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sitq import Backend, SQLiteBackend, TaskQueue, Worker


class State(TypedDict):
    """What a request finds in ``request.state``."""

    queue: TaskQueue


async def square(number: float) -> float:
    """The work."""
    return number * number


async def accept(request: Request) -> JSONResponse:
    """Enqueues one task for each number, all of them or none."""
    numbers = await request.json()
    ids = await request.state.queue.enqueue_many(partial(square, number) for number in numbers)
    return JSONResponse(ids, status_code=202)


async def look(request: Request) -> JSONResponse:
    """Waits up to five seconds for a result."""
    result = await request.state.queue.get_result(request.path_params["task_id"], timeout=5)
    if result is None:
        return JSONResponse({"status": "unknown or not finished"}, status_code=404)
    return JSONResponse({"status": result.status, "value": result.value, "error": result.error})


def make_app(backend: Backend | None = None) -> Starlette:
    """Returns the application; a test gives it a backend of its own."""
    backend = backend or SQLiteBackend(os.environ.get("QUEUE_FILE", "app.db"))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with TaskQueue(backend) as queue, Worker(backend, max_concurrency=50, shutdown_timeout=20):
            yield {"queue": queue}

    routes = [Route("/squares", accept, methods=["POST"]), Route("/squares/{task_id}", look)]
    return Starlette(routes=routes, lifespan=lifespan)
