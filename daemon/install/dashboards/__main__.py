"""Writes config/grafana anew: python -m daemon.install.dashboards [FOLDER]."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from daemon.install.dashboards import inbox, models, overview, provisioning

FOLDER = Path(__file__).parents[3] / "config" / "grafana"


def files() -> Mapping[str, str]:
    """Each file, below the folder, with its text; the same at each call."""
    boards = (overview.board(), models.board(), inbox.board())
    return {**provisioning.FILES, **{f"dashboards/{board.uid}.json": board.text() for board in boards}}


def write(folder: Path) -> None:
    """Make the folder hold these files and no other."""
    wanted = {folder / name: text for name, text in files().items()}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
