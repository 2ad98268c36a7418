"""See every step of an event's way without patching anything: the instrumentation seam.

A point is a dotted name with a few facts. It is fired once per transaction, chunk or batch, never per
row, and costs one tuple test while nobody listens. Observers run in the thread that does the work; what
they raise reaches that work, so an observer that must not disturb has to catch its own errors.

What services pass on the writing side:

    outbox.opened   pending=   a transaction emitted or cancelled its first event; `pending.rows` and
                               `pending.cancelled` follow it
    outbox.written  count=     its events are inserted, its COMMIT comes next
    outbox.committed  count=     they are committed, and their connection goes back to its pool
    outbox.retried  function=, attempt=   a transaction is about to run again, for its timing alone
"""

import threading
from collections.abc import Callable
from typing import Any

Observer = Callable[[str, dict[str, Any]], None]

_observers: tuple[Observer, ...] = ()
_changing = threading.Lock()


def subscribe(observer: Observer) -> Callable[[], None]:
    """Call `observer(point, facts)` at every point from now on; the returned function ends that."""
    global _observers
    with _changing:
        _observers = (*_observers, observer)

    def unsubscribe() -> None:
        global _observers
        with _changing:
            _observers = tuple(o for o in _observers if o is not observer)

    return unsubscribe


def fire(point: str, **facts: Any) -> None:
    """Tell every observer that `point` was reached."""
    for observer in _observers:
        observer(point, facts)
