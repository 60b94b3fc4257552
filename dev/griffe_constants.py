"""Lets the API reference show the value of a default, not the name of the constant that holds it."""

from typing import Any

import griffe


class Constants(griffe.Extension):
    """Puts the value in the place of a name in capitals, which a reader of the page cannot look up."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        for parameter in func.parameters:
            if isinstance(parameter.default, griffe.ExprName) and parameter.default.name.isupper():
                constant = func.module.members[parameter.default.name]
                if isinstance(constant, griffe.Alias):  # imported from where it is defined
                    constant = constant.final_target
                assert isinstance(constant, griffe.Attribute), f"{constant.path} is no constant"
                parameter.default = constant.value
