"""``sitq doctor``: what the backend finds, and what only the serializer's side can tell."""

import re
from collections.abc import Iterable, Sequence

from sitq.backends.inspect import Finding, Inspectable, PayloadFormat
from sitq.errors import BackendError
from sitq.serializers.cloudpickle import BY_VALUE_MARK, CloudpickleSerializer

_PYTHON = re.compile(r"(?:cpython|pypy|graalpy)-\d+\.\d+")


async def examine(backend: Inspectable) -> Sequence[Finding]:
    """Returns all findings. No payload is loaded: its bytes are searched for a mark."""
    found = list(await backend.examine())
    try:
        formats = await backend.payload_formats(BY_VALUE_MARK)
    except BackendError as error:
        return [*found, Finding("payloads", "wrong", str(error), "see what `integrity` says")]
    return [*found, payloads(formats, CloudpickleSerializer().format)]


def payloads(formats: Iterable[PayloadFormat], mine: str) -> Finding:
    """Says whether workers that run this Python can load the unfinished tasks.

    What was pickled by value holds byte code, which no other version of Python loads.

    Args:
        formats: The formats of the unfinished tasks.
        mine: The format that this Python writes.
    """
    here = _python(mine)
    others = [each for each in formats if _python(each.format) not in (None, here)]
    if not others:
        return Finding("payloads", "ok", f"all unfinished tasks can be loaded by {here}")
    by_value = [(_python(each.format), each.marked) for each in others if each.marked]
    if not by_value:
        return Finding(
            "payloads", "ok", f"{sum(each.tasks for each in others)} by another Python, by reference: {here} loads them"
        )
    return Finding(
        "payloads",
        "wrong",
        ", ".join(f"{count} pickled by value by {python}" for python, count in by_value) + f": {here} fails them",
        "run a worker with that Python until they are done, or cancel them and enqueue them again",
    )


def _python(format_: str) -> str | None:
    found = _PYTHON.search(format_)
    return found[0] if found else None
