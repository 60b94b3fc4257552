"""Logging that what others wrote cannot break: neither a handler that raises, nor a name that forges lines."""

import contextlib
import logging
import traceback
from functools import partial


def printable(text: str, *, keep: str = "") -> str:
    """Returns text of a task's that cannot give orders to a terminal, nor begin a line of its own.

    Args:
        text: What a task is called, or what it said.
        keep: The control characters that may stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


class SafeLogger:
    """Logs for code that has books to keep: no method ever raises, and what is logged is one line.

    A handler or a filter of the host's may raise, and so may the text of an exception: that is
    written to stderr, as logging itself does, and nowhere else.

    Args:
        name: The logger's name.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.debug = partial(self.log, logging.DEBUG)
        self.info = partial(self.log, logging.INFO)
        self.warning = partial(self.log, logging.WARNING)
        self.error = partial(self.log, logging.ERROR)

    def is_enabled(self, level: int) -> bool:
        """Returns whether what is logged at ``level`` would be handed to anybody."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Logs ``message % args``; in ``args`` everything but numbers is turned into printable text."""
        try:
            if self._logger.isEnabledFor(level):
                said = [arg if isinstance(arg, (int, float)) else printable(str(arg)) for arg in args]
                self._logger.log(level, message, *said, exc_info=exc_info, stacklevel=2)
        except BaseException:  # SystemExit as well: whoever logs is in the middle of something
            with contextlib.suppress(BaseException):
                traceback.print_exc()
