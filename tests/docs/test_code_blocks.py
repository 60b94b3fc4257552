"""What stands in the README and the docs works as it is printed there."""

from collections import Counter
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, Block, Reader, blocks
from tests.support import DEADLINE_SECONDS

NOT_RUN = {
    ("README.md", "not run"): 3,
    ("coming-from.md", "compiled"): 1,
    ("huey.md", "compiled"): 5,
    ("huey.md", "not run"): 1,
    ("index.md", "not run"): 1,
    ("operating.md", "not run"): 4,
}
"""How many blocks of a page are not run; each says why, in the comment above it."""


def all_blocks() -> list[Block]:
    """Returns the blocks of all pages."""
    return [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_code_block_works(page: Path, tmp_path: Path) -> None:
    """Followed from top to bottom in one folder, each block of the page does what it says."""
    reader = Reader(tmp_path)
    for block in blocks(page):
        reader.follow(block)
    reader.close()


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    """Their number is pinned for each page, and each has a reason beside it; no other block has one."""
    found = [block for block in all_blocks() if block.way in {"not run", "compiled"}]
    assert Counter((block.page, block.way) for block in found) == NOT_RUN
    assert all(block.reason for block in found)
    assert not any(block.reason for block in all_blocks() if block not in found)


BROKEN = {
    "a script that fails": ("```python\nraise SystemExit(1)\n```\n", "status 1"),
    "a script that warns": ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
    "another output": ("```python\nprint(1)\n```\n```text\n2\n```\n", "what was printed is\n1"),
    "no output": ("```text\n2\n```\n", "nothing before it has printed"),
    "a failing test": ('```python title="test_it.py"\ndef test_it(): assert 1 == 2\n```\n', "assert 1 == 2"),
    "a file without tests": (
        '```python title="test_it.py"\ndef test_it(): pass\n```\n```python title="test_that.py"\n```\n',
        "there are no tests in it",
    ),
    "a failing command": ("```console\ntrue\nfalse\ntrue\n```\n", "status 1"),
    "a failing fragment": (
        "<!-- code: fragment -->\n```python\nassert await queue.enqueue(dict) == 1\n```\n",
        "Assertion",
    ),
    "a lifespan without a worker": (
        "<!-- code: lifespan -->\n```python\nimport contextlib\nlifespan = contextlib.nullcontext\n```\n",
        "result is not None",
    ),
    "a worker that ends badly": (
        "<!-- code: until SIGTERM -->\n```python\nimport asyncio\nfrom sitq import *\n"
        "asyncio.run(Worker(SQLiteBackend('app.db')).run())\nraise SystemExit(5)\n```\n",
        "status 5 after SIGTERM",
    ),
    "an error that mypy does not find": (
        "<!-- code: typed -->\n```python\nprint(1)  # an error: no\n```\n",
        "",
    ),
    "an unknown language": ("```cobol\nSTOP RUN.\n```\n", "no way to check"),
    "an unknown way": ("<!-- code: later -->\n```python\n```\n", "no way to check"),
    "a query that finds nothing": ("```sql\nSELECT 1 WHERE 0\n```\n", "finds nothing"),
    "a unit with too little time": (
        '```python title="worker.py"\nshutdown_timeout=39\n```\n'
        "```ini\n[Service]\nExecStart=/bin/python worker.py\nKillSignal=SIGTERM\n"
        "KillMode=mixed\nTimeoutStopSec=40\n```\n",
        "TimeoutStopSec",
    ),
    "an image that lacks the worker": (
        '```python title="worker.py"\nshutdown_timeout=30\n```\n'
        '```dockerfile\nFROM python\nCOPY tasks.py ./\nCMD ["python", "worker.py"]\n```\n',
        "worker.py is not in the image",
    ),
    "an image without a signal": ("```dockerfile\nFROM python\nCMD python worker.py\n```\n", ""),
    "an indented block": ("- a list\n\n  ```python\n  1\n  ```\n", "a block that is not found"),
    "a marker without a block": ("<!-- code: fragment -->\n\n```python\n1\n```\n", "a marker without a block"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_block_that_does_not_work_is_noticed(broken: str, tmp_path: Path) -> None:
    """Each way of checking a block can fail, and the message says what is wrong."""
    text, message = BROKEN[broken]
    page = tmp_path / "page.md"
    page.write_text(text)
    reader = Reader(tmp_path, patience=1 if "without a worker" in broken else DEADLINE_SECONDS)
    with pytest.raises((AssertionError, ValueError)) as caught:  # noqa: PT012 - which block it is differs
        for block in blocks(page):
            reader.follow(block)
        reader.close()
    assert message in str(caught.value)
