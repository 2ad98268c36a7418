"""Give each event an id that is unique everywhere and, within a process, greater than the one before it.

RFC 9562 version 7, method 1: 48 bits of Unix milliseconds, a 42-bit counter that starts anew at a random
value each millisecond, 32 random bits. Python 3.14 brings the same function.
"""

import sys

if sys.version_info >= (3, 14):
    from uuid import uuid7 as uuid7  # noqa: PLC0414 - said to be exported
else:
    import os
    import threading
    import time
    from uuid import UUID

    _COUNTER_BITS = 42
    _lock = threading.Lock()
    _last_ms = 0
    _counter = 0

    def uuid7() -> UUID:
        """A new id, greater than every id this process got from here before, also if the clock went back."""
        global _last_ms, _counter
        noise = int.from_bytes(os.urandom(10))
        now = time.time_ns() // 1_000_000
        with _lock:
            if now > _last_ms:
                # The highest bit starts at 0, so that at least 2**41 ids fit into this millisecond.
                _last_ms, _counter = now, noise >> 39
            else:
                _counter += 1
                if _counter >> _COUNTER_BITS:
                    _last_ms, _counter = _last_ms + 1, noise >> 39
            ms, counter = _last_ms, _counter
        value = (ms & (1 << 48) - 1) << 80
        value |= 0x7 << 76 | (counter >> 30) << 64
        value |= 0b10 << 62 | (counter & (1 << 30) - 1) << 32
        return UUID(int=value | noise & (1 << 32) - 1)
