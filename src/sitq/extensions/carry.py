"""Taking context variables along, from the code that enqueues a task into its run."""

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from sitq.extensions.base import Enqueuing, Run

PREFIX = "carry."
"""Of the headers in which values travel: one for each variable, so that two ``Carry`` objects get along."""

_UNSET: Any = object()


class Carry:
    """Takes the values of context variables along into the run of a task: into its coroutine, or into its thread.

    It is given to the queue and to the worker: ``Carry(tenant=tenant_var)``. The names travel with the task, and
    are the same on both sides. A variable that is not set where the task is enqueued is not sent, and a name that the
    worker does not know is passed over. What is set for one run is reset after it. The values are stored with the
    task, so they hold for each of its attempts, and have to be such that the serializer can carry them.

    Args:
        **variables: The variables, by the names under which their values travel.

    Raises:
        TypeError: One of them is no ``ContextVar``, or none is given.
    """

    def __init__(self, **variables: ContextVar[Any]) -> None:
        if not variables:
            raise TypeError("Carry() needs at least one variable: Carry(tenant=tenant_var)")
        for name, variable in variables.items():
            if not isinstance(variable, ContextVar):
                raise TypeError(f"Carry({name}=...) must be given a ContextVar, not {type(variable).__name__}")
        self._variables = {PREFIX + name: variable for name, variable in variables.items()}

    def on_enqueue(self, new: Enqueuing) -> None:
        """Adds the values of the variables that are set."""
        for header, variable in self._variables.items():
            value = variable.get(_UNSET)
            if value is not _UNSET:
                new.headers[header] = value

    def around(self, run: Run) -> AbstractAsyncContextManager[object] | None:
        """Returns what sets them for the run; ``None`` if none was sent."""
        headers = run.headers
        if not headers:
            return None
        values = [(variable, headers[header]) for header, variable in self._variables.items() if header in headers]
        return _Carried(values) if values else None


class _Carried:
    __slots__ = ("_tokens", "_values")

    def __init__(self, values: list[tuple[ContextVar[Any], Any]]) -> None:
        self._values = values

    async def __aenter__(self) -> None:
        self._tokens: list[Token[Any]] = [variable.set(value) for variable, value in self._values]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is done after the run, the start of the next one for instance, is done in the same context.
        for token in reversed(self._tokens):
            token.var.reset(token)
