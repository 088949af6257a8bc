"""`askfirst run`: the daemon."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation

if TYPE_CHECKING:
    from daemon.settings import Settings

_log = logging.getLogger(__name__)


@click.command(
    "run",
    short_help="Run the daemon until it is stopped.",
    epilog=examples("askfirst run --config /etc/askfirst/askfirst.toml"),
)
@command_options
@pass_invocation
def command(call: Invocation) -> int:
    """Run the enabled agents on their schedules until the program is stopped (Ctrl-C or SIGTERM).

    It answers /metrics, /healthz and /readyz on 127.0.0.1:8484 unless the configuration says otherwise.
    """
    return run_daemon(call)


def run_daemon(call: Invocation) -> int:
    """Run the daemon and return the exit code.

    Raises:
        SettingsError: the configuration cannot work; nothing was started.
        DaemonRunning: another daemon uses the same data.
    """
    _check_alone(call.settings())
    from daemon.app import Daemon  # noqa: PLC0415 - loads everything
    from daemon.lifecycle import run_process  # noqa: PLC0415 - see above

    settings = call.settings(check_agents=True)
    with call.logging(settings, service=True):
        for warning in settings.warnings:
            _log.warning("%s", warning)
    daemon = Daemon(  # it does its own logging
        settings, log_level="debug" if call.debug else None, log_format=call.log_format
    )
    # Not asyncio.run: an agent that ignores being cancelled must not keep the process alive.
    return run_process(daemon.run_until_stopped())


def _check_alone(settings: Settings) -> None:
    """Say so early when there is a daemon already; the daemon itself holds the lock that makes it sure."""
    from daemon.control.lock import holder, running_already  # noqa: PLC0415 - beside what it is needed for

    other = holder(settings.daemon.data_dir)
    if other is not None:
        raise running_already(settings.daemon.data_dir, other)
