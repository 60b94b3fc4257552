"""From a call to what is stored of it, and the enqueuer that keeps options."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, overload

from sitq._options import Declared, TaskOptions, check_options, check_together, resolve, unique_of
from sitq.backends.base import Backend
from sitq.backends.endings import Endings
from sitq.errors import BackendError
from sitq.extensions.base import Enqueuing, Extension, OnEnqueue
from sitq.models import Extras, NewTask, TaskId, new_task_id
from sitq.serializers.base import Serializer
from sitq.serializers.calls import Call, make_call
from sitq.serializers.envelope import dump_call
from sitq.serializers.signatures import check_call
from sitq.tasks import Task, as_task


class Said(NamedTuple):
    """Options that were said, checked.

    Attributes:
        options: The options.
        resolved: What they come to for a function that declares none.
    """

    options: Declared
    resolved: TaskOptions


class TaskMaker:
    """Makes what is stored of a call; one way for all who enqueue.

    Args:
        backend: Where it will be stored.
        serializer: Turns the call into bytes.
        max_attempts: How often a task may be started that does not say it.
        extensions: Those of them that see a task before it is enqueued are called.
        with_outcome: Whether the tasks are to be stored together with the outcome of another one.
    """

    def __init__(
        self,
        backend: Backend,
        serializer: Serializer,
        max_attempts: int,
        extensions: Sequence[Extension] = (),
        *,
        with_outcome: bool = False,
    ) -> None:
        self._backend = backend
        self._serializer = serializer
        self._max_attempts = max_attempts
        self._on_enqueue = [each.on_enqueue for each in extensions if isinstance(each, OnEnqueue)]
        self._needs = frozenset({"then"}) if with_outcome else frozenset()
        self._endings: frozenset[str] | None = None
        self.nothing_said = Said({}, resolve({}, {}, max_attempts))

    def said(self, **given: Any) -> Said:
        """Returns options, checked; ``None`` says nothing.

        Raises:
            TypeError: One of them is of the wrong type.
            ValueError: One of them is out of range.
        """
        options = check_options(given)
        return Said(options, resolve(options, options, self._max_attempts)) if options else self.nothing_said

    def make(
        self, func: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any], said: Said
    ) -> NewTask:
        """Returns what is stored of a call.

        Raises:
            TypeError: ``func`` is not callable, or does not take these arguments.
            ValueError: It is an import path of the wrong form.
            SerializationError: Something in the call cannot be serialized; the message names it.
            BackendError: The backend does not know what an option asks for.
        """
        options = said.resolved
        call = make_call(func, args, kwargs, options.context)
        if (task := as_task(call.func)) is not None:
            call, options = self._declared(call, task, said.options)
        elif options.stored:
            call = call._replace(options=options.stored)
        if options.needs or self._needs:
            self._check_needs(options.needs | self._needs)
        if self._on_enqueue:
            call = self._prepared(call)
        extras = options.extras
        if options.unique is not None:
            extras = replace(extras or Extras(), unique=unique_of(options.unique, call.args, call.kwargs))
        payload = dump_call(self._serializer, call)
        name, format_ = call.name, self._serializer.format
        return NewTask(new_task_id(), payload, name, format_, options.eta, options.max_attempts, options.delay, extras)

    def _declared(self, call: Call, task: Task[..., Any], said: Declared) -> tuple[Call, TaskOptions]:
        check_call(task.func, call.args, call.kwargs)
        func, is_declared_there = task.to_store()
        key = self._max_attempts, is_declared_there
        if said or (options := task.resolved.get(key)) is None:
            changed: Declared = {**task.changed, **said}
            every: Declared = {**task.declared, **changed}
            check_together(every)
            options = resolve(every, changed if is_declared_there else every, self._max_attempts)
            if not said:
                task.resolved[key] = options
        return Call(func, call.args, call.kwargs, options.context, options.stored), options

    def _check_needs(self, needs: frozenset[str]) -> None:
        if self._endings is None:
            self._endings = self._backend.endings if isinstance(self._backend, Endings) else frozenset()
        if missing := needs - self._endings:
            raise BackendError(
                f"{type(self._backend).__name__} cannot do what an option of this task needs "
                f"({', '.join(sorted(missing))}: see sitq.backends.endings); nothing was stored"
            )

    def _prepared(self, call: Call) -> Call:
        new = Enqueuing(call, dict(call.context), {})
        for on_enqueue in self._on_enqueue:
            on_enqueue(new)
        options: Mapping[str, Any] = {**new.call.options, "headers": new.headers} if new.headers else new.call.options
        return new.call._replace(context=new.context, options=options)


class Producer(Protocol):
    """What an enqueuer hands its calls to: a ``TaskQueue``."""

    async def _enqueue(
        self, func: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any], said: Said
    ) -> TaskId[Any]: ...

    async def _enqueue_many(self, calls: Iterable[Callable[[], Any]], said: Said) -> list[TaskId[Any]]: ...


class Enqueuer:
    """Stores tasks with the options that :meth:`TaskQueue.options` was given.

    It may be kept and used any number of times, also by several coroutines at once. An ``eta`` that
    is a ``timedelta`` counts from each call of :meth:`enqueue`.
    """

    __slots__ = ("_queue", "_said")

    def __init__(self, queue: Producer, said: Said) -> None:
        self._queue = queue
        self._said = said

    @overload
    async def enqueue(self, func: str, /, *args: Any, **kwargs: Any) -> TaskId[Any]: ...
    @overload
    async def enqueue[**P, T](
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[T]: ...
    @overload
    async def enqueue[**P, T](self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    async def enqueue(self, func: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Stores a call of ``func`` and returns its id; see :meth:`TaskQueue.enqueue`.

        All keywords are the task's own: it may have a parameter named ``eta`` or ``context``.

        Raises:
            TypeError: ``func`` is not callable or does not take these arguments.
            ValueError: An import path has the wrong form, or the call is larger than the backend
                allows.
            SerializationError: An argument cannot be serialized; the message names it.
            BackendError: The backend did not take the task.
        """
        return await self._queue._enqueue(func, args, kwargs, self._said)

    async def enqueue_many(self, calls: Iterable[Callable[[], Any]]) -> list[TaskId[Any]]:
        """Stores many calls, all or none, and returns their ids in order; see :meth:`TaskQueue.enqueue_many`.

        Raises:
            TypeError: One of ``calls`` is not callable, or needs more arguments.
            ValueError: As :meth:`enqueue`.
            SerializationError: As :meth:`enqueue`.
            BackendError: The backend did not take the tasks.
        """
        return await self._queue._enqueue_many(calls, self._said)
