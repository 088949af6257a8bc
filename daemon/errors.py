"""What can go wrong in the daemon, and the exit code that each kind ends the program with.

DaemonError                 1   something failed
|-- SettingsError          78   the configuration cannot work; every problem at once
|-- StoreError              1   the database cannot be read or written now
|   |-- StoreTooNew        78   a newer version of the program wrote it; untouched
|   `-- StoreFull           1   the disk is full; recovers by itself
|-- ProposalNotFound        1   no proposal of that number
|-- DecisionRefused         1   the life cycle, the approvers or the digest forbid it
`-- AddressInUse            1   the port of the web endpoints is taken
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the program's exit status means. 64, 75 and 78 are those of sysexits.h."""

    OK = 0
    FAILED = 1
    NOT_RUNNING = 3
    """`askfirst status` found no daemon; 3 is what `systemctl status` ends with then."""
    USAGE = 64
    TEMPORARY = 75
    CONFIGURATION = 78


class DaemonError(Exception):
    """Anything the program tells its user about; the message names the thing and the way out."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsProblem:
    """One thing that is wrong with the configuration.

    Attributes:
        key: the dotted key, such as "web.port"; empty when the file as a whole is meant.
        message: what is wrong and what would be right.
        source: where the value came from: a file's path, "environment" or "default".
        line: line in the file, None elsewhere.
        variable: the environment variable, None elsewhere.
    """

    key: str
    message: str
    source: str
    line: int | None = None
    variable: str | None = None

    def __str__(self) -> str:
        where = self.variable or (f"{self.source}:{self.line}" if self.line else self.source)
        return f"{where}: {self.key + ': ' if self.key else ''}{self.message}"


class SettingsError(DaemonError):
    """The configuration cannot work.

    Attributes:
        problems: every problem found, in the order of the file.
    """

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, problems: Sequence[SettingsProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StoreError(DaemonError):
    """The database cannot be read or written now; nothing that was acknowledged is lost."""


class StoreTooNew(StoreError):
    """A newer version of the program wrote the database; it was left untouched."""

    exit_code = ExitCode.CONFIGURATION


class StoreFull(StoreError):
    """The disk is full: nothing was written, and what was acknowledged is safe."""


class ProposalNotFound(DaemonError):
    """There is no proposal of that number."""


class DecisionRefused(DaemonError):
    """The proposal's life cycle, its approvers or its digest do not allow that decision."""


class AddressInUse(DaemonError):
    """The address of the web endpoints is taken by another program."""


class DaemonRunning(DaemonError):
    """Another daemon uses the same data; trying again helps once it has ended."""

    exit_code = ExitCode.TEMPORARY


class ControlError(DaemonError):
    """A command and the daemon could not come together."""


class DaemonAbsent(ControlError):
    """No daemon runs on these data, and what was asked for is about one."""


class DaemonSilent(ControlError):
    """A daemon runs, but it does not answer: it is starting, stopping or stuck. Nothing was done."""

    exit_code = ExitCode.TEMPORARY


class DaemonGone(ControlError):
    """The daemon ended before it had answered: whether it did what was asked has to be looked at."""


class OtherVersion(ControlError):
    """The daemon that runs is of another version than this program; it has to be restarted."""


class NotAllowed(ControlError):
    """The daemon does not do that for this user."""


class NotUnderstood(ControlError):
    """What reached the daemon is no request of this program."""
