"""The FastAPI and Starlette examples, driven over HTTP through a real server on the loopback address."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from examples.fastapi_app import count_words
from sitq import SQLiteBackend, TaskQueue
from tests.docs.blocks import blocks
from tests.faults import run_until
from tests.support import DEADLINE_SECONDS, ROOT, Runs, rows, until

FASTAPI = ("examples.fastapi_app:app",)
STARLETTE = ("--factory", "examples.starlette_app:make_app")
FLAKY = ("examples.flaky_service:app",)
TEXTS = [f"to be or not to be that is question {n}" for n in range(20)]


@dataclass
class Service:
    """A server in a process of its own, and a client of it."""

    client: httpx.AsyncClient
    process: asyncio.subprocess.Process
    log: str = ""

    async def wait_for(self, pattern: str) -> str:
        """Reads the log up to a line that holds ``pattern``, and returns what its first group found."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.log += line
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"{pattern!r} is not in the log:\n{self.log}")

    async def stop(self) -> None:
        """Sends SIGTERM, as a supervisor would, and waits for the clean end."""
        self.process.send_signal(signal.SIGTERM)
        await self.wait_for("(Application shutdown complete)")
        await self.process.wait()


@asynccontextmanager
async def serve(queue_file: Path, *app: str) -> AsyncIterator[Service]:
    """Runs uvicorn on a free port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "uvicorn", "--port", "0", *app),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"QUEUE_FILE": str(queue_file), "NO_COLOR": "1"},
        start_new_session=True,
    )
    async with asyncio.timeout(DEADLINE_SECONDS), httpx.AsyncClient(trust_env=False, timeout=30) as client:
        service = Service(client, process)
        try:
            client.base_url = await service.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
            yield service
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # with --reload, the server is a child of it
            await process.communicate()  # wait() may return before the pipe is read to its end, and closed


async def post(client: httpx.AsyncClient, text: str) -> str:
    """Posts a document and returns its id."""
    response = await client.post("/documents", json={"text": text})
    assert response.status_code == 202
    assert response.json()["status"] == "pending"
    return str(response.json()["task_id"])


async def fetch(client: httpx.AsyncClient, task_id: str) -> dict[str, object]:
    """Polls until a document is done."""
    while (response := await client.get(f"/documents/{task_id}", params={"wait": 5})).status_code == 202:
        pass
    assert response.status_code == 200
    found: dict[str, object] = response.json()
    return found


async def test_a_fastapi_service_answers_at_once_and_gives_the_results_later(path: Path) -> None:
    """Documents are accepted with an id, counted in the background, and polled for by the client, many at a time."""
    async with serve(path, *FASTAPI) as service:
        ids = await asyncio.gather(*(post(service.client, text) for text in [*TEXTS, "  "]))
        *found, empty = await asyncio.gather(*(fetch(service.client, task_id) for task_id in ids))
        assert (empty["status"], empty["error"]) == ("failed", "ValueError: the document is empty")
        assert (await service.client.get("/documents/unknown")).status_code == 404
        assert (await service.client.post("/documents", json={"txt": ""})).status_code == 422
        await service.stop()
    assert [each["words"] for each in found] == [count_words(text) for text in TEXTS]
    assert {each["status"] for each in found} == {"success"}
    assert {row["attempt"] for row in rows(path)} == {1}


async def test_a_fastapi_service_takes_up_where_the_one_before_was_killed(path: Path) -> None:
    """Results from before the kill are still there, and what was enqueued while no service ran is done."""
    async with serve(path, *FASTAPI) as service:
        before = await post(service.client, TEXTS[0])
        await fetch(service.client, before)
        service.process.kill()
        await service.process.wait()
    async with TaskQueue(SQLiteBackend(path)) as queue:
        meanwhile = await queue.enqueue(count_words, TEXTS[1])
    async with serve(path, *FASTAPI) as service:
        for task_id, text in ((before, TEXTS[0]), (meanwhile, TEXTS[1])):
            assert (await fetch(service.client, task_id))["words"] == count_words(text)
        await service.stop()


async def test_a_starlette_service_keeps_its_queue_in_the_state(path: Path) -> None:
    """A list of numbers becomes as many tasks, and each result is waited for."""
    async with serve(path, *STARLETTE) as service:
        response = await service.client.post("/squares", json=list(range(10)))
        assert response.status_code == 202
        found = await asyncio.gather(*(service.client.get(f"/squares/{task_id}") for task_id in response.json()))
        assert [each.json()["value"] for each in found] == [n * n for n in range(10)]
        assert (await service.client.get("/squares/unknown")).status_code == 404
        await service.stop()


def test_the_services_are_started_as_their_page_says() -> None:
    """The commands of the examples' page and of the examples themselves are those that the tests here serve."""
    page = (ROOT / "examples" / "README.md").read_text()
    served = {FASTAPI, STARLETTE, FLAKY}
    assert {tuple(command.split()) for command in re.findall(r"`uv run uvicorn ([^`]+)`", page)} == served
    for command in served:
        example = ROOT / f"{command[-1].partition(':')[0].replace('.', '/')}.py"
        assert f"    uvicorn {' '.join(command)}\n" in example.read_text()


@pytest.mark.parametrize("reload", [False, True], ids=["", "reload"])
async def test_the_readmes_lifespan_lets_a_server_end_while_a_long_task_runs(
    path: Path, tmp_path: Path, runs: Runs, reload: bool
) -> None:
    """SIGTERM, and before it a reload, wait for no longer than its timeout; the task is given back, unspent."""
    (block,) = (block for block in blocks(ROOT / "README.md") if block.way == "lifespan")
    code = block.code.replace('"app.db"', repr(str(path))).replace("shutdown_timeout=20", "shutdown_timeout=0.1")
    assert code.count("shutdown_timeout=0.1") == 1
    service_file = tmp_path / "service.py"
    service_file.write_text(f"{code}\n\nfrom fastapi import FastAPI\n\napp = FastAPI(lifespan=lifespan)\n")
    command = [
        "--app-dir",
        str(tmp_path),
        "service:app",
        *(["--reload", "--reload-dir", str(tmp_path)] if reload else []),
    ]
    async with TaskQueue(SQLiteBackend(path)) as queue, serve(path, *command) as service:
        await queue.enqueue(run_until, runs, "started", tmp_path / "never")
        await until(lambda: len(runs.lines()) == 1)
        if reload:
            later = service_file.stat().st_mtime + 10
            os.utime(service_file, (later, later))
            await service.wait_for("(Application shutdown complete)")
            await until(lambda: len(runs.lines()) == 2)
        await service.stop()
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 0)]
