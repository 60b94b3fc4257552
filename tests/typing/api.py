# pyright: strict
"""Typed uses of sitq, checked by mypy and pyright and never run: what a user's type checker infers."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, assert_type

import sitq
from sitq import (
    Backend,
    Backoff,
    CloudpickleSerializer,
    GiveUp,
    Result,
    Retry,
    Serializer,
    SQLiteBackend,
    SyncTaskQueue,
    TaskId,
    TaskQueue,
    Unique,
    Worker,
    current_task,
    follow_up,
    per_exception,
    task,
)
from sitq.backends.inspect import TaskDetails, TaskInfo
from sitq.backends.lanes import Lane, Lanes
from sitq.backends.progressing import Progress
from sitq.extensions.retries import Failed, RetryPolicy

SOON = datetime.now(UTC)
VERSION = assert_type(sitq.__version__, str)


class Email:
    """A class that is a task itself, and has methods that are."""

    def __init__(self, to: str) -> None:
        self.to = to

    def send(self, subject: str, *, urgent: bool = False) -> bool:
        """Is bound."""
        return urgent and bool(subject)

    async def __call__(self, subject: str) -> bytes:
        """Can be called, and gives a coroutine."""
        return subject.encode()

    @staticmethod
    def parse(text: str) -> "Email":
        """Is not bound."""
        return Email(text)


def add(a: int, b: int = 0) -> int:
    """A plain function."""
    return a + b


async def fetch(url: str, *, retries: int = 3) -> bytes:
    """A coroutine function."""
    return url.encode() * retries


def nothing() -> None:
    """A plain function without a result."""


def maybe(n: int) -> str | None:
    """A plain function with an optional result."""
    return str(n) if n else None


def anything(*args: Any, **kwargs: Any) -> list[str]:
    """A function of any arguments."""
    return [*map(str, args), *kwargs]


def awaitable(n: int) -> Awaitable[float]:
    """A plain function that gives an awaitable."""
    raise NotImplementedError(n)


def takes_reserved(eta: str, context: int) -> int:
    """A function with parameters that enqueue keeps for itself."""
    return context + len(eta)


def with_patience(failed: Failed) -> float | None:
    """A policy of one's own."""
    assert_type(failed.error, BaseException)
    assert_type(failed.failures, int)
    return None if isinstance(failed.error, ValueError) else failed.failures * 10.0


def key(to: str, subject: str = "") -> Unique:
    """Gives the unique key of a call."""
    return Unique(to + subject, while_="unfinished", period=timedelta(hours=1), otherwise="raise")


def address(to: str, subject: str = "") -> str:
    """Gives the unique key of a call."""
    return to


@task
async def bare(a: int, *, b: str = "x") -> float:
    """Is declared without options."""
    return a + len(b)


@task()
def called() -> None:
    """Is declared with parentheses and nothing in them."""


@task(
    queue="mail",
    priority=5,
    retry=Backoff(5, on=(OSError,)),
    timeout=30,
    expires=timedelta(hours=1),
    unique=address,
    on_failure=add,
    max_attempts=3,
)
async def send(to: str, subject: str = "") -> int:
    """Is declared with each option."""
    return len(to + subject)


@task(retry=with_patience, unique=key, on_failure="package.module:name")
def crunch(n: int, eta: int = 0) -> list[int]:
    """A plain function with functions as its options."""
    if n > 5:
        raise Retry(timedelta(seconds=n), counts=False)
    if n < 0:
        raise GiveUp("below zero") from ValueError(n)
    return [n, eta]


@task(retry=per_exception({OSError: Backoff(first=2), KeyError: with_patience}, otherwise=None), unique="key")
def chosen() -> None:
    """Has a policy for each exception."""


class Mailer:
    """Has tasks as methods."""

    @task(timeout=1.5)
    async def send(self, to: str, *, urgent: bool = False) -> bytes:
        """A method."""
        return to.encode() * urgent

    @staticmethod
    @task(unique=Unique("parse"))
    def parse(text: str) -> "Mailer":
        """A static method."""
        raise NotImplementedError(text)


async def declared(queue: TaskQueue) -> None:
    """A declared task keeps the signature of its function, called and enqueued."""
    assert_type(await bare(1, b="y"), float)
    assert_type(crunch(3), list[int])
    assert_type(called(), None)
    assert_type(await Mailer().send("a", urgent=True), bytes)
    assert_type(Mailer.parse("a"), Mailer)
    assert_type(await queue.enqueue(bare, 1, b="y"), TaskId[float])
    assert_type(await queue.enqueue(called), TaskId[None])
    assert_type(await queue.enqueue(send, "a", subject="b"), TaskId[int])
    assert_type(await queue.enqueue(send, "a", eta=SOON), TaskId[int])
    assert_type(await queue.enqueue(crunch, 4), TaskId[list[int]])
    assert_type(await queue.enqueue(chosen), TaskId[None])
    assert_type(await queue.enqueue(Mailer().send, "a", urgent=True), TaskId[bytes])
    assert_type(await queue.enqueue(Mailer().send.options(timeout=3), "a"), TaskId[bytes])
    assert_type(await queue.enqueue(Mailer.parse, "a"), TaskId[Mailer])
    assert_type(await queue.enqueue(partial(send, "a"), "b"), TaskId[int])
    assert_type(await queue.enqueue(send.options(priority=9), "a", "b"), TaskId[int])
    assert_type(await queue.options(priority=3).enqueue(crunch, 1, eta=5), TaskId[list[int]])
    assert_type(await queue.options(priority=3).enqueue(send.options(timeout=5), "a"), TaskId[int])
    assert_type(await queue.options(priority=3).enqueue(Mailer().send, "a"), TaskId[bytes])
    assert_type(await queue.enqueue_many([partial(send, "a"), called, partial(crunch, 1)]), list[TaskId[Any]])
    assert_type(await queue.get_result(await queue.enqueue(send, "a")), Result[int] | None)
    taken: Callable[[int], list[int]] = crunch
    assert_type(taken(1), list[int])


async def options_of_a_queue(queue: TaskQueue, sync: SyncTaskQueue, policy: RetryPolicy | None) -> None:
    """Each option, alone and with others; ``None`` says nothing."""
    every = queue.options(
        eta=timedelta(minutes=5),
        context={"tenant": "t"},
        max_attempts=3,
        queue="mail",
        priority=9,
        retry=Backoff(retries=3),
        timeout=2,
        expires=SOON,
        unique="key",
        on_failure=send.options(priority=-5),
    )
    assert_type(await every.enqueue(add, 1), TaskId[int])
    queue.options(retry=policy, timeout=None, expires=timedelta(hours=1), unique=Unique("k"), on_failure="a.b:c")
    queue.options(retry=lambda failed: failed.failures * 2.0, unique=address, on_failure=None)
    queue.options(retry=per_exception({OSError: Backoff()}), unique=key, queue=None, priority=None)
    assert_type(sync.options(queue="mail", timeout=5.5).enqueue(send, "a", subject="b"), TaskId[int])
    assert_type(sync.get_result(sync.enqueue(send, "a")), Result[int] | None)
    later = send.options(eta=SOON, context={"a": 1}, expires=SOON, retry=policy, unique=key)
    assert_type(sync.enqueue(later, "a", "b"), TaskId[int])


def follow() -> None:
    """What follows is checked as what is enqueued is."""
    assert_type(follow_up(add, 1, b=2), TaskId[int])
    assert_type(follow_up(send.options(priority=5), "a", subject="b"), TaskId[int])
    assert_type(follow_up(Mailer().send, "a"), TaskId[bytes])


async def produce(queue: TaskQueue) -> None:
    """An id carries what the task returns, and the result is of that type."""
    assert_type(await queue.get_result(await queue.enqueue(add, 1, 2)), Result[int] | None)
    assert_type(await queue.get_result(await queue.enqueue(fetch, "u", retries=1)), Result[bytes] | None)

    assert_type(await queue.enqueue(add, 1, 2), TaskId[int])
    assert_type(await queue.enqueue(add, 1, b=2), TaskId[int])
    assert_type(await queue.enqueue(add, 1), TaskId[int])
    assert_type(await queue.enqueue(fetch, "u"), TaskId[bytes])
    assert_type(await queue.enqueue(nothing), TaskId[None])
    assert_type(await queue.enqueue(maybe, 1), TaskId[str | None])
    assert_type(await queue.enqueue(anything, 1, two=2), TaskId[list[str]])
    assert_type(await queue.enqueue(awaitable, 1), TaskId[float])
    assert_type(await queue.enqueue(lambda: 1.5), TaskId[float])
    assert_type(await queue.enqueue(lambda: fetch("u")), TaskId[bytes])
    assert_type(await queue.enqueue(partial(add, 1), 2), TaskId[int])
    assert_type(await queue.enqueue(partial(fetch, "u")), TaskId[bytes])
    assert_type(await queue.enqueue(Email("a").send, "hi", urgent=True), TaskId[bool])
    assert_type(await queue.enqueue(Email("a"), "hi"), TaskId[bytes])
    assert_type(await queue.enqueue(Email.parse, "a"), TaskId[Email])
    assert_type(await queue.enqueue(Email, "a"), TaskId[Email])
    assert_type(await queue.enqueue(len, [1, 2]), TaskId[int])
    assert_type(await queue.enqueue("package.module:name", 1, two=2), TaskId[Any])
    assert_type(await queue.get_result(await queue.enqueue("package.module:name")), Result[Any] | None)


async def produce_later(queue: TaskQueue, context: Mapping[str, Any], eta: datetime | None) -> None:
    """``eta`` and ``context`` do not lose the return type."""
    assert_type(await queue.enqueue(add, 1, 2, eta=SOON), TaskId[int])
    assert_type(await queue.enqueue(add, 1, 2, eta=timedelta(minutes=5)), TaskId[int])
    assert_type(await queue.enqueue("package.module:name", eta=timedelta(minutes=5)), TaskId[Any])
    assert_type(await queue.enqueue(add, 1, b=2, context=context), TaskId[int])
    assert_type(await queue.enqueue(add, 1, 2, eta=eta, context={"request_id": "r1"}), TaskId[int])
    assert_type(await queue.enqueue(add, 1, 2, eta=None, context=None), TaskId[int])
    assert_type(await queue.enqueue(fetch, "u", eta=SOON), TaskId[bytes])
    assert_type(await queue.enqueue(fetch, "u", retries=2, context=context), TaskId[bytes])
    assert_type(await queue.enqueue(lambda: 1.5, eta=SOON), TaskId[float])
    assert_type(await queue.enqueue(partial(takes_reserved, eta="noon", context=1), eta=SOON), TaskId[int])
    assert_type(await queue.enqueue("package.module:name", 1, eta=SOON, context=context), TaskId[Any])


async def produce_with_options(queue: TaskQueue, context: Mapping[str, Any], eta: datetime | timedelta | None) -> None:
    """Behind ``options`` names and defaults are kept, and every keyword is the task's."""
    enqueuer = queue.options(eta=eta, context=context, max_attempts=3)
    assert_type(await enqueuer.enqueue(add, 1, 2), TaskId[int])
    assert_type(await enqueuer.enqueue(add, 1, b=2), TaskId[int])
    assert_type(await enqueuer.enqueue(add, 1), TaskId[int])
    assert_type(await enqueuer.enqueue(fetch, "u", retries=1), TaskId[bytes])
    assert_type(await enqueuer.enqueue(nothing), TaskId[None])
    assert_type(await enqueuer.enqueue(maybe, 1), TaskId[str | None])
    assert_type(await enqueuer.enqueue(anything, 1, two=2), TaskId[list[str]])
    assert_type(await enqueuer.enqueue(awaitable, 1), TaskId[float])
    assert_type(await enqueuer.enqueue(lambda: 1.5), TaskId[float])
    assert_type(await enqueuer.enqueue(partial(add, 1), 2), TaskId[int])
    assert_type(await enqueuer.enqueue(Email("a").send, "hi", urgent=True), TaskId[bool])
    assert_type(await enqueuer.enqueue(Email("a"), "hi"), TaskId[bytes])
    assert_type(await enqueuer.enqueue(Email, "a"), TaskId[Email])
    assert_type(await enqueuer.enqueue(takes_reserved, eta="noon", context=1), TaskId[int])
    assert_type(await enqueuer.enqueue(takes_reserved, "noon", 1), TaskId[int])
    assert_type(await enqueuer.enqueue("package.module:name", 1, eta="noon"), TaskId[Any])
    assert_type(await enqueuer.enqueue_many([partial(add, 1), nothing]), list[TaskId[Any]])
    assert_type(await queue.options(eta=SOON).enqueue(add, 1), TaskId[int])
    assert_type(await queue.options(eta=timedelta(minutes=5)).enqueue(fetch, "u"), TaskId[bytes])
    assert_type(await queue.options().enqueue(takes_reserved, eta="noon", context=1), TaskId[int])
    assert_type(await queue.get_result(await queue.options().enqueue(add, 1)), Result[int] | None)


def produce_with_options_from_sync_code(queue: SyncTaskQueue) -> None:
    """The same without ``await``."""
    enqueuer = queue.options(eta=SOON, context={"tenant": "t"}, max_attempts=None)
    assert_type(enqueuer.enqueue(add, 1, b=2), TaskId[int])
    assert_type(enqueuer.enqueue(fetch, "u"), TaskId[bytes])
    assert_type(enqueuer.enqueue(takes_reserved, eta="noon", context=1), TaskId[int])
    assert_type(enqueuer.enqueue("package.module:name", 1), TaskId[Any])
    assert_type(enqueuer.enqueue_many([partial(add, 1)]), list[TaskId[Any]])
    assert_type(queue.get_result(enqueuer.enqueue(maybe, 1)), Result[str | None] | None)


async def produce_many(queue: TaskQueue, calls: Sequence[Callable[[], object]]) -> None:
    """Any iterable of callables without arguments is taken."""
    assert_type(await queue.enqueue_many(calls), list[TaskId[Any]])
    await queue.enqueue_many((partial(add, n, 1) for n in range(3)), eta=SOON, context={"tenant": "t"})
    await queue.enqueue_many([nothing], eta=timedelta(minutes=5))
    await queue.enqueue_many([nothing, lambda: 1, partial(fetch, "u"), partial(Email, "a")])
    await queue.enqueue_many([])


async def read(queue: TaskQueue, task_id: TaskId[int], text: str) -> None:
    """A result knows its value; an id is a string, and a string is an id of anything."""
    result = await queue.get_result(task_id, timeout=1.5)
    if result is not None:
        assert_type(result.value, int | None)
        assert_type(result.unwrap(), int)
        assert_type(result.task_id, str)
        assert_type(result.error, str | None)
        assert_type(result.traceback, str | None)
        assert_type(result.attempt, int)
        assert_type(result.enqueued_at, datetime)
        assert_type(result.started_at, datetime | None)
        assert_type(result.finished_at, datetime | None)
    assert_type(await queue.get_result(text), Result[Any] | None)
    assert_type(await queue.get_result(text, 0), Result[Any] | None)
    as_text: str = task_id
    assert_type(as_text.upper(), str)
    optional = await queue.get_result(await queue.enqueue(maybe, 1))
    if optional is not None:
        assert_type(optional.unwrap(), str | None)


async def read_many(queue: TaskQueue, ids: list[TaskId[int]], calls: Sequence[Callable[[], object]]) -> None:
    """The results of many tasks know their values, if the ids are of one kind."""
    assert_type(await queue.get_results(ids), list[Result[int] | None])
    assert_type(await queue.get_results(tuple(ids), timeout=1.5), list[Result[int] | None])
    assert_type(await queue.get_results(task_id for task_id in ids), list[Result[int] | None])
    assert_type(await queue.get_results(await queue.enqueue_many(calls)), list[Result[Any] | None])
    assert_type(await queue.get_results(["text"], 0), list[Result[Any] | None])
    async for result in queue.as_completed(ids, timeout=1.5):
        assert_type(result, Result[int])
        assert_type(result.unwrap(), int)
    async for some in queue.as_completed({"text"}):
        assert_type(some, Result[Any])
    async with aclosing(queue.as_completed([await queue.enqueue(maybe, 1)])) as results:
        assert_type(await anext(results), Result[str | None])


def read_many_from_sync_code(queue: SyncTaskQueue, ids: Sequence[TaskId[bytes]]) -> None:
    """The same without ``await``."""
    assert_type(queue.get_results(ids), list[Result[bytes] | None])
    assert_type(queue.get_results(["text"], timeout=1), list[Result[Any] | None])
    for result in queue.as_completed(ids, timeout=1.5):
        assert_type(result.unwrap(), bytes)
    with closing(queue.as_completed(["text"])) as results:
        assert_type(next(results), Result[Any])


def produce_from_sync_code(queue: SyncTaskQueue, context: Mapping[str, Any]) -> None:
    """The sync queue has the same types without ``await``."""
    assert_type(queue.get_result(queue.enqueue(add, 1, 2)), Result[int] | None)
    assert_type(queue.get_result(queue.enqueue(fetch, "u"), timeout=1), Result[bytes] | None)
    assert_type(queue.enqueue(add, 1, b=2, eta=SOON), TaskId[int])
    assert_type(queue.enqueue(add, 1, b=2, eta=timedelta(minutes=5)), TaskId[int])
    assert_type(queue.enqueue(fetch, "u", retries=1, context=context), TaskId[bytes])
    assert_type(queue.enqueue(lambda: 1.5), TaskId[float])
    assert_type(queue.enqueue("package.module:name", 1), TaskId[Any])
    assert_type(queue.enqueue_many([partial(add, 1)], eta=SOON, context=context), list[TaskId[Any]])
    assert_type(queue.get_result("text"), Result[Any] | None)
    with queue as entered:
        assert_type(entered, SyncTaskQueue)


async def construct(backend: Backend, serializer: Serializer) -> None:
    """What is given may be of sitq or of the user's own; blocks give what was made."""
    async with TaskQueue(backend, serializer, default_result_timeout=1.5, max_attempts=3) as queue:
        assert_type(queue, TaskQueue)
    async with Worker(
        backend, serializer, max_concurrency=5, poll_interval=1, lease=30, shutdown_timeout=None
    ) as worker:
        assert_type(worker, Worker)
    TaskQueue()
    SyncTaskQueue(SQLiteBackend("a.db"), CloudpickleSerializer())
    assert_type(await Worker(SQLiteBackend()).drain(), int)
    assert_type(current_task().task_id, str)
    assert_type(current_task().attempt, int)
    assert_type(current_task().enqueued_at, datetime)
    assert_type(current_task().context, Mapping[str, Any])
    assert_type(current_task().queue, TaskQueue)
    assert_type(await current_task().queue.enqueue(add, 1), TaskId[int])
    assert_type(current_task().sync_queue, SyncTaskQueue)
    assert_type(current_task().sync_queue.enqueue(fetch, "u"), TaskId[bytes])


async def look(queue: TaskQueue, sync: SyncTaskQueue) -> None:
    """One task's state, and a list that is narrowed."""
    assert_type(await queue.get("id"), TaskDetails | None)
    assert_type(sync.get("id"), TaskDetails | None)
    assert_type(await queue.list("failed", name="a", error="b", since=1.5, before="id"), Sequence[TaskInfo])
    assert_type(sync.retry(failed=True, since=timedelta(hours=1)), Sequence[str])


async def lanes(queue: TaskQueue, sync: SyncTaskQueue) -> None:
    """Named queues: a backend, a view of it, and a worker of some."""
    backend: Lanes = SQLiteBackend()
    view: Backend = assert_type(SQLiteBackend().select(["mail"], 1.5), SQLiteBackend)
    Worker(view, queues=["mail", "default"])
    assert_type(await queue.lanes(), Sequence[Lane])
    assert_type(sync.lanes(), Sequence[Lane])
    await queue.pause("mail")
    await backend.resume("mail")
    assert_type(await queue.list(queue="mail"), Sequence[TaskInfo])


class Session:
    """What a provider gives; it is a context manager, too."""

    def __enter__(self) -> int:
        """Gives something else."""
        return 1

    def __exit__(self, *_: object) -> None:
        """Ends."""


def get_plain() -> Session:
    """Gives one."""
    return Session()


async def get_coroutine() -> Session:
    """Gives one."""
    return Session()


def get_generator() -> Iterator[Session]:
    """Gives one."""
    yield Session()


async def get_async_generator() -> AsyncIterator[Session]:
    """Gives one."""
    yield Session()


@contextmanager
def get_manager() -> Generator[Session]:
    """Gives one."""
    yield Session()


@asynccontextmanager
async def get_async_manager() -> AsyncGenerator[Session]:
    """Gives one."""
    yield Session()


def injected(
    a: Session = sitq.Inject(get_plain),
    b: Session = sitq.Inject(get_coroutine),
    c: Session = sitq.Inject(get_generator),
    d: Session = sitq.Inject(get_async_generator),
    e: Session = sitq.Inject(get_manager),
    f: Session = sitq.Inject(get_async_manager),
) -> int:
    """Has parameters that a worker fills in, of the type that the provider gives."""
    assert_type(sitq.Inject(get_plain), Session)
    assert_type(sitq.Inject(get_manager), Session)
    return 1


async def around(queue: TaskQueue, sync_queue: SyncTaskQueue) -> None:
    """What is filled in need not be passed; progress can be read and followed."""
    task_id = await queue.enqueue(injected)
    assert_type(task_id, TaskId[int])
    await queue.enqueue(injected, Session())
    assert_type(await queue.progress(task_id), Progress | None)
    async for found in queue.follow(task_id):
        assert_type(found, Progress)
    for found in sync_queue.follow(task_id):
        assert_type(found.total, float | None)
    sitq.progress(1, 2, "note")
    variable: ContextVar[str] = ContextVar("variable")
    TaskQueue(extensions=[sitq.Carry(tenant=variable)])
    Worker(extensions=[sitq.Carry(tenant=variable)])
