"""Parameters that a worker fills in: what their providers give, once for a run, with the clean-up after it."""

import functools
import inspect
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    _AsyncGeneratorContextManager,
    _GeneratorContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import AsyncGeneratorType, FunctionType, GeneratorType, MethodType, TracebackType
from typing import Any, overload

from sitq.extensions.base import Run
from sitq.serializers.calls import is_async


class Injected:
    """What stands as the default of a parameter until a worker fills it in; made by :func:`Inject`.

    Whoever calls the function directly passes the argument. Who forgets it gets an error as soon as it is used.
    """

    __slots__ = ("__provider", "__takes_run")

    def __init__(self, provider: Callable[..., Any]) -> None:
        self.__takes_run = _parameter_for_run(provider)
        self.__provider = provider

    def __repr__(self) -> str:
        return f"Inject({getattr(self.__provider, '__qualname__', self.__provider)})"

    def __reduce__(self) -> Any:
        return Inject, (self.__provider,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by pickle, copy, inspect: no mistake of the user's
            raise AttributeError(name)
        raise RuntimeError(self._not_filled_in())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses to be taken for what the provider gives."""
        raise RuntimeError(self._not_filled_in())

    def _not_filled_in(self) -> str:
        return (
            f"a parameter with the default {self!r} is filled in by a worker that runs the function as a task: whoever "
            "calls the function directly has to pass the argument"
        )

    def _provider(self) -> Callable[..., Any]:
        return self.__provider

    def _key(self) -> Hashable:
        """Returns what tells two providers apart: one that is used twice is called once."""
        return self.__provider if isinstance(self.__provider, Hashable) else id(self.__provider)

    def _made(self, run: Run) -> Any:
        """Returns what calling the provider gives; for a generator or a coroutine, nothing of it has run yet."""
        name = self.__takes_run
        return self.__provider() if name is None else self.__provider(**{name: run})


@overload
def Inject[T](provider: Callable[..., _AsyncGeneratorContextManager[T]], /) -> T: ...
@overload
def Inject[T](provider: Callable[..., _GeneratorContextManager[T]], /) -> T: ...
@overload
def Inject[T](provider: Callable[..., AsyncIterator[T]], /) -> T: ...
@overload
def Inject[T](provider: Callable[..., Iterator[T]], /) -> T: ...
@overload
def Inject[T](provider: Callable[..., Awaitable[T]], /) -> T: ...
@overload
def Inject[T](provider: Callable[..., T], /) -> T: ...
def Inject(provider: Callable[..., Any], /) -> Any:  # noqa: N802 - it stands where a value of the provider's would
    """Stands as the default of a parameter that the worker fills in with what ``provider`` gives.

    It is written ``session: Session = Inject(get_session)``. Whoever enqueues the task leaves the argument out, and
    type checkers know its type. An argument that is passed wins.

    A provider is a function, ``async`` or not; a generator, ``async`` or not, that yields once; or a function under
    ``@contextmanager`` or ``@asynccontextmanager``. It is asked once for each run, however many parameters use it.
    What follows the ``yield`` is the clean-up: it comes after the run, in reverse order, and sees at the ``yield`` what
    the run has raised; it cannot swallow that. What a provider raises, before or after the run, is the failure of the
    task. If it has a parameter that is named ``run`` or is annotated with :class:`sitq.extensions.Run`, it is given
    the run.

    For a coroutine, all providers work in the worker's event loop. For a plain function, the ``async`` ones are entered
    there, and then the others in the function's thread, so that what blocks in them, a commit for instance, holds
    nobody up.

    Args:
        provider: Gives the value.

    Raises:
        TypeError: It is not callable, or has other parameters without a default.
    """
    return Injected(provider)


class Injections:
    """Fills in the parameters whose default is ``Inject(…)``; every worker has this extension, innermost."""

    def around(self, run: Run) -> AbstractAsyncContextManager[object] | None:
        """Returns what fills them in on the loop; for a plain function, its thread does the rest."""
        func: Any = run.call.func
        if type(func) is FunctionType and getattr(func, "__wrapped__", None) is None:  # nearly always
            if func.__defaults__ is None and func.__kwdefaults__ is None:
                return None
            if not _has_injected(func):
                return None
        wanted = wanted_by(func)
        if not wanted:
            return None
        if is_async(func):
            return _Filled(run, wanted)
        on_loop = {name: each for name, each in wanted.items() if _is_of_loop(each._provider())}
        if len(on_loop) < len(wanted):
            run.call = run.call._replace(func=_FilledInThread(func, run, wanted))
        return _Filled(run, on_loop) if on_loop else None


_known: weakref.WeakKeyDictionary[FunctionType, Mapping[str, Injected]] = weakref.WeakKeyDictionary()
_NOTHING: Mapping[str, Injected] = {}


def wanted_by(func: Any) -> Mapping[str, Injected]:
    """Returns the parameters of a function that are to be filled in, by name.

    Raises:
        TypeError: One of them can be passed by its position only.
    """
    plain = _plain(func)
    if type(plain) is not FunctionType or not _has_injected(plain):
        return _NOTHING
    known = _known.get(plain)
    if known is None:
        known = _known[plain] = _wanted(plain)
    return known


def _plain(func: Any) -> Any:
    """Returns the function behind a wrapper, a method, or an object that is called."""
    while True:
        if isinstance(func, functools.partial):
            func = func.func
        elif isinstance(func, MethodType):
            func = func.__func__
        elif (inner := getattr(func, "__wrapped__", None)) is not None:
            func = inner
        elif isinstance(func, FunctionType | type) or not isinstance(type(func).__call__, FunctionType):
            return func
        else:
            func = type(func).__call__


def _has_injected(func: FunctionType) -> bool:
    # Loops, and no any(): this is done for every run.
    if (defaults := func.__defaults__) is not None:
        for default in defaults:
            if type(default) is Injected:
                return True
    if (by_name := func.__kwdefaults__) is not None:
        for default in by_name.values():
            if type(default) is Injected:
                return True
    return False


def _wanted(func: FunctionType) -> Mapping[str, Injected]:
    found = {}
    for name, parameter in inspect.signature(func).parameters.items():
        if type(parameter.default) is Injected:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(f"{func.__qualname__}() takes {name!r} by its position only: it cannot be injected")
            found[name] = parameter.default
    return found


def _missing(
    func: Any, wanted: Mapping[str, Injected], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Injected]:
    """Returns those that were not passed."""
    given = inspect.signature(func).bind_partial(*args, **kwargs).arguments
    return {name: injected for name, injected in wanted.items() if name not in given}


def _parameter_for_run(provider: Callable[..., Any]) -> str | None:
    """Returns the name of the parameter that takes the run, if there is one.

    Raises:
        TypeError: The provider cannot be called with that alone.
    """
    if not callable(provider):
        raise TypeError(f"Inject() takes a function that gives the value, not {type(provider).__name__}")
    try:
        parameters = inspect.signature(provider).parameters.values()
    except (TypeError, ValueError, NameError):  # it does not say; or an annotation of it is not there at run time
        return None
    found = None
    for each in parameters:
        by_name = each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        if type(each.default) is Injected:
            raise TypeError(f"a provider cannot have injected parameters itself, as {each.name!r} of {provider!r} is")
        if by_name and found is None and (each.name == "run" or _is_run(each.annotation)):
            found = each.name
        elif each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise TypeError(
                f"a provider is called with nothing but the run, and {provider!r} needs {each.name!r}: "
                "give that a default, or use a lambda"
            )
    return found


def _is_run(annotation: Any) -> bool:
    return annotation is Run or (isinstance(annotation, str) and annotation.rpartition(".")[2] == "Run")


def _is_of_loop(provider: Callable[..., Any]) -> bool:
    """Whether the provider is async, whatever stands around it."""
    plain = _plain(provider)
    return inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)


class _Filled:
    """Fills in parameters on the loop, and cleans up there.

    Args:
        run: The run.
        wanted: The parameters.
    """

    __slots__ = ("_entered", "_run", "_wanted")

    def __init__(self, run: Run, wanted: Mapping[str, Injected]) -> None:
        self._run = run
        self._wanted = wanted
        self._entered: list[Any] = []

    async def __aenter__(self) -> None:
        call = self._run.call
        values: dict[Hashable, Any] = {}
        try:
            for name, injected in _missing(call.func, self._wanted, call.args, call.kwargs).items():
                key = injected._key()
                if key not in values:
                    values[key] = await self._enter(injected._made(self._run))
                call.kwargs[name] = values[key]
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _enter(self, made: Any) -> Any:
        if (plain := _manager(made)) is not None:
            value = plain.__enter__()
            self._entered.append(plain)
        elif (manager := _async_manager(made)) is not None:
            value = await manager.__aenter__()
            self._entered.append(manager)
        else:
            value = await made if inspect.isawaitable(made) else made
        return value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        last = error
        while self._entered:
            manager = self._entered.pop()
            details = type(last) if last is not None else None, last, last.__traceback__ if last is not None else None
            # What a clean-up returns does not count: a provider that swallowed the failure of a run, because it forgot
            # to raise it again after a rollback, would make a success of it.
            try:
                if isinstance(manager, _GeneratorContextManager):
                    manager.__exit__(*details)
                else:
                    await manager.__aexit__(*details)
            except BaseException as raised:
                last = raised
        if last is not None and last is not error:
            raise last


class _FilledInThread:
    """The function of a run, for a thread: the parameters are filled in there, and the clean-up is done there.

    Args:
        func: The function.
        run: The run.
        wanted: All parameters that are to be filled in; what was filled in before is passed to the call.
    """

    def __init__(self, func: Any, run: Run, wanted: Mapping[str, Injected]) -> None:
        self.__wrapped__ = func
        self._run = run
        self._wanted = wanted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        func, values = self.__wrapped__, dict[Hashable, Any]()
        entered: list[AbstractContextManager[Any]] = []
        try:
            for name, injected in _missing(func, self._wanted, args, kwargs).items():
                key = injected._key()
                if key not in values:
                    values[key] = _entered(entered, injected, self._run)
                kwargs[name] = values[key]
            value = func(*args, **kwargs)
        except BaseException as error:
            last = _left(entered, error)
            if last is not None and last is not error:
                raise last from last.__cause__
            raise
        if inspect.isawaitable(value):
            return _awaited(value, entered)
        if (raised := _left(entered, None)) is not None:
            raise raised
        return value


def _entered(entered: list[AbstractContextManager[Any]], injected: Injected, run: Run) -> Any:
    made = injected._made(run)
    if (manager := _manager(made)) is not None:
        value = manager.__enter__()
        entered.append(manager)
        return value
    if inspect.isawaitable(made) or _async_manager(made) is not None:
        if inspect.iscoroutine(made):
            made.close()
        raise TypeError(
            f"the provider of {injected!r} gave a {type(made).__name__}, for which a thread has no event loop: make "
            "the provider itself async"
        )
    return made


def _left(entered: list[AbstractContextManager[Any]], error: BaseException | None) -> BaseException | None:
    """Leaves all that was entered, in reverse, and returns what was raised last."""
    while entered:
        try:
            entered.pop().__exit__(
                type(error) if error is not None else None, error, error.__traceback__ if error is not None else None
            )
        except BaseException as raised:
            error = raised
    return error


async def _awaited(value: Awaitable[Any], entered: list[AbstractContextManager[Any]]) -> Any:
    """Awaits what the function returned, and cleans up after that, on the loop."""
    try:
        result = await value
    except BaseException as error:
        last = _left(entered, error)
        if last is not None and last is not error:
            raise last from last.__cause__
        raise
    if (raised := _left(entered, None)) is not None:
        raise raised
    return result


def _manager(made: Any) -> AbstractContextManager[Any] | None:
    # Only what is made for this: a lock, or a connection of sqlite3's, is a context manager and a value as well.
    if isinstance(made, GeneratorType):
        return contextmanager(lambda: made)()
    return made if isinstance(made, _GeneratorContextManager) else None


def _async_manager(made: Any) -> AbstractAsyncContextManager[Any] | None:
    if isinstance(made, AsyncGeneratorType):
        return asynccontextmanager(lambda: made)()
    return made if isinstance(made, _AsyncGeneratorContextManager) else None
