"""Declaring how a task is run, with its function."""

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MethodType
from typing import Any, Concatenate, Protocol, Self, overload

from sitq._options import Declared, OnFailure, UniqueKey, check_options
from sitq.extensions.retries import RetryPolicy

NOT_IMPORTABLE = frozenset({"__main__", "__mp_main__"})
"""The modules of the program itself, which no worker can import by that name."""


class Task[**P, T]:
    """A function, and how it is run as a task; called like the function.

    Made by :func:`task`. It is stored by the name of its function, and a worker reads what is declared where
    the task runs: what is corrected holds for tasks that wait already.

    Attributes:
        func: The function.
        declared: What is declared with it.
        changed: What :meth:`options` has put in place of that; stored with each task.
    """

    func: Callable[P, T]
    declared: Declared
    changed: Declared
    __name__: str
    __qualname__: str

    def __init__(self, func: Callable[P, T], declared: Declared, changed: Declared | None = None) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.declared = declared
        self.changed = {} if changed is None else changed
        if inspect.iscoroutinefunction(func):
            inspect.markcoroutinefunction(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls the function here and now."""
        return self.func(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__[S, **Q](self: "Task[Concatenate[S, Q], T]", instance: S, owner: type) -> "Task[Q, T]": ...
    def __get__(self, instance: Any, owner: type) -> "Task[Any, T]":
        """Returns the task of a method, bound to its object."""
        if instance is None:
            return self
        return Task(MethodType(self.func, instance), self.declared, self.changed)

    def __repr__(self) -> str:
        return f"<task {self.__module__}:{self.__qualname__}>"

    def options(
        self,
        *,
        eta: datetime | timedelta | None = None,
        context: Mapping[str, Any] | None = None,
        max_attempts: int | None = None,
        queue: str | None = None,
        priority: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        expires: datetime | timedelta | None = None,
        unique: UniqueKey | None = None,
        on_failure: OnFailure | None = None,
    ) -> "Task[P, T]":
        """Returns the same task with other options; see :meth:`TaskQueue.options`, which wins over these.

        Raises:
            TypeError: As :meth:`TaskQueue.options`.
            ValueError: As :meth:`TaskQueue.options`.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        return Task(self.func, self.declared, {**self.changed, **check_options(given)})

    def to_store(self) -> tuple[Callable[..., Any], bool]:
        """Returns what a payload holds of this task, and whether the worker finds there what is declared."""
        if isinstance(self.func, MethodType):
            return self.func, True  # it is looked up by its name again, in an object whose class has the task
        found = self._found()
        return (self.func, False) if found is None else (found, True)

    def _found(self) -> "Task[P, T] | None":
        """Returns what a worker finds under the name of the function, if it is this task."""
        module = sys.modules.get(self.__module__)
        if self.__module__ in NOT_IMPORTABLE or module is None:
            return None
        try:
            found = operator.attrgetter(self.__qualname__)(module)
        except AttributeError:  # defined inside a function, for instance
            return None
        return found if isinstance(found, Task) and found.func is self.func else None

    def __reduce__(self) -> Any:
        """Pickles it by the name of its function if it can, or else as the function and its options."""
        if isinstance(self.func, MethodType) and not self.changed:
            return getattr, (self.func.__self__, self.__name__)
        if not self.changed and self._found() is self:
            return self.__qualname__
        return _made, (self.func, dict(self.declared), dict(self.changed))


def _made(func: Callable[..., Any], declared: Declared, changed: Declared) -> Task[Any, Any]:
    return Task(func, declared, changed)


class Declaring(Protocol):
    """What :func:`task` returns if it is given options."""

    # Generic in the call and not in the factory: with `unique: Callable[P, str]`, mypy makes Never of it.
    def __call__[**P, T](self, func: Callable[P, T], /) -> Task[P, T]:
        """Declares a function."""
        ...


@overload
def task[**P, T](func: Callable[P, T], /) -> Task[P, T]: ...
@overload
def task(
    *,
    max_attempts: int | None = None,
    queue: str | None = None,
    priority: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    expires: timedelta | None = None,
    unique: UniqueKey | None = None,
    on_failure: OnFailure | None = None,
) -> Declaring: ...
def task(
    func: Any = None,
    /,
    *,
    max_attempts: int | None = None,
    queue: str | None = None,
    priority: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    expires: timedelta | None = None,
    unique: UniqueKey | None = None,
    on_failure: OnFailure | None = None,
) -> Any:
    """Declares how a function is run as a task: ``@task`` or ``@task(retry=Backoff(retries=5), timeout=30)``.

    The function stays what it is: it is called as before, and it belongs to no queue. What is declared here is
    read by the worker when it runs the task, but for ``max_attempts``, ``queue``, ``priority`` and ``unique``,
    which the store has to know when the task is enqueued. What ``queue.options(…)`` or ``send.options(…)`` says
    wins over it. ``None`` says nothing.

    Args:
        func: The function.
        max_attempts: How often it may be started before it is failed for the death of its workers.
        queue: The name of its queue.
        priority: From -100 to 100; higher is sooner.
        retry: The policy by which it is tried again if it raises: ``Backoff(…)``, ``per_exception({…})``, or
            a function of ``Failed`` that returns seconds, or ``None`` to give up.
        timeout: Seconds that one run may take.
        expires: It is not started later than this after it was enqueued; it is cancelled instead.
        unique: A key, ``Unique(…)``, or a function of the task's arguments that returns one.
        on_failure: A task that is stored when this one fails for good, and called with this one's id, its name
            and its error text.

    Raises:
        TypeError: The function cannot be called, or an option is of the wrong type.
        ValueError: An option is out of range.
    """
    given = {name: value for name, value in locals().items() if name != "func"}
    if isinstance(expires, datetime):
        raise TypeError("expires of @task must be a timedelta: a moment holds for one task, queue.options(expires=...)")
    declared = check_options(given)

    def declare(func: Callable[..., Any]) -> Task[Any, Any]:
        if isinstance(func, (staticmethod, classmethod)):
            raise TypeError(f"write @task below @{type(func).__name__}, directly above the function")
        if not callable(func):
            raise TypeError(f"@task is for functions, not for {type(func).__name__}")
        if isinstance(func, Task):
            raise TypeError(f"{func!r} is declared already: use its options()")
        return Task(func, declared)

    return declare if func is None else declare(func)
