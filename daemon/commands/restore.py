"""`askfirst restore`: put a backup in the place of the database."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.errors import DaemonError, DaemonRunning
from daemon.render import Column, Screen

if TYPE_CHECKING:
    from daemon.store.contents import Contents
    from daemon.store.restoring import Plan

_LOCK_WAIT_S = 0.5  # commands that look whether a daemon runs hold its lock for a moment


@click.command(
    "restore",
    short_help="Put a backup in the place of the database.",
    epilog=examples(
        "askfirst restore latest",
        "askfirst restore /mnt/usb/askfirst-20260301T120000Z.sqlite3 --yes",
    ),
)
@click.argument("file", metavar="FILE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--from-another", is_flag=True, help="Take the backup of another installation, as on a new machine."
)
@command_options
@pass_invocation
def command(call: Invocation, file: str, yes: bool, from_another: bool) -> None:
    """Put the backup FILE in the place of the database; "latest" is the newest one in the folder of backups.

    The backup is verified first, and what would change is shown. The database of before is kept beside the
    new one. Works on a damaged or missing database too; not while the daemon runs.
    """
    from daemon.runtime import DATABASE  # noqa: PLC0415 - loads the agents
    from daemon.store.files import private_folder  # noqa: PLC0415 - beside what it is needed for
    from daemon.store.migrations import STEPS  # noqa: PLC0415 - loads SQLAlchemy
    from daemon.store.restoring import finish_restoration, plan_restoration, restore  # noqa: PLC0415

    settings = call.settings()
    source = _source(file, settings.backup_dir)
    database = settings.daemon.data_dir.absolute() / DATABASE
    screen = call.screen()
    with call.logging(settings):
        if not source.is_file():  # before a folder is made for nothing
            msg = f"there is no file {source}; 'askfirst backup list' shows the backups"
            raise DaemonError(msg)
        private_folder(database.parent, database.name)
        with _nobody_else(database):
            finish_restoration(database)  # one that was cut off before
            plan = plan_restoration(database, source, STEPS.revisions)
            _check_origin(plan, from_another=from_another)
            if not screen.as_json:
                _show(screen, plan)
            _ask(screen, yes=yes)
            replaced = restore(database, plan)
    if screen.as_json:
        screen.data({**_data(plan), "database": database, "replaced": replaced})
        return
    screen.line(f"{source} is in place.", "green")
    if replaced is not None:
        screen.line(f"The database of before is {replaced}; delete it, and its -wal, when you are content.")


def _source(file: str, folder: Path) -> Path:
    if file != "latest":
        return Path(file).absolute()
    from daemon.store.backups import backups_in  # noqa: PLC0415 - loads SQLAlchemy

    found = backups_in(folder)
    if not found:
        msg = f"there is no backup in {folder}; name a file"
        raise DaemonError(msg)
    return found[0].path


@contextmanager
def _nobody_else(database: Path) -> Iterator[None]:
    """No daemon runs and no command writes meanwhile."""
    from daemon.store.files import DAEMON_LOCK  # noqa: PLC0415 - beside what it is needed for

    running = f"the daemon runs{{}} and has {database} open; stop it first, then restore"
    writing = f"another command is writing to {database}{{}}; try again when it has ended"
    with (
        _locked(database.with_name(DAEMON_LOCK), running) as daemon,
        _locked(database.with_name(f"{database.name}.lock"), writing),
    ):
        os.ftruncate(daemon, 0)  # the number of a daemon that has ended
        yield


@contextmanager
def _locked(path: Path, busy: str) -> Iterator[int]:
    from daemon.store.files import open_private  # noqa: PLC0415 - beside what it is needed for
    from daemon.store.locks import lock_within  # noqa: PLC0415 - as above

    descriptor = open_private(path)
    try:
        if not lock_within(descriptor, _LOCK_WAIT_S):
            number = os.pread(descriptor, 32, 0).split()
            who = f" (pid {number[0].decode('ascii', 'replace')})" if number else ""
            raise DaemonRunning(busy.format(who))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_origin(plan: Plan, *, from_another: bool) -> None:
    if plan.is_foreign and not from_another:
        msg = (
            f"{plan.source} is a backup of another installation ({plan.found.instance_id}, here is "
            f"{plan.instance_id}); if you mean that, add --from-another"
        )
        raise DaemonError(msg)


def _ask(screen: Screen, *, yes: bool) -> None:
    if yes:
        return
    if screen.as_json or not sys.stdin.isatty():
        msg = "nothing was changed: there is nobody to ask; add --yes"
        raise DaemonError(msg)
    click.confirm("Put the backup in place?", abort=True)


def _show(screen: Screen, plan: Plan) -> None:
    heads = (Column(""), Column("now"), Column("the backup"))
    screen.table(heads, [(name, _fact(plan.current, name), _fact(plan.found, name)) for name in _FACTS])
    if plan.current is None:
        screen.line(f"The database in place cannot be read: {plan.trouble}", "yellow")
    if plan.is_foreign:
        screen.line("The backup is of another installation.", "yellow")


_FACTS = {
    "runs": lambda found: found.rows["runs"],
    "proposals": lambda found: found.rows["proposals"],
    "last run (UTC)": lambda found: found.last_run,
    "last decision (UTC)": lambda found: found.last_decision,
    "schema": lambda found: found.revision,
}


def _fact(found: Contents | None, name: str) -> str:
    if found is None:
        return "?"
    value = _FACTS[name](found)
    return "none" if value is None else str(value).partition(".")[0].replace("T", " ")


def _data(plan: Plan) -> dict[str, Any]:
    def told(found: Contents | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {
            "instance": found.instance_id,
            "schema": found.revision,
            "rows": found.rows,
            "last_run": found.last_run,
            "last_decision": found.last_decision,
        }

    return {
        "backup": plan.source,
        "holds": told(plan.found),
        "before": told(plan.current),
        "trouble": plan.trouble or None,
    }
