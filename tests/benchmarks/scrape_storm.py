"""Scrapes an address over many connections at a wanted rate, or only waits; says as JSON what came of it.

A process of its own: what asks must not be measured with what answers, and a loop that has nothing to do
tells how late one is on this machine, whoever else is busy on it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

CONNECTIONS = 50
LOOK_EVERY_S = 0.005
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text\r\n\r\n"


async def scrape(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request and its whole answer.

    Raises:
        OSError: the answer is no 200.
    """
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise OSError(head.splitlines()[0].decode())
    (length,) = [line for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    await reader.readexactly(int(length.partition(b":")[2]))


async def storm(port: int, rate: float, seconds: float) -> dict[str, float]:
    """Scrape `rate` times a second for so many seconds, or as often as it goes."""
    began, latencies = time.perf_counter(), []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        due = began + number / rate
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter()
            await scrape(reader, writer)
            latencies.append(time.perf_counter() - asked)
            due = max(due + CONNECTIONS / rate, time.perf_counter() - 1.0)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    latencies.sort()
    return {
        "rate": len(latencies) / (time.perf_counter() - began),
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


async def lags_while(seconds: float) -> list[float]:
    """How late this loop comes round to somebody who looks each 5 ms, in ms, sorted."""
    lags, ends = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < ends:
        await asyncio.sleep(LOOK_EVERY_S)
        lags.append((time.perf_counter() - begun - LOOK_EVERY_S) * 1e3)
    return sorted(lags)


if __name__ == "__main__":
    numbers = [float(each) for each in sys.argv[1:]]
    work = lags_while(*numbers) if len(numbers) == 1 else storm(int(numbers[0]), *numbers[1:])
    print(json.dumps(asyncio.run(work)))  # type: ignore[arg-type]  # either
