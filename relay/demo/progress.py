"""Show how far it is: one living line on a terminal, a few quiet ones elsewhere. Always on stderr."""

import shutil
import sys
import time
from typing import TextIO

QUIET = 10.0
"""Seconds between two lines where there is no terminal."""


class Board:
    """Lines that stay (`say`, `tell`) and one that is written over (`show`)."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._began = time.monotonic()
        self._shown = ""
        self._next = QUIET

    def say(self, line: str) -> None:
        """What everybody should know."""
        self._write(f"{line}\n")

    def tell(self, line: str) -> None:
        """What is worth watching, with its time; on a terminal only."""
        if self._live:
            self._write(f"{self._elapsed:6.1f} s  {line}\n")

    def show(self, **numbers: int | str) -> None:
        """The numbers of this moment."""
        words = "   ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in numbers.items()
        )
        if self._live:
            width = shutil.get_terminal_size().columns
            self._shown = f"{self._elapsed:6.1f} s  {words}"[: width - 1]
            self._write("")
        elif self._elapsed >= self._next:
            self._next = self._elapsed + QUIET
            self._write(f"{self._elapsed:6.1f} s  {words}\n")

    def clear(self) -> None:
        """Take the living line away."""
        self._shown = ""
        if self._live:
            self._write("")

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _write(self, text: str) -> None:
        if self._live:
            text = f"\r\033[K{text}{self._shown}"
        self._stream.write(text)
        self._stream.flush()
