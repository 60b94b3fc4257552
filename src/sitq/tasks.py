"""Declaring how a task is run, with its function."""

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import FunctionType, MethodType
from typing import Any, Concatenate, Protocol, Self, overload

from sitq._options import Declared, OnFailure, TaskOptions, UniqueKey, check_options, from_builtins, to_builtins
from sitq.extensions.retries import RetryPolicy
from sitq.serializers.calls import is_async, name_of
from sitq.serializers.cloudpickle import is_carried_by_value


class Task[**P, T]:
    """A function, and how it is run as a task; called like the function.

    Made by :func:`task`. It is stored by the name of its function, and a worker reads what is declared where
    the task runs: what is corrected holds for tasks that wait already.

    Attributes:
        func: The function.
        declared: What is declared with it.
        changed: What :meth:`options` has put in place of that; stored with each task.
        resolved: What both come to, kept by those who enqueue: by their default of ``max_attempts``, and by
            whether a worker finds what is declared.
    """

    func: Callable[P, T]
    declared: Declared
    changed: Declared
    resolved: dict[tuple[int, bool], TaskOptions]
    __name__: str
    __qualname__: str

    def __init__(self, func: Callable[P, T], declared: Declared, changed: Declared | None = None) -> None:
        if isinstance(func, (FunctionType, MethodType)):
            # What the function has been marked with, but nothing that would hide what a task is or can.
            vars(self).update({name: value for name, value in vars(func).items() if not hasattr(Task, name)})
        functools.update_wrapper(self, func, updated=())
        self.func = func
        self.declared = declared
        self.changed = {} if changed is None else changed
        self.resolved = {}
        if is_async(func):
            inspect.markcoroutinefunction(self)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls the function here and now."""
        return self.func(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__[S, **Q](self: "Task[Concatenate[S, Q], T]", instance: S, owner: type) -> "Task[Q, T]": ...
    def __get__(self, instance: Any, owner: type) -> "Task[Any, T]":
        """Returns the task of a method, bound to its object."""
        func: Any = self.func
        if instance is None or isinstance(func, functools.partial) or not hasattr(func, "__get__"):
            return self  # as what it is made of, which does not become a method either
        return Task(func.__get__(instance, owner), self.declared, self.changed)

    def __repr__(self) -> str:
        return f"<task {name_of(self.func)}>"

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
        """Returns what a payload holds of this task, and whether the worker finds there what is declared.

        If it does not, because the function is carried by value for instance, all options have to be stored.
        """
        found = self._found()
        if found is None:
            return self.func, False
        # A method as its task: what carries by value takes the function out of a plain one, and loses what is declared.
        return (Task(self.func, self.declared, found.changed) if isinstance(self.func, MethodType) else found), True

    def _found(self) -> "Task[P, T] | None":
        """Returns what a worker finds under the name of the function, if that is this task or one made of it."""
        found: Any
        if isinstance(self.func, MethodType):
            found = as_task(getattr(self.func.__self__, self.func.__name__, None))
        elif (module := sys.modules.get(self.__module__)) is None or is_carried_by_value(self.__module__):
            return None
        else:
            try:
                found = operator.attrgetter(self.__qualname__)(module)
            except AttributeError:  # defined inside a function, for instance
                return None
            if isinstance(found, MethodType) and getattr(found.__func__, "func", None) is self.func:
                raise TypeError(f"{self!r} is a class method, which loses its class: use queue.options() for it")
        # Two tasks may be made of one function.
        if isinstance(found, Task) and found.func == self.func and found.declared is self.declared:
            return found
        return None

    def __reduce__(self) -> Any:
        """Pickles it by the name of its function if it can, or else as the function and its options.

        Either way as builtins and what is the user's own; by name, nothing of sitq's stands in it.
        """
        found = self._found()
        if found is None:
            return Task._restored, (self.func, to_builtins(self.declared), to_builtins(self.changed))
        if self.changed is not found.changed:
            return found._with, (to_builtins(self.changed),)
        if isinstance(self.func, MethodType):
            return getattr, (self.func.__self__, self.func.__name__)
        return self.__qualname__

    def _with(self, changed: dict[str, Any]) -> "Task[P, T]":
        return Task(self.func, self.declared, from_builtins(changed))

    @staticmethod
    def _restored(
        func: Callable[..., Any], declared: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> "Task[..., Any]":
        return Task(func, from_builtins(declared), from_builtins(changed))


def as_task(func: Any) -> Task[..., Any] | None:
    """Returns the task that ``func`` is; ``None`` if it is a function for which nothing is declared.

    Raises:
        TypeError: It is a function around a task, whose options would be lost.
    """
    if type(func) is FunctionType:
        if isinstance(getattr(func, "__wrapped__", None), Task):
            raise TypeError(f"{name_of(func)} is a function around a task: write @task above its other decorators")
        return None
    if isinstance(func, Task):
        return func
    if isinstance(func, MethodType) and isinstance(task := func.__func__, Task):  # of a class method
        return Task(MethodType(task.func, func.__self__), task.declared, task.changed)
    return None


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
        return Task(_check_function(func), declared)

    return declare if func is None else declare(func)


def _check_function(func: Any) -> Callable[..., Any]:
    """Returns a function that can be declared as a task.

    Raises:
        TypeError: It is none, or one that returns no value.
    """
    if isinstance(func, (staticmethod, classmethod)):
        raise TypeError(f"write @task below @{type(func).__name__}, directly above the function")
    if as_task(func) is not None:
        raise TypeError(f"{func!r} is declared already: use its options()")
    if isinstance(func, type):
        raise TypeError(f"@task is for functions, not for the class {func.__name__}: declare a function that makes one")
    if not callable(func):
        raise TypeError(f"@task is for functions, not for {type(func).__name__}; its options go by name")
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(f"{name_of(func)} is a generator function, and a task returns one value: return a list")
    checked: Callable[..., Any] = func
    return checked
