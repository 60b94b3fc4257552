"""The tests of the contract, by what they are about."""

import pytest

# Before they are imported: so that an assertion that fails shows both of its sides.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{room}"
        for room in (
            "base",
            "calling",
            "cancelling",
            "ending",
            "enduring",
            "holding",
            "inspecting",
            "lanes",
            "mending",
            "progressing",
            "reserving",
            "storing",
            "unique",
            "unique_calls",
            "unique_lives",
            "watching",
        )
    )
)
