"""A service that books parcels with a carrier whose server is flaky, and loses none of them.

    uvicorn examples.flaky_service:app

    curl -d '{"number": 7, "to": "ann"}' -H 'content-type: application/json' localhost:8000/parcels
    curl 'localhost:8000/parcels/<task_id>?wait=10'
    curl localhost:8000/letters

The carrier is a part of this program. At the first request for a parcel it is out of order, at the second it does not
answer, and from the third on it works; it does not go to "nowhere".

The queue file is ``app.db``, or what the environment variable ``QUEUE_FILE`` says.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel

from sitq import Backoff, GiveUp, SQLiteBackend, TaskQueue, TaskTimeoutError, Unique, Worker, follow_up, task

backend = SQLiteBackend(os.environ.get("QUEUE_FILE", "app.db"))
queue = TaskQueue(backend)
carrier: httpx.AsyncClient  # made at the start of the service: a pool of connections belongs to an event loop
letters: list[str] = []

TROUBLE = (httpx.HTTPStatusError, httpx.TransportError, TaskTimeoutError)


async def write(text: str) -> None:
    """Follows on a success."""
    letters.append(text)


async def regret(task_id: str, name: str, error: str) -> None:
    """Follows on a failure that is not retried any more."""
    letters.append(f"we are sorry: {error}")


def one_of(number: int, to: str) -> Unique:
    """The key by which two bookings of one parcel are one task, also while it runs."""
    return Unique(f"book:{number}", while_="unfinished")


@task(queue="carrier", retry=Backoff(retries=8, first=0.5, on=TROUBLE), timeout=1, unique=one_of, on_failure=regret)
async def book(number: int, to: str) -> str:
    """Books a parcel; may run more than once, which the carrier knows by the parcel's number."""
    response = await carrier.put(f"/bookings/{number}", params={"to": to})
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        raise GiveUp(f"the carrier does not go to {to}")  # it would be no better tomorrow
    response.raise_for_status()
    follow_up(write, f"parcel {number} is on its way to {to}")
    return response.text


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Runs the carrier, a client of it and a worker for as long as the service runs."""
    global carrier
    async with (
        flaky_carrier() as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as carrier,
        queue,
        Worker(backend, max_concurrency=10, shutdown_timeout=20),
    ):
        yield


app = FastAPI(lifespan=lifespan)


class Parcel(BaseModel):
    """What a client sends."""

    number: int
    to: str
    express: bool = False


class Status(BaseModel):
    """What a client gets: ``tracking`` after a success, and the error of each run that failed."""

    task_id: str
    status: str
    tracking: str | None = None
    failures: list[str] = []


@app.post("/parcels", status_code=202)
async def accept(parcel: Parcel) -> Status:
    """Accepts a parcel. Sent once more while it is not booked, it gets the same task."""
    soon = queue.options(priority=20 if parcel.express else 0)  # twenty minutes ahead of the others
    return Status(task_id=await soon.enqueue(book, parcel.number, parcel.to), status="pending")


@app.get("/parcels/{task_id}")
async def look(task_id: str, wait: Annotated[float, Query(ge=0, le=30)] = 0) -> Status:
    """Tells what has become of a parcel so far, after ``wait`` seconds at the latest."""
    result = await queue.get_result(task_id, timeout=wait)
    info = await queue.get(task_id)
    if info is None:
        raise HTTPException(404, "no such parcel")
    tracking = result.value if result is not None else None
    failures = [attempt.error for attempt in info.failed_attempts]
    return Status(task_id=task_id, status=info.status, tracking=tracking, failures=failures)


@app.delete("/parcels/{task_id}")
async def withdraw(task_id: str) -> list[str]:
    """Withdraws a parcel, also between two attempts or in the middle of one."""
    return [*await queue.cancel(task_id, running="ask")]


@app.get("/letters")
async def read() -> list[str]:
    """Gives what was written to the customers."""
    return letters


@asynccontextmanager
async def flaky_carrier() -> AsyncIterator[str]:
    """Serves the carrier on a free port, and gives its address."""
    requests = Counter[str]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        parcel = head.split()[1]
        requests[parcel] += 1
        if requests[parcel] == 2:
            await asyncio.sleep(60)
        status, body = "503 Service Unavailable", "out of order"
        if parcel.endswith("to=nowhere"):
            status, body = "422 Unprocessable Content", "nobody goes there"
        elif requests[parcel] > 1:
            status, body = "200 OK", f"tracking-{parcel.partition('?')[0].rpartition('/')[2]}"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
