"""`askfirst backup`: copies of the database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.commands.shapes import moment
from daemon.render import Column

if TYPE_CHECKING:
    from daemon.settings import Settings


@click.group(
    "backup",
    invoke_without_command=True,
    short_help="Make a copy of the database, and list those there are.",
    epilog=examples("askfirst backup", "askfirst backup --to /mnt/usb", "askfirst backup list"),
)
@click.option(
    "--to",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A new file, or an existing folder, instead of the folder of backups.",
)
@command_options
@pass_invocation
@click.pass_context
def command(ctx: click.Context, /, call: Invocation, to: Path | None) -> None:
    """Make a verified copy of the database while everything goes on.

    It holds proposals, decisions, runs and model calls; not the configuration, not the agents' own files, and
    not the keys. `askfirst restore` puts one back.
    """
    if ctx.invoked_subcommand is not None:
        if to is not None:
            ctx.fail(f"--to stands alone, not before {ctx.invoked_subcommand!r}")
        return
    from daemon.control.reach import signs_of  # noqa: PLC0415 - loads pydantic

    settings = call.settings()
    if not signs_of(settings).runs:
        _check_database(settings)
    place = None if to is None else to.absolute()
    path = call.with_runtime(lambda runtime: runtime.controls.backup(place))
    size = _bytes(path)
    screen = call.screen()
    if screen.as_json:
        screen.data({"backup": path, "bytes": size})
    else:
        screen.line(f"{path} ({'' if size is None else _size(size) + ', '}verified)")


def _check_database(settings: Settings) -> None:
    """No database shall be made only to be copied."""
    from daemon.runtime import DATABASE  # noqa: PLC0415 - loads the agents
    from daemon.store.migrations import no_database  # noqa: PLC0415 - loads SQLAlchemy

    database = settings.daemon.data_dir / DATABASE
    if not database.exists():
        raise no_database(database)


def _bytes(path: Path) -> int | None:
    """The size, None where the daemon put it into a folder that we may not look into."""
    try:
        return path.stat().st_size
    except OSError:
        return None


@command.command("list", epilog=examples("askfirst backup list", "askfirst backup list --json"))
@command_options
@pass_invocation
def list_(call: Invocation) -> None:
    """List the backups in the folder of backups, the newest first."""
    from daemon.store.backups import backups_in  # noqa: PLC0415 - loads SQLAlchemy

    settings = call.settings()
    found = backups_in(settings.backup_dir)
    screen = call.screen()
    if screen.as_json:
        screen.data([{"backup": each.path, "made_at": each.made_at, "bytes": each.size} for each in found])
        return
    if not found:
        screen.line(f"There is no backup in {settings.backup_dir} yet. `askfirst backup` makes one.")
        return
    heads = (Column("made (UTC)"), Column("age"), Column("size", right=True), Column("file"))
    now = datetime.now(UTC)
    rows = [(moment(b.made_at), _age(now, b.made_at), _size(b.size), b.path) for b in found]
    screen.table(heads, rows)


def _age(now: datetime, then: datetime) -> str:
    hours = (now - then).total_seconds() / 3600
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
