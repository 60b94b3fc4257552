"""The numbers in the pages on policies are those of the code."""

import re
from dataclasses import fields
from datetime import UTC, datetime

import pytest

from sitq import Backoff
from sitq.extensions.retries import Failed
from sitq.models import ReservedTask
from tests.specs import tables
from tests.support import ROOT

RETRIES = (ROOT / "docs" / "retries.md").read_text(encoding="utf-8")
QUEUES = (ROOT / "docs" / "queues.md").read_text(encoding="utf-8")


def seconds(text: str) -> float:
    """Returns what a cell of a table says, in seconds."""
    return float(text.removesuffix(" s"))


def pauses(policy: Backoff) -> list[float]:
    """Returns what a policy answers to one failure after the other, until it gives up."""
    task = ReservedTask("key", "claim", "id", b"", "name", "format", 1, 5, datetime.now(UTC))
    found: list[float] = []
    while (pause := policy(Failed(OSError(), len(found) + 1, task))) is not None:
        found.append(pause)
    return found


def test_the_pauses_of_backoff_are_those_of_its_page() -> None:
    """The table has each retry of the defaults, the longest and the shortest pause, and the longest time so far."""
    rows = tables(RETRIES)["Backoff"]
    longest = pauses(Backoff(jitter=0))
    listed = [row for row in rows if row.get("retry", "").isdigit()]
    assert [seconds(row["and"]) for row in listed] == longest
    assert [seconds(row["between"]) for row in listed] == [pause * (1 - Backoff().jitter) for pause in longest]
    assert [seconds(row["since the first failure, at most"]) for row in listed] == [
        sum(longest[: n + 1]) for n in range(len(longest))
    ]


def test_the_parameters_of_backoff_are_those_of_its_page() -> None:
    """Each has a row, with its default."""
    section = RETRIES.partition("## Backoff")[2].partition("\n## ")[0]
    found = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", section, re.MULTILINE))
    names = {"(Exception,)": (Exception,), "()": ()}
    assert {name: names.get(text, text) for name, text in found.items()} == {
        field.name: field.default if isinstance(field.default, tuple) else str(field.default)
        for field in fields(Backoff)
    }


@pytest.mark.parametrize("row", re.findall(r"^\| (.+ \| 1[12]:\d\d \|.*) \|$", QUEUES, re.MULTILINE))
def test_a_head_start_is_worked_out_right(row: str) -> None:
    """In each row of the table, the moment that counts is the due time less a minute for each step."""
    _, due, priority, _, counts, _ = row.split(" | ")
    minutes = [int(hours) * 60 + int(rest) for hours, rest in (moment.split(":") for moment in (due, counts))]
    assert minutes[1] == minutes[0] - int(priority)


def test_the_table_of_head_starts_is_in_order() -> None:
    """What counts as due the longest is run first."""
    counts = re.findall(r"\| (1[12]:\d\d) \| (?:first|second|third|fourth) \|$", QUEUES, re.MULTILINE)
    assert len(counts) == 4
    assert counts == sorted(counts)
