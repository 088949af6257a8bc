"""The units and the plist that the program brings along, as text."""

from __future__ import annotations

from daemon.errors import DaemonError
from daemon.guard import ROOT


def template(name: str) -> str:
    """The file `name` of the folder `systemd/`: of the wheel, or of the checkout that the program runs from.

    Raises:
        DaemonError: the installation is not whole.
    """
    places = (ROOT / "daemon" / "_data" / "systemd" / name, ROOT / "systemd" / name)
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    msg = f"this installation lacks the file systemd/{name}; install Askfirst again"
    raise DaemonError(msg)
