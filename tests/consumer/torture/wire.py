"""A wire between consumers and PostgreSQL that loses answers to COMMIT: the commit happened, nobody hears."""

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

COMMIT = b"COMMIT\x00"
"""How the text of a COMMIT ends on the wire, as a simple query or a parsed one."""


class Wire:
    """Listens on a port of its own; while open, every connection there is one to the server behind it."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._links: set[asyncio.Task[None]] = set()
        self._to_lose = 0
        self.port = 0
        self.lost = 0

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        )
        self._listener = started.result(10)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def lose(self, answers: int) -> None:
        """The next `answers` COMMITs happen, but their connections end before the answer."""
        self._loop.call_soon_threadsafe(self._arm, answers)

    def _arm(self, answers: int) -> None:
        self._to_lose += answers

    async def _end(self) -> None:
        self._listener.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):  # the latter: all is over
                await self._carry(reader, writer)
        finally:
            self._links.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both ways, until either side ends or an answer is to be lost."""
        answers, requests = await asyncio.open_connection(*self._server)
        losing = asyncio.Event()
        ways = [
            asyncio.ensure_future(self._requests(reader, requests, losing)),
            asyncio.ensure_future(self._answers(answers, writer, losing)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            requests.close()

    async def _requests(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if self._to_lose and COMMIT in data:
                self._to_lose -= 1
                losing.set()
            to.write(data)
            await to.drain()

    async def _answers(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if losing.is_set():
                self.lost += 1
                return
            to.write(data)
            await to.drain()
