"""The service that stands on a flaky server, driven over HTTP."""

import asyncio
from pathlib import Path

import httpx

from tests.examples.test_services import FLAKY, serve
from tests.support import rows, until


async def send(client: httpx.AsyncClient, number: int, to: str, **options: object) -> str:
    """Sends a parcel and returns the id of its task."""
    response = await client.post("/parcels", json={"number": number, "to": to, **options})
    assert response.status_code == 202
    return str(response.json()["task_id"])


async def ended(client: httpx.AsyncClient, task_id: str) -> dict[str, object]:
    """Waits until a parcel is booked or not."""
    while True:
        found: dict[str, object] = (await client.get(f"/parcels/{task_id}", params={"wait": 5})).json()
        if found["status"] not in ("pending", "in_progress"):
            return found


async def written(client: httpx.AsyncClient, path: Path, number: int) -> list[str]:
    """Waits until so many letters are written, and returns them."""
    sql = "SELECT 1 FROM tasks WHERE status = 'success' AND (name LIKE '%:write' OR name LIKE '%:regret')"
    await until(lambda: len(rows(path, sql)) == number)
    found: list[str] = (await client.get("/letters")).json()
    return found


async def test_a_flaky_server_costs_no_parcel(path: Path) -> None:
    """Each is booked at the third attempt, after an error and a timeout, and its letter is written once."""
    async with serve(path, *FLAKY) as service:
        ids = [await send(service.client, number, "ann", express=number > 3) for number in range(5)]
        found = await asyncio.gather(*(ended(service.client, task_id) for task_id in ids))
        letters = await written(service.client, path, 5)
        await service.stop()
    assert [each["tracking"] for each in found] == [f"tracking-{number}" for number in range(5)]
    for each in found:
        assert isinstance(each["failures"], list)
        broken, slow = each["failures"]
        assert broken.startswith("HTTPStatusError: Server error '503 Service Unavailable'")
        assert slow == "TaskTimeoutError: it took longer than its timeout of 1 seconds"
    assert sorted(letters) == [f"parcel {number} is on its way to ann" for number in range(5)]
    booked = [row for row in rows(path) if row["task_id"] in ids]
    assert {(row["queue"], row["priority"]) for row in booked} == {("carrier", 0), ("carrier", 20)}


async def test_a_parcel_that_is_sent_twice_is_one_task(path: Path) -> None:
    """While it is not booked, the second request gets the id of the first."""
    async with serve(path, *FLAKY) as service:
        first, second = [await send(service.client, 7, "ann") for _ in range(2)]
        assert first == second
        assert (await ended(service.client, first))["status"] == "success"
        await service.stop()


async def test_what_the_carrier_refuses_is_not_tried_again(path: Path) -> None:
    """It fails at the first attempt, and the customer is written to."""
    async with serve(path, *FLAKY) as service:
        found = await ended(service.client, await send(service.client, 8, "nowhere"))
        letters = await written(service.client, path, 1)
        await service.stop()
    assert (found["status"], found["failures"]) == ("failed", ["GiveUp: the carrier does not go to nowhere"])
    assert letters == ["we are sorry: GiveUp: the carrier does not go to nowhere"]


async def test_a_parcel_can_be_withdrawn_between_two_attempts(path: Path) -> None:
    """Once it has been cancelled, nothing is booked."""
    async with serve(path, *FLAKY) as service:
        task_id = await send(service.client, 9, "ann")
        assert (await service.client.delete(f"/parcels/{task_id}")).json() == [task_id]
        found = await ended(service.client, task_id)
        assert (await service.client.get("/parcels/unknown")).status_code == 404
        await service.stop()
    assert (found["status"], found["tracking"]) == ("cancelled", None)
