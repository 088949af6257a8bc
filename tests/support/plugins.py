"""Plugin folders for tests: what stands in them is trusted, since nobody else can write to them."""

from __future__ import annotations

from pathlib import Path


def plugin_folder(folder: Path, **plugins: str) -> Path:
    """The folder `folder`/data/plugins with one file for each name and its source."""
    (folder / "data").mkdir(mode=0o700, exist_ok=True)
    place = folder / "data" / "plugins"
    place.mkdir(mode=0o700, exist_ok=True)
    for name, source in plugins.items():
        (place / f"{name}.py").write_text(source, encoding="utf-8")
        (place / f"{name}.py").chmod(0o600)
    return place


def source_of(name: str) -> str:
    """The source of a module of tests/support."""
    return (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
