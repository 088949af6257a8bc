"""Draws what a command shows at a terminal as an SVG: python docs/images/render.py OUT.svg COMMAND...

The command runs at a real pseudo-terminal, so that the picture is what a person sees.
"""

from __future__ import annotations

import os
import pty
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 122

# rich's own template without its web fonts: the picture needs nothing from elsewhere.
TEMPLATE = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def shown_at_a_terminal(command: list[str]) -> str:
    """What `command` writes to a terminal of `COLUMNS` columns, escape sequences included."""
    pieces: list[bytes] = []

    def keep(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        pieces.append(data)
        return data

    os.environ.update(COLUMNS=str(COLUMNS), LINES="50", TERM="xterm-256color")
    pty.spawn(command, keep)
    return b"".join(pieces).decode("utf-8", errors="replace").replace("\r\n", "\n")


def main() -> None:
    """Run the command and write the picture."""
    out, command = Path(sys.argv[1]), sys.argv[2:]
    text = shown_at_a_terminal(command)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {shlex.join(command)}", style="bold"))
        console.print(Text.from_ansi(text.rstrip()))
        svg = console.export_svg(title="askfirst", code_format=TEMPLATE, unique_id="askfirst")
    out.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
