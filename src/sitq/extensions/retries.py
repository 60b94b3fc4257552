"""Trying a task again that raised: policies, and the extension that asks them."""

import functools
import inspect
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sitq._checks import check_seconds
from sitq._logs import SafeLogger
from sitq.errors import GiveUp, Retry
from sitq.extensions.base import FailedRun
from sitq.extensions.timeouts import expiry_of
from sitq.models import ReservedTask

logger = SafeLogger("sitq.worker")

MAX_RETRIES = 1_000_000
"""What a policy may ask for at most: more would never end."""

type RetryPolicy = Callable[[Failed], float | timedelta | None]
"""Returns the seconds until the next attempt, or a ``timedelta``; ``None`` gives up.

It is called in the worker's event loop, must be quick, and must not raise: then it gives up.
"""

# An instance of its own, for the reason given in ``models``.
_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


@dataclass(frozen=True, slots=True)
class Failed:
    """What a retry policy is asked about.

    Attributes:
        error: What the run raised; what it raised after its time is the cause of a ``TaskTimeoutError``.
        failures: How many runs of this task have raised, this one included.
        task: The task, as it was reserved.
    """

    error: BaseException
    failures: int
    task: ReservedTask


@dataclass(frozen=True, slots=True)
class Backoff:
    """A policy: try again after a pause that grows with each failure, and has a random part.

    The pause before the n-th retry is ``first * factor ** (n - 1)`` seconds, at most ``most``; of that a random
    part, up to ``jitter``, is left out, so that tasks that failed together do not come back together. With
    the defaults the last retry comes between 8 and 17 minutes after the first failure.

    Attributes:
        retries: How often a task is tried again at most; 0 gives up at once.
        first: Seconds before the first retry.
        factor: How much longer each pause is than the one before; at least 1.
        most: The longest pause, in seconds.
        jitter: The part of a pause that is random, from 0 (none) to 1 (all of it).
        on: The exceptions that are retried.
        never: Those of them that are not.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A number is out of range.
    """

    retries: int = 10
    first: float = 1.0
    factor: float = 2.0
    most: float = 3600.0
    jitter: float = 0.5
    on: tuple[type[Exception], ...] = (Exception,)
    never: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int):
            raise TypeError(f"retries must be an int, not {type(self.retries).__name__}")
        if not 0 <= self.retries <= MAX_RETRIES:
            raise ValueError(f"retries must be from 0 to {MAX_RETRIES}; got {self.retries}")
        check_seconds("first", self.first)
        check_seconds("most", self.most)
        for name, low, high in (("factor", 1.0, 1e6), ("jitter", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}; got {value!r}")
        for name in ("on", "never"):
            kinds = getattr(self, name)
            if not isinstance(kinds, tuple):  # one class alone is what one writes first
                kinds = tuple(kinds) if isinstance(kinds, Sequence) else (kinds,)
                object.__setattr__(self, name, kinds)
            for kind in kinds:
                if not (isinstance(kind, type) and issubclass(kind, Exception)):
                    raise TypeError(f"{name} must hold subclasses of Exception, not {kind!r}")

    def __call__(self, failed: Failed) -> float | None:
        """Returns the seconds until the next attempt; ``None`` if there is none."""
        if failed.failures > self.retries or not isinstance(failed.error, self.on):
            return None
        if isinstance(failed.error, self.never):
            return None
        try:
            pause = min(self.most, self.first * self.factor ** (failed.failures - 1))
        except OverflowError:
            pause = self.most if self.first else 0.0
        return pause * (1 - self.jitter * _random.random())


@dataclass(frozen=True, slots=True)
class PerException:
    """What :func:`per_exception` returns."""

    policies: tuple[tuple[type[Exception], RetryPolicy | None], ...]
    otherwise: RetryPolicy | None

    def __call__(self, failed: Failed) -> float | timedelta | None:
        """Returns what the policy for this exception returns; ``None`` if there is none."""
        policy = self.policy_for(failed.error)
        return None if policy is None else policy(failed)

    def policy_for(self, error: BaseException) -> RetryPolicy | None:
        """Returns the first policy whose exception ``error`` is, or else the other one."""
        return next((policy for kind, policy in self.policies if isinstance(error, kind)), self.otherwise)


def per_exception(
    policies: Mapping[type[Exception], RetryPolicy | None], otherwise: RetryPolicy | None = None
) -> RetryPolicy:
    """Returns a policy that asks another one for each kind of exception.

    Args:
        policies: The policies by exception; the first one that fits is asked, so put subclasses first. ``None``
            gives up.
        otherwise: For what none of them fits; ``None`` gives up.

    Raises:
        TypeError: A key is not an exception class, or a policy cannot be called.
    """
    if not isinstance(policies, Mapping):
        raise TypeError(f"policies must be a mapping of exceptions to policies, not {type(policies).__name__}")
    for kind in policies:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"per_exception() takes subclasses of Exception, not {kind!r}")
    for policy in (*policies.values(), otherwise):
        if policy is not None:
            check_policy(policy)
    return PerException(tuple(policies.items()), otherwise)


def check_policy(policy: Any) -> Any:
    """Returns a retry policy.

    Raises:
        TypeError: It cannot be called with what failed.
    """
    if isinstance(policy, type) or not callable(policy) or inspect.iscoroutinefunction(policy):
        what = f"the class {policy.__name__}" if isinstance(policy, type) else type(policy).__name__
        what = "a coroutine function, which nobody would await" if inspect.iscoroutinefunction(policy) else what
        raise TypeError(f"retry must be a policy such as Backoff(retries=5), or a function of Failed; not {what}")
    return policy


_CLASSES: Mapping[str, tuple[type[Exception], ...]] = {"on": (Exception,), "never": ()}


def policy_to_builtins(policy: RetryPolicy) -> Any:
    """Returns a policy as builtins and the user's own objects, for a payload."""
    if type(policy) is Backoff:
        fields = {name: getattr(policy, name) for name in Backoff.__slots__}
        # A class is looked up by its name for each task, which takes as long as all the rest. The numbers are
        # stored even if they are the defaults, which another version may change.
        return {"backoff": {name: value for name, value in fields.items() if value != _CLASSES.get(name)}}
    if type(policy) is PerException:
        pairs = [(kind, each and policy_to_builtins(each)) for kind, each in policy.policies]
        return {"per_exception": pairs, "otherwise": policy.otherwise and policy_to_builtins(policy.otherwise)}
    return policy


_backoff = functools.lru_cache(maxsize=256)(Backoff)  # few policies come with thousands of tasks


def policy_from_builtins(stored: Any) -> RetryPolicy:
    """Returns the policy that :func:`policy_to_builtins` was given.

    Raises:
        TypeError: It is none: it was stored by a newer sitq, for instance.
        ValueError: A number in it is out of range.
    """
    if not isinstance(stored, dict):
        return check_policy(stored)  # type: ignore[no-any-return]
    if (fields := stored.get("backoff")) is not None:
        return _backoff(**fields)
    if (pairs := stored.get("per_exception")) is not None:
        otherwise = stored.get("otherwise")
        policies = tuple((kind, each and policy_from_builtins(each)) for kind, each in pairs)
        return PerException(policies, otherwise and policy_from_builtins(otherwise))
    raise TypeError(f"this sitq does not know the retry policy {', '.join(map(str, stored))}")


class Retries:
    """Tries tasks again that raised, as their own policies say; every worker has this extension.

    Args:
        unloadable: The policy for a task whose payload cannot be loaded, its own policy being a part of that:
            in a rolling deployment such a task may be one for the newer workers. ``None`` fails it at once.

    Raises:
        TypeError: ``unloadable`` is not a policy.
    """

    def __init__(self, *, unloadable: RetryPolicy | None = None) -> None:
        self._unloadable = None if unloadable is None else check_policy(unloadable)

    def after_failure(self, failure: FailedRun) -> None:
        """Decides whether the task is tried again, and when."""
        error, task, run = failure.error, failure.task, failure.run
        if failure.is_decided or failure.kind not in ("raised", "unloadable") or not isinstance(error, Exception):
            return
        policy = self._unloadable if run is None else run.options.get("retry")
        if isinstance(error, Retry):
            _retry(failure, error, policy)
            return
        if policy is None or isinstance(error, GiveUp):
            return
        try:
            delay = policy(Failed(error, task.failures + 1, task))
            seconds = None if delay is None else _seconds(delay)
        except Exception as reason:
            message = "the retry policy of task %s (%s) failed, which gives up"
            logger.log(logging.ERROR, message, task.task_id, task.name, exc_info=reason)
            return
        if seconds is not None and not _would_expire(failure, seconds):
            failure.retry_in = seconds


def _retry(failure: FailedRun, asked: Retry, policy: RetryPolicy | None) -> None:
    """Does what the task has asked for, within the number of retries that its policy has."""
    cause = asked.__cause__ if isinstance(asked.__cause__, Exception) else None
    failure.shown = cause
    while isinstance(policy, PerException):
        policy = policy.policy_for(cause or asked)
    if asked.counts and isinstance(policy, Backoff) and failure.task.failures >= policy.retries:
        failure.shown = cause or f"Retry: the task asked to be tried again, after {policy.retries} retries"
    elif _would_expire(failure, asked.delay):
        failure.shown = cause or "Retry: the task asked to be tried again after it expires"
    else:
        failure.retry_in, failure.counts = asked.delay, asked.counts


def _would_expire(failure: FailedRun, delay: float) -> bool:
    """Whether the task could not be started any more when it is due again."""
    task, expires = failure.task, None if failure.run is None else failure.run.options.get("expires")
    if expires is None or task.started_at is None:
        return False
    return task.started_at + timedelta(seconds=failure.seconds + delay) >= expiry_of(task, expires)


def _seconds(delay: float | timedelta) -> float:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    return check_seconds("what a retry policy returns", seconds)
