"""`python -m daemon` and the console script `askfirst`: are the packages ours? Then the command line."""

from __future__ import annotations

import sys
from typing import NoReturn

from daemon.guard import foreign_packages

CONFIGURATION = 78  # daemon.errors.ExitCode.CONFIGURATION, which cannot be imported when the guard objects


def main() -> NoReturn:
    """Run the program and end the process with its exit code."""
    clashes = foreign_packages()
    if clashes:
        sys.stderr.write("".join(f"askfirst: {clash}\n" for clash in clashes))
        sys.exit(CONFIGURATION)
    # Whatever the terminal's encoding is, a name it cannot show must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from daemon.cli import run  # noqa: PLC0415 - only once the guard has looked

    sys.exit(run())


if __name__ == "__main__":
    main()
