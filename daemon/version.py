"""The version of the program that runs."""

from __future__ import annotations

from importlib import metadata


def own_version() -> str:
    """The version of the installed distribution; reads files."""
    try:
        return metadata.version("askfirst")
    except metadata.PackageNotFoundError:
        return "unknown"
