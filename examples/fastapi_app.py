"""A FastAPI service with its worker inside: work that takes time is accepted at once, and its result fetched later.

    uvicorn examples.fastapi_app:app

    curl -d '{"text": "to be or not to be"}' -H 'content-type: application/json' localhost:8000/documents
    curl 'localhost:8000/documents/<task_id>?wait=5'

The queue file is ``app.db``, or what the environment variable ``QUEUE_FILE`` says.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Response
from pydantic import BaseModel

from sitq import SQLiteBackend, TaskQueue, Worker

backend = SQLiteBackend(os.environ.get("QUEUE_FILE", "app.db"))
queue = TaskQueue(backend)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Runs a worker for as long as the service runs; at the end, its tasks get twenty seconds to finish."""
    async with queue, Worker(backend, max_concurrency=50, shutdown_timeout=20):
        yield


app = FastAPI(lifespan=lifespan)


def count_words(text: str) -> dict[str, int]:
    """The work: a plain function, so the worker runs it in a thread and the service stays responsive."""
    if not text.strip():
        raise ValueError("the document is empty")
    return dict(Counter(text.lower().split()))


class Document(BaseModel):
    """What a client sends."""

    text: str


class Status(BaseModel):
    """What a client gets: ``words`` after a success, ``error`` after a failure."""

    task_id: str
    status: str
    words: dict[str, int] | None = None
    error: str | None = None


@app.post("/documents", status_code=202)
async def accept(document: Document) -> Status:
    """Accepts a document. When the client gets this answer, the task is on the disk."""
    task_id = await queue.enqueue(count_words, document.text)
    return Status(task_id=task_id, status="pending")


@app.get("/documents/{task_id}")
async def look(task_id: str, response: Response, wait: Annotated[float, Query(ge=0, le=30)] = 0) -> Status:
    """Gives the result, or status 202 if it is not there after ``wait`` seconds."""
    if await backend.get_result(task_id) is None:
        raise HTTPException(404, "no such document, or its result has expired")
    result = await queue.get_result(task_id, timeout=wait)
    if result is None:
        response.status_code = 202
        return Status(task_id=task_id, status="pending")
    return Status(task_id=task_id, status=result.status, words=result.value, error=result.error)
