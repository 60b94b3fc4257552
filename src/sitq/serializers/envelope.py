"""The payload: a call as bytes, and back."""

from typing import Any

from sitq.errors import SerializationError
from sitq.serializers.base import Serializer
from sitq.serializers.calls import NO_OPTIONS, Call, import_callable
from sitq.serializers.refusals import unserializable


def dump_call(serializer: Serializer, call: Call) -> bytes:
    """Returns ``call`` as a payload: builtins around the user's objects, and no class of sitq's.

    Options have a key of their own in it, and only if there are any: a worker that does not know
    that key runs the call without them.

    Raises:
        SerializationError: Something in it cannot be serialized; the message names it.
    """
    envelope: dict[str, Any] = {"func": call.func, "args": call.args, "kwargs": call.kwargs, "context": call.context}
    if call.options is not NO_OPTIONS and call.options:
        envelope["options"] = dict(call.options)
    try:
        return serializer.dumps(envelope)
    except Exception as error:
        reason = unserializable(serializer.dumps, call.name, *call, error)
        raise SerializationError(reason) from error


def load_call(serializer: Serializer, payload: bytes, format: str) -> Call:  # noqa: A002
    """Returns the call that a payload holds, its import path resolved.

    Loading runs code of the payload's and may raise anything, ``SystemExit`` included.

    Raises:
        SerializationError: The payload is not a call, is of an incompatible format, or names an
            import path that does not resolve.
    """
    serializer.check_format(payload, format)
    envelope = serializer.loads(payload)
    try:
        func, args, kwargs = envelope["func"], envelope["args"], envelope["kwargs"]
        context, options = envelope["context"], envelope.get("options", {})
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise SerializationError("the payload does not hold a call of sitq's") from error
    return Call(import_callable(func) if isinstance(func, str) else func, args, kwargs, context, options)
