"""Unique tasks in the file: who stands for a key, what of it is stored, and when nothing can fail for it."""

from datetime import timedelta
from typing import Any

import pytest

from sitq.models import MAX_KEY_CHARACTERS, Unique


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", ValueError),
        ("x" * (MAX_KEY_CHARACTERS + 1), ValueError),
        ("a\ud800b", ValueError),
        ("a\0b", ValueError),
        (b"key", TypeError),
        (None, TypeError),
        (7, TypeError),
    ],
)
def test_a_key_that_not_every_store_keeps_is_refused(key: Any, error: type[Exception]) -> None:
    """When the record is made, so that nothing was stored."""
    with pytest.raises(error):
        Unique(key)


@pytest.mark.parametrize("key", ["x", "x" * MAX_KEY_CHARACTERS, "sync:42", "\U0001f600ä"])
def test_a_key_may_be_any_other_text(key: str) -> None:
    """Of one character or of a thousand."""
    assert Unique(key).key == key


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"while_": "running"}, ValueError),
        ({"otherwise": "drop"}, ValueError),
        ({"otherwise": ["keep"]}, ValueError),
        ({"period": 5}, TypeError),
        ({"period": timedelta(0)}, ValueError),
        ({"period": timedelta(seconds=-1)}, ValueError),
        ({"period": timedelta(days=40_000)}, ValueError),
    ],
)
def test_what_makes_no_sense_of_a_unique_task_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """The message names the argument."""
    with pytest.raises(error, match=next(iter(options))):
        Unique("key", **options)
