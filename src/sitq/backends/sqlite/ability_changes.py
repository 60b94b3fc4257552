"""The changes of unique tasks and of failed ones that are kept longer; see ``changes`` for the fields."""

from typing import NamedTuple


class StoreUnique(NamedTuple):
    """Stores a task, unless another one stands for its key."""

    task_id: str
    name: str
    format: str
    payload: bytes
    max_attempts: int
    available_at: int
    queue: str | None
    priority: int | None
    unique_key: str | None
    while_: str | None
    period: int | None
    otherwise: str | None
    call: int


class StoreUniqueThen(NamedTuple):
    """As :class:`StoreUnique`, if another task, of which ``id`` and ``claim`` are, is held."""

    id: int | str
    claim: int | str
    again: bool
    task_id: str
    name: str
    format: str
    payload: bytes
    max_attempts: int
    available_at: int
    queue: str | None
    priority: int | None
    unique_key: str | None
    while_: str | None
    period: int | None
    otherwise: str | None


class PruneApart(NamedTuple):
    """As :class:`Prune`, with a time of their own for failed tasks; ``None`` keeps them for ever."""

    finished_before: int | None
    failed_before: int | None
    max_rows: int


type AbilityChange = StoreUnique | StoreUniqueThen | PruneApart
