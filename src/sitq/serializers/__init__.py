"""Turning calls and values into bytes and back."""

from sitq.serializers.base import Serializer
from sitq.serializers.cloudpickle import CloudpickleSerializer

__all__ = ["CloudpickleSerializer", "Serializer"]
