"""How many scrapes at a time are answered with one encoding, and in which format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Literal

Format = Literal["text", "openmetrics"]

CONTENT_TYPES: Mapping[Format, str] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

REST = 2
"""After an encoding that several scrapes wanted, the next one begins after this many times its duration."""

LONGEST_REST_S = 0.02

AT_ONCE = 8
"""So many scrapes are answered before the event loop turns to something else."""

Encode = Callable[[Collection[Format]], Awaitable[Mapping[Format, bytes]]]

_Scrape = tuple[Format, "asyncio.Future[bytes]"]


class Scrapes:
    """Answers scrapes; those that come while another one is answered wait and share the next encoding.

    So each sees what had happened when it came, and however many there are, there is time for other work.

    Args:
        encode: makes the text in the formats that are wanted.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._waiting: list[_Scrape] = []
        self._answering: list[_Scrape] = []
        self._task: asyncio.Task[None] | None = None
        self._rest_until = 0.0

    @property
    def waiting(self) -> int:
        """How many are not answered yet."""
        return len(_alive(self._answering + self._waiting))

    async def get(self, wanted: Format) -> bytes:
        """The text in the format `wanted`, as of now."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._task is None:
            self._start()
        try:
            return await answer
        except asyncio.CancelledError:
            if self._task is not None and not _alive(self._answering + self._waiting):
                self._task.cancel()
            raise

    def _start(self) -> None:
        self._task = asyncio.create_task(self._serve(), name="scrapes")

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))
                self._answering, self._waiting = self._waiting, []
                await self._serve_together(self._answering)
                self._answering = []
        finally:
            self._task = None
            self._waiting = _alive(self._waiting)
            if self._waiting:  # came after the last of those before them had gone, while this was ended
                self._start()

    async def _serve_together(self, scrapes: list[_Scrape]) -> None:
        began = time.monotonic()
        try:
            encoded = await self._encode({wanted for wanted, _ in scrapes})
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            for _, answer in _alive(scrapes):
                answer.set_exception(error)
            return
        ended = time.monotonic()
        if len(scrapes) > 1 or self._waiting:
            self._rest_until = ended + min(REST * (ended - began), LONGEST_REST_S)
        for at, (wanted, answer) in enumerate(scrapes):
            if at and at % AT_ONCE == 0:
                await asyncio.sleep(0)
            if not answer.done():
                answer.set_result(encoded[wanted])


def _alive(scrapes: list[_Scrape]) -> list[_Scrape]:
    return [each for each in scrapes if not each[1].done()]


def preferred_format(accept: str) -> Format:
    """The format that an `Accept` header prefers: OpenMetrics where it is wished for at least as much."""
    wishes = {"text/plain": 0.0, "application/openmetrics-text": 0.0}
    for part in accept.split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        if kind in wishes:
            wishes[kind] = max(wishes[kind], _quality(parameters))
    plain, openmetrics = wishes.values()
    return "openmetrics" if openmetrics > 0 and openmetrics >= plain else "text"


def _quality(parameters: list[str]) -> float:
    given = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
    try:
        return float(given[0]) if given else 1.0
    except ValueError:
        return 0.0
