"""The protocol of what turns calls and values into bytes."""

from typing import Any, Protocol, runtime_checkable

LARGE_BYTES = 64 * 1024
"""From here on a payload is loaded in a thread: the densest ones of this size take 2 ms, and a call to a thread 0.1."""


@runtime_checkable
class Serializer(Protocol):
    """Turns objects into bytes and back, in the producer, the worker and the reader of results.

    Attributes:
        format: Names what writes the bytes, with every version that matters to who loads them. It
            is stored beside each payload.
    """

    @property
    def format(self) -> str:
        """What writes the bytes, with its versions."""
        ...

    def dumps(self, value: Any) -> bytes:
        """Returns ``value`` as bytes. Raises any exception if that is not possible."""
        ...

    def loads(self, data: bytes) -> Any:
        """Returns the value that :meth:`dumps` was given. Raises any exception otherwise."""
        ...

    def check_format(self, data: bytes, format: str) -> None:  # noqa: A002 - the column's name
        """Refuses bytes that cannot be loaded here, without loading them.

        Args:
            data: What :meth:`dumps` returned, perhaps elsewhere.
            format: The ``format`` of the serializer that wrote ``data``.

        Raises:
            SerializationError: The bytes were written by something incompatible.
        """
        ...


def check_serializer(serializer: object) -> Serializer:
    """Returns ``serializer`` if it is one.

    Raises:
        TypeError: It lacks members of :class:`Serializer`.
    """
    if not isinstance(serializer, Serializer):
        raise TypeError(f"serializer must be a Serializer, not {type(serializer).__name__}")
    return serializer
