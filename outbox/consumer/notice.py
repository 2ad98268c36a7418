"""What a consumer has to tell of trouble that lasts: once, now and then, and when it is over."""

import logging

from outbox import notice

log = logging.getLogger("outbox.consumer")


class Notice(notice.Notice):
    """One kind of trouble, in the consumer's log."""

    def __init__(self, *, every: float = notice.EVERY) -> None:
        super().__init__(log, every=every)
