"""Say once what is wrong, again every half minute while it lasts, and say when it is over."""

import logging
import time

EVERY = 30.0
"""Seconds until what goes on is said again."""


class Notice:
    """One kind of trouble that may last, in the log `log`."""

    def __init__(self, log: logging.Logger, *, every: float = EVERY) -> None:
        self._log = log
        self._every = every
        self._said: dict[str, float] = {}
        self._text: str | None = None

    @property
    def text(self) -> str | None:
        """The trouble of the moment; None when all is well."""
        return self._text

    def trouble(
        self, text: str, *, level: int = logging.WARNING, because: BaseException | None = None
    ) -> None:
        """Logged the first time and every half minute. `because`: shown with its traceback."""
        now = time.monotonic()
        # Two that take turns are each said once, not at every turn.
        self._said = {said: at for said, at in self._said.items() if now - at < self._every}
        if text not in self._said:
            self._log.log(level, "%s", text, exc_info=because)
            self._said[text] = now
        self._text = text

    def over(self, text: str | None = None) -> None:
        """Logged if there was trouble before, in these words or in its own."""
        if self._text is not None:
            self._log.info("%s", text or f"going on: no longer true that {self._text}")
            self._text = None
            self._said.clear()
