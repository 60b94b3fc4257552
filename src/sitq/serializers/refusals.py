"""What is said of a call that is refused: which part of it is wrong, and what was perhaps meant."""

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

_WORDS = {
    "a delay is eta=timedelta(seconds=...)": (
        "delay countdown delay_seconds defer_by run_in run_after start_in schedule_in in_seconds wait"
    ),
    "the time to start at is eta=, an aware datetime, or a timedelta from now": (
        "run_at at start_at start_time scheduled_at scheduled_for schedule schedule_at defer_until due_at"
    ),
    "the name of its queue is an option: queue.options(queue='mail'), or @task(queue='mail')": (
        "queue queue_name routing_key exchange channel"
    ),
    "that is an option: queue.options(priority=...), or with @task; higher is sooner": "priority",
    "trying again is an option: queue.options(retry=Backoff(retries=...)), or with @task": (
        "retry retries max_retries retry_policy"
    ),
    "the pause before a retry is Backoff(first=...), for queue.options(retry=) or @task": "retry_delay retry_backoff",
    "the exceptions to retry are Backoff(on=), for queue.options(retry=) or @task": "autoretry_for retry_for",
    "that is an option: queue.options(timeout=...), in seconds, or with @task": (
        "timeout job_timeout task_timeout time_limit soft_time_limit"
    ),
    "that is an option: queue.options(expires=timedelta(seconds=...)), or with @task": "expires expiry expires_in ttl",
    "a key of which one task is enough is an option: queue.options(unique='key'), or with @task": (
        "unique unique_key dedup_key queueing_lock idempotency_key"
    ),
    "what follows on a failure is an option: queue.options(on_failure=), or with @task": (
        "on_failure link_error errback on_error"
    ),
    "the id is what enqueue() returns; one of your own goes into context= or among the arguments": "task_id job_id id",
    "a mapping of your own is context=": "metadata meta headers labels tags",
    "how often a task may be started is queue.options(max_attempts=...), or with @task": (
        "max_attempts max_tries attempts"
    ),
    "that is an option, for queue.options() or the queue's own enqueue()": "eta context",
    "how long a finished task is kept is SQLiteBackend(retention=...)": (
        "result_ttl failure_ttl retention keep_result result_expires"
    ),
    "the arguments of the task are those of enqueue(): enqueue(f, 1, b=2)": "args kwargs",
}
MEANT = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
"""What other queues call their options, and what there is here in their place."""


def instead(reason: str, kwargs: Mapping[str, Any]) -> str:
    """Returns what there is here in place of the keyword that ``reason`` is about, or nothing."""
    word = next((word for word in kwargs if word in MEANT and repr(word) in reason), None)
    if word is None:
        return ""
    value = kwargs[word]
    return f"; {MEANT[word].replace('...', repr(value)) if isinstance(value, int | float) else MEANT[word]}"


def unserializable(
    dumps: Callable[[Any], bytes],
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: Mapping[str, Any],
    options: Mapping[str, Any],
    error: Exception,
) -> str:
    """Returns which part of a call cannot be serialized, and why."""
    parts: list[tuple[str, Any]] = [
        (f"the function {name}", func),
        *((f"argument {i} of {name}", arg) for i, arg in enumerate(args)),
        *((f"argument {key!r} of {name}", arg) for key, arg in kwargs.items()),
        *((f"context[{key!r}]", value) for key, value in context.items()),
        ("the context", context),
        *((f"header {key!r} of {name}", value) for key, value in options.get("headers", {}).items()),
        *((f"option {key!r} of {name}", value) for key, value in options.items()),
    ]
    for what, part in parts:
        try:
            dumps(part)
        except Exception as reason:
            return f"{what}, a {type(part).__name__}, cannot be serialized: {type(reason).__name__}: {reason}"
    return f"the call of {name} cannot be serialized: {type(error).__name__}: {error}"


def culprit(dumps: Callable[[Any], bytes], func: Any, *callers: Any) -> str | None:
    """Says what of its surroundings keeps a function from being carried; ``None`` if it is something else."""
    while isinstance(func, partial):
        func = func.func
    func = getattr(func, "__func__", func)
    if not isinstance(func, FunctionType):
        return None
    for kind, name, value in _surroundings(func):
        if any(value is caller for caller in (func, *callers)):
            continue
        try:
            dumps(value)
        except Exception as error:
            where = f"{func.__module__}:{func.__qualname__} uses the {kind} {name!r}, a {type(value).__name__}"
            advice = "make it inside the function, or put the function into a module that is imported"
            return culprit(dumps, value, func, *callers) or f"{where}: {type(error).__name__}: {error}; {advice}"
    return None


def _surroundings(func: FunctionType) -> Iterator[tuple[str, str, Any]]:
    for name, value in inspect.getclosurevars(func).nonlocals.items():
        yield "outer variable", name, value
    codes = [func.__code__]
    for code in codes:  # grows by what is defined inside
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        names = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
        yield from (("global", name, func.__globals__[name]) for name in names if name in func.__globals__)
