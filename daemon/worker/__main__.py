"""The program of a worker; it is run by its path, so that the packages are those of its parent."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Find our packages where this file lies, whatever else is on the path, and begin."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.insert(0, root)
    from agents.confine import stand_back  # noqa: PLC0415 - not to be found before

    stand_back()  # importing the rest is most of what a start costs
    from daemon.worker.child import work  # noqa: PLC0415 - as above

    work()


if __name__ == "__main__":
    main()
