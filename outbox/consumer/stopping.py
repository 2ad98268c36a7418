"""Be told to stop from anywhere, a signal handler included."""

from queue import Empty, SimpleQueue


class Stop:
    """A wish to stop, and a way for one thread to wait for it.

    A queue and not an Event: a signal handler interrupts the main thread wherever it is, and the lock inside
    an Event that this very thread is waiting on would never be freed.
    """

    def __init__(self) -> None:
        self._asked = False
        self._rings: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Any number of times, from any thread."""
        self._asked = True
        self._rings.put(None)

    def is_set(self) -> bool:
        return self._asked

    def clear(self) -> None:
        """Forget it, for another run."""
        self._asked = False

    def wait(self, timeout: float | None = None) -> bool:
        """Rest until told to stop, at most `timeout` seconds; True if told. For one thread at a time."""
        while not self._asked:
            try:
                self._rings.get(timeout=timeout)
            except Empty:
                break
        return self._asked
