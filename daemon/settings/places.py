"""Where the configuration and the data are looked for on this system."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from daemon.errors import SettingsError, SettingsProblem

CONFIG_VARIABLE = "ASKFIRST_CONFIG"
SYSTEM_CONFIG = Path("/etc/askfirst/askfirst.toml")


def find_config(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file to read: the one that was named, else the first that exists, else None.

    Raises:
        SettingsError: a file was named and is not there.
    """
    named, by = (path, "--config") if path else (_named_by(environ), CONFIG_VARIABLE)
    if named is None:
        return next((place for place in config_places() if place.is_file()), None)
    absolute = Path.cwd() / named.expanduser()
    if not absolute.is_file():
        kind = "is a folder, not a file" if absolute.is_dir() else "does not exist"
        problem = SettingsProblem(key="", message=f"{kind} (it was named by {by})", source=str(absolute))
        raise SettingsError([problem])
    return absolute.resolve()


def _named_by(environ: Mapping[str, str]) -> Path | None:
    text = environ.get(CONFIG_VARIABLE, "").strip()
    return Path(text) if text else None


def config_places() -> tuple[Path, ...]:
    """The files that are tried, in this order, when none is named."""
    import platformdirs  # noqa: PLC0415 - not needed when a file is named

    user = Path(platformdirs.user_config_dir("askfirst", appauthor=False))
    return (Path.cwd() / "config" / "askfirst.toml", user / "askfirst.toml", SYSTEM_CONFIG)


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the database lives unless a setting says otherwise: systemd's state folder, else the user's."""
    source = os.environ if environ is None else environ
    given = source.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    import platformdirs  # noqa: PLC0415 - not needed under systemd

    return Path(platformdirs.user_state_dir("askfirst", appauthor=False))
