"""Are `llm`, `agents` and `daemon` ours? Other distributions bring packages of the same names.

simonw/llm, openai-agents and python-daemon install `llm`, `agents` and `daemon`, over ours if they come
later; and `python -m daemon` puts the current folder first, where somebody may have an `agents/` of their
own.
This module needs nothing but the standard library, so that it can speak when all else is broken.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the three packages."""

# A word of each package's own __init__.py that no other distribution of that name has.
_MARKS = {
    "llm": "Askfirst's LLM layer",
    "agents": "propose what a person may approve",
    "daemon": "AgentScheduler",
}

REINSTALL = "python -m pip install --force-reinstall --no-deps askfirst"


@dataclass(frozen=True, slots=True)
class Clash:
    """A package that is not ours.

    Attributes:
        package: its import name.
        found: what was found in its place.
        repair: the way out.
    """

    package: str
    found: str
    repair: str

    def __str__(self) -> str:
        return f"the package {self.package!r} is not Askfirst's: {self.found}; {self.repair}"


def foreign_packages() -> tuple[Clash, ...]:
    """The packages among the three that are not ours; quick enough for every start."""
    return tuple(clash for name in _MARKS if (clash := _clash(name)) is not None)


def _clash(name: str) -> Clash | None:
    ours = ROOT / name / "__init__.py"
    found = _origin(name)
    if found is None:
        return Clash(name, f"{ours} is missing", f"repair it: {REINSTALL}")
    if found != ours:
        way = f"start with `askfirst` or `python -P -m daemon`, or move {found.parent} away"
        return Clash(name, f"{found} comes first", way)
    if _MARKS[name] not in found.read_text(encoding="utf-8", errors="replace"):
        owners = " and ".join(owners_of(name)) or "another distribution"
        way = f"give Askfirst an environment of its own, or uninstall {owners} and then: {REINSTALL}"
        return Clash(name, f"{found} was overwritten by {owners}", way)
    return None


def _origin(name: str) -> Path | None:
    """The file that `import name` reads, None when there is none (or only a folder without `__init__.py`)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve()


def owners_of(name: str) -> tuple[str, ...]:
    """The distributions besides Askfirst that say they own the package `name`; looks through all of them."""
    from importlib.metadata import packages_distributions  # noqa: PLC0415 - slow, and rarely needed

    owners = packages_distributions().get(name, [])
    return tuple(sorted({owner for owner in owners if owner.lower() != "askfirst"}))
