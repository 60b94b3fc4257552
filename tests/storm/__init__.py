"""Storms: processes that are killed, frozen and locked out by the dozen.

What the storms assert is shown in full if it fails.
"""

import pytest

pytest.register_assert_rewrite("tests.storm.storms")
