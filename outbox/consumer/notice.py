"""Say once what is wrong, again every half minute while it lasts, and say when it is over."""

import logging
import time

log = logging.getLogger("outbox.consumer")


class Notice:
    """One kind of trouble that may last."""

    def __init__(self, *, every: float = 30.0) -> None:
        self._every = every
        self._next = 0.0
        self._text: str | None = None

    @property
    def text(self) -> str | None:
        """The trouble of the moment; None when all is well."""
        return self._text

    def trouble(self, text: str) -> None:
        """Logged the first time, when the words change and every half minute."""
        now = time.monotonic()
        if self._text != text or now >= self._next:
            log.warning("%s", text)
            self._next = now + self._every
        self._text = text

    def over(self, text: str) -> None:
        """Logged if there was trouble before."""
        if self._text is not None:
            log.info("%s", text)
            self._text = None
