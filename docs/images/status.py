"""Takes a picture of the status page.

From the top of a checkout: PYTHONPATH=. python docs/images/status.py docs/images/status.png

The real program runs over a made-up month of history (tests/support/lived_in.py), and a real browser looks. The
picture is written with a palette of 256 colours, which makes it small.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

from tests.support.background import running
from tests.support.browser import browser
from tests.support.fake_ollama import FakeOllama, model
from tests.support.lived_in import TITLES, World, configure, live_in

WIDTH, MOST_HEIGHT = 1080, 2000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LAST = "#chart-questions"
"""The picture ends below this part of the page."""


async def main() -> None:
    """Make the month, run the program and the browser, and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configure(folder)
        shutil.copytree("config/examples", folder / "exchange")
        await live_in(folder / "data", World(titles=TITLES))
        async with FakeOllama(model("qwen2.5:1.5b")) as ollama:
            await asyncio.to_thread(take, folder, ollama.url, Path(sys.argv[1]))


def take(folder: Path, ollama: str, out: Path) -> None:
    """Run the program with that model server, and take the picture of its page."""
    with running(folder, {"LLM_BACKEND": "ollama", "LLM_API_BASE": ollama}) as program, browser() as chromium:
        url = program.line("askfirst is running")["address"]
        page = chromium.new_page(viewport={"width": WIDTH, "height": MOST_HEIGHT}, color_scheme="light")
        page.goto(f"{url}/?days=7")
        end = page.locator(LAST).bounding_box()
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end["y"] + end["height"] + 20}
        out.write_bytes(with_palette(page.screenshot(clip=clip)))


def with_palette(png: bytes) -> bytes:
    """The same picture with its 256 most frequent colours; every other one becomes the nearest of them."""
    width, height, rows = pixels(png)
    counts = Counter(pixel for row in rows for pixel in row)
    palette = [colour for colour, _ in counts.most_common(256)]
    number = {colour: n for n, colour in enumerate(palette)}
    for colour in counts:
        if colour not in number:
            near = min(
                palette, key=lambda other: sum((a - b) ** 2 for a, b in zip(colour, other, strict=True))
            )
            number[colour] = number[near]
    lines = b"".join(b"\0" + bytes(number[pixel] for pixel in row) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", bytes(v for colour in palette for v in colour)))
    return SIGNATURE + b"".join(
        chunk(*part) for part in (*parts, (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pixels(png: bytes) -> tuple[int, int, list[list[tuple[int, ...]]]]:
    """Width, height and the colours of a PNG of 8 bits for each of three or four channels."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    channels = {2: 3, 6: 4}[kind]
    packed, at = b"", len(SIGNATURE)
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        packed += png[at + 8 : at + 8 + size] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += size + 12
    data, stride = zlib.decompress(packed), width * channels
    before, rows = bytearray(stride), []
    for y in range(height):
        start = y * (stride + 1)
        row = bytearray(data[start + 1 : start + 1 + stride])
        unfilter(data[start], row, before, channels)
        rows.append([tuple(row[x : x + 3]) for x in range(0, stride, channels)])
        before = row
    return width, height, rows


def unfilter(how: int, row: bytearray, above: bytearray, step: int) -> None:
    """Undo a PNG filter in place."""
    for x in range(len(row)):
        left, up = row[x - step] if x >= step else 0, above[x]
        corner = above[x - step] if x >= step else 0
        if how == 4:
            guess = left + up - corner
            add = min((left, up, corner), key=lambda value: abs(guess - value))
        else:
            add = (0, left, up, (left + up) // 2)[how]
        row[x] = (row[x] + add) & 255


if __name__ == "__main__":
    asyncio.run(main())
