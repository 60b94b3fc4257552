"""What is not an option, a list or an id is refused with a message that says what is."""

from pathlib import Path
from typing import Any

import pytest

from sitq import Backoff, SQLiteBackend, TaskQueue, Worker, task
from sitq.extensions import Cancelling
from tests.support import add, rows


@task(unique=lambda user: f"user:{user}")
def sync(user: int, *, full: bool = False) -> None:
    """A task whose key does not know all of its arguments."""


async def test_a_key_that_does_not_take_the_arguments_is_named(queue: TaskQueue, path: Path) -> None:
    """Without that the error names a function of which the caller knows nothing."""
    with pytest.raises(TypeError, match=r"the function of unique= is called with the arguments of the task: .*'full'"):
        await queue.enqueue(sync, 1, full=True)
    assert rows(path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extensions": Cancelling()}, r"extensions must be a list: write extensions=\[...\], not one Cancelling"),
        ({"extensions": None}, "extensions must be a list"),
        ({"queues": 5}, "queues must be a list of names, not int"),
    ],
)
def test_what_is_no_list_is_refused_by_a_worker(path: Path, options: dict[str, Any], message: str) -> None:
    """One thing alone, without brackets around it, is what is written first."""
    with pytest.raises(TypeError, match=message):
        Worker(SQLiteBackend(path), **options)


async def test_what_is_no_id_is_refused_by_cancel(queue: TaskQueue) -> None:
    """The id of a row of one's own, for instance."""
    wrong: Any = 5
    with pytest.raises(TypeError, match="task_ids must be an id or several, not int"):
        await queue.cancel(wrong)


def test_a_function_that_cannot_be_told_of_a_failure_is_refused(queue: TaskQueue) -> None:
    """Found out at the failure, it would be a line in the log of the worker, and the failure told to nobody."""
    with pytest.raises(TypeError, match="on_failure is called with the id, the name and the error text of the failed"):
        queue.options(on_failure=lambda error: None)


async def test_the_task_of_a_failure_may_take_more_than_it_is_given(queue: TaskQueue, path: Path) -> None:
    """A function with defaults, a partial and a variadic one take the three arguments."""
    for takes in (lambda task_id, name, error, more=1: None, lambda *args: None):
        await queue.options(on_failure=takes, retry=Backoff(retries=1)).enqueue(add, 1, 2)
    assert len(rows(path)) == 2
