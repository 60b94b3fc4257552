"""Lets the docstrings' cross references read well in the API reference."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|exc|func|meth|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Turns a role, which Markdown does not know, into the bare name as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda role: f"`{role[1].removeprefix('sitq.')}`", obj.docstring.value)
