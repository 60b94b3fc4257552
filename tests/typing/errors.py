# pyright: strict
"""Wrong uses of sitq: each marked line has to be an error for mypy and for pyright, and no other line."""

from datetime import UTC, datetime, timedelta
from functools import partial

import sitq
from sitq import (
    Backoff,
    GiveUp,
    NewTask,
    Result,
    Retry,
    SQLiteBackend,
    SyncTaskQueue,
    Task,
    TaskId,
    TaskQueue,
    Unique,
    Worker,
    follow_up,
    per_exception,
    task,
)

SOON = datetime.now(UTC)


def add(a: int, b: int = 0) -> int:
    """A plain function."""
    return a + b


async def fetch(url: str, *, retries: int = 3) -> bytes:
    """A coroutine function."""
    return url.encode() * retries


class NotABackend:
    """Has one method of a backend."""

    async def connect(self) -> None:
        """Connects."""


@task(queue="mail", retry=Backoff(retries=5), timeout=30)
async def send(to: str, subject: str = "") -> int:
    """A declared coroutine function."""
    return len(to + subject)


class Mailer:
    """Has a task."""

    @task(timeout=5)
    def send(self, to: str) -> bool:
        """A method."""
        return bool(to)


def wrong_policy(failures: int) -> float:
    """Takes something else than what failed."""
    return failures


async def declared(queue: TaskQueue) -> None:
    """A declared task is as strict as its function, called or enqueued, and so are its options."""
    await send(5)  # error
    await send("a", sub="b")  # error
    number: str = await send("a")  # error
    print(number)
    await queue.enqueue(send, 5)  # error
    await queue.enqueue(send, "a", sub="b")  # error
    await queue.enqueue(send)  # error
    await queue.enqueue(send.options(priority=9), 5)  # error
    await queue.options(priority=1).enqueue(send, "a", sub="b")  # error
    await queue.options(priority=1).enqueue(send.options(timeout=3), "a", "b", "c")  # error
    await queue.enqueue(partial(send, 5))  # error
    text: TaskId[str] = await queue.enqueue(send, "a")  # error
    print(text)
    Mailer().send(5)  # error
    await queue.enqueue(Mailer().send, 5)  # error
    await queue.enqueue(Mailer().send.options(timeout=3))  # error
    wrong: Task[[str], int] = task(add)  # error
    print(wrong)
    send.options(prio=9)  # error
    send.options(timeout="5")  # error
    send.options(queue=5)  # error
    send.delay("a")  # error


def declaring() -> None:
    """Options of ``@task`` have types, go by name, and there are no others."""
    task(add, timeout=5)  # error
    task("mail")  # error
    task(timeout="5")(add)  # error
    task(eta=timedelta(minutes=5))(add)  # error
    task(context={})(add)  # error
    task(expires=SOON)(add)  # error
    task(retry=Backoff)(add)  # error
    task(retries=5)(add)  # error
    task(priority=5.5)(add)  # error
    task(unique=lambda a, b: 5)(add)  # error
    task()(5)  # error


def policies() -> None:
    """Numbers are numbers, and exceptions are classes."""
    Backoff(5, first="1")  # error
    Backoff(on=OSError)  # error
    Backoff(on=("OSError",))  # error
    Backoff(tries=5)  # error
    per_exception({"OSError": Backoff()})  # error
    per_exception({OSError: 5})  # error
    Unique()  # error
    Unique("a", while_="running")  # error
    Unique("a", otherwise="wait")  # error
    Unique("a", period=5)  # error
    raise Retry("soon")  # error


def endings() -> None:
    """What follows is checked as what is enqueued is."""
    follow_up(add, "1")  # error
    follow_up(send, "a", sub="b")  # error
    follow_up(send.options(priority=5), 5)  # error
    raise GiveUp from 5  # error


async def arguments(queue: TaskQueue) -> None:
    """The arguments of a task are checked against its signature."""
    await queue.enqueue(add, "1")  # error
    await queue.enqueue(add, 1, "2")  # error
    await queue.enqueue(add, 1, 2, 3)  # error
    await queue.enqueue(add)  # error
    await queue.enqueue(add, 1, c=2)  # error
    await queue.enqueue(add, 1, b="2")  # error
    await queue.enqueue(add, a=1, b=2)
    await queue.enqueue(fetch, 5)  # error
    await queue.enqueue(fetch, "u", 5)  # error
    await queue.enqueue(fetch, "u", retries="5")  # error
    await queue.enqueue(42)  # error
    await queue.enqueue(None)  # error
    await queue.enqueue()  # error


async def reserved(queue: TaskQueue) -> None:
    """``eta`` and ``context`` have types of their own."""
    await queue.enqueue(add, 1, eta="noon")  # error
    await queue.enqueue(add, 1, eta=5)  # error
    await queue.enqueue(fetch, "u", context=["a"])  # error
    await queue.enqueue("package.module:name", eta=5)  # error
    await queue.enqueue("package.module:name", context=["a"])  # error
    await queue.enqueue_many([partial(add, 1)], eta=5)  # error
    await queue.enqueue_many([partial(add, 1)], context=5)  # error


def takes_reserved(eta: str, context: int) -> int:
    """A function with parameters that are named as options are."""
    return context + len(eta)


async def options(queue: TaskQueue) -> None:
    """Options have types, there are no others, and behind them the arguments of the task are checked."""
    queue.options(eta="noon")  # error
    queue.options(eta=5)  # error
    queue.options(context=["a"])  # error
    queue.options(max_attempts="3")  # error
    queue.options(SOON)  # error
    queue.options(priority="5")  # error
    queue.options(queue=5)  # error
    queue.options(timeout="5")  # error
    queue.options(timeout=timedelta(seconds=5))  # error
    queue.options(retry=5)  # error
    queue.options(retry=wrong_policy)  # error
    queue.options(retry=lambda failed: "no")  # error
    queue.options(expires=60)  # error
    queue.options(unique=5)  # error
    queue.options(unique=lambda to: 5)  # error
    queue.options(on_failure=5)  # error
    queue.options(delay=5)  # error
    enqueuer = queue.options(eta=SOON, context={"a": 1}, max_attempts=3)
    await enqueuer.enqueue(add, "1")  # error
    await enqueuer.enqueue(add, 1, 2, 3)  # error
    await enqueuer.enqueue(add)  # error
    await enqueuer.enqueue(add, 1, c=2)  # error
    await enqueuer.enqueue(add, 1, b="2")  # error
    await enqueuer.enqueue(add, 1, eta=SOON)  # error
    await enqueuer.enqueue(fetch, "u", 5)  # error
    await enqueuer.enqueue(fetch, "u", retries="5")  # error
    await enqueuer.enqueue(takes_reserved, eta="noon")  # error
    await enqueuer.enqueue(takes_reserved, eta=SOON, context=1)  # error
    await enqueuer.enqueue(takes_reserved, eta="noon", context={"a": 1})  # error
    await enqueuer.enqueue(42)  # error
    await enqueuer.enqueue_many([add])  # error
    await enqueuer.enqueue_many([partial(add, 1)], eta=SOON)  # error
    text: TaskId[str] = await enqueuer.enqueue(add, 1)  # error
    print(text)


def sync_options(queue: SyncTaskQueue) -> None:
    """The sync queue is as strict about options."""
    queue.options(eta="noon")  # error
    queue.options(priority="5")  # error
    queue.options(delay=5)  # error
    queue.options().enqueue(add, "1")  # error
    queue.enqueue(send, 5)  # error
    queue.options(priority=5).enqueue(send, "a", sub="b")  # error
    queue.options().enqueue(takes_reserved, eta=SOON, context=1)  # error
    queue.options().enqueue_many([add])  # error


async def many(queue: TaskQueue) -> None:
    """A batch is an iterable of callables that need no more arguments."""
    await queue.enqueue_many([add])  # error
    await queue.enqueue_many([partial(add, 1), 5])  # error
    await queue.enqueue_many(partial(add, 1))  # error
    await queue.enqueue_many(5)  # error


async def results(queue: TaskQueue, task_id: TaskId[int]) -> None:
    """What the task returns is known, and that it may not be there."""
    text: TaskId[str] = await queue.enqueue(add, 1)  # error
    print(text)
    (await queue.get_result(task_id)).unwrap()  # error
    await queue.get_result(5)  # error
    await queue.get_result(task_id, timeout="1")  # error
    await queue.get_result(queue.enqueue(add, 1))  # error
    result = await queue.get_result(task_id)
    if result is not None:
        value: str = result.unwrap()  # error
        print(value)
        result.value = 5  # error
        print(result.no_such_field)  # error
    wrong: Result[str] | None = result  # error
    print(wrong)


def sync_code(queue: SyncTaskQueue) -> None:
    """The sync queue is as strict."""
    queue.enqueue(add, "1")  # error
    queue.enqueue(add, 1, eta="noon")  # error
    queue.enqueue_many([add])  # error
    queue.get_result("x", timeout="1")  # error
    queue.get_result(queue.enqueue(add, 1)).unwrap()  # error


async def construct() -> None:
    """What is given must be of its kind, and numbers go by name."""
    TaskQueue("app.db")  # error
    TaskQueue(NotABackend())  # error
    TaskQueue(SQLiteBackend(), None, 5)  # error
    TaskQueue(max_attempts="3")  # error
    SyncTaskQueue("app.db")  # error
    Worker(SQLiteBackend(), None, 5)  # error
    Worker(concurrency=5)  # error
    NewTask("id", "payload")  # error
    await SyncTaskQueue().enqueue(add, 1)  # error
    print(sitq.version)  # error


def get_number() -> int:
    """Is no provider of texts."""
    return 1


def injected(text: str = sitq.Inject(get_number)) -> str:  # error
    """Is given what is not of its type."""
    return text


def around(queue: SyncTaskQueue) -> None:
    """What is reported and carried has its type."""
    sitq.progress("1")  # error
    sitq.Carry(tenant="acme")  # error
    queue.progress(1)  # error
