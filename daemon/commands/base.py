"""What every command is handed: where the configuration is, how to answer, how to open the program's parts.

Heavy imports happen inside functions here, so that a command's `--help` stays quick.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daemon.errors import SettingsError
from daemon.render import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.control.reach import Signs
    from daemon.control.remote import RemoteRuntime
    from daemon.runtime import Runtime
    from daemon.settings import Settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

VIA = "cli"
"""How a decision made here reached the program."""


class Invocation:
    """One call of the program, as its options describe it.

    Attributes:
        config: the configuration file that was named, None to look for one.
        as_json: whether the answer shall be JSON and nothing else.
        debug: whether to log everything and show tracebacks.
        log_format: how log lines look, None as the configuration says.
    """

    def __init__(self) -> None:
        self.config: Path | None = None
        self.as_json = False
        self.debug = False
        self.log_format: str | None = None

    def screen(self) -> Screen:
        """Where the answer goes."""
        return Screen(as_json=self.as_json)

    def settings(self, *, check_agents: bool = False) -> Settings:
        """The configuration; `check_agents` looks at the settings of the agents' own too.

        Raises:
            SettingsError: it cannot work; every problem is named.
        """
        from daemon.settings import load_settings  # noqa: PLC0415 - loads pydantic

        return load_settings(self.config, check_agents=check_agents)

    @contextmanager
    def logging(self, settings: Settings, *, service: bool = False) -> Iterator[None]:
        """Log to standard error meanwhile: a service what its settings say, a command only what is wrong."""
        from daemon.observability.logging import configure_logging  # noqa: PLC0415 - loads structlog

        level = settings.daemon.log_level
        if self.debug:
            level = "debug"
        elif not service and level != "error":
            level = "warning"
        from daemon.settings import all_keys  # noqa: PLC0415 - loads pydantic

        keys: list[str] = []
        with suppress(SettingsError):  # a key file that is gone matters only to commands that need the key
            keys = all_keys(settings)
        close = configure_logging(level, self.log_format or settings.daemon.log_format, secrets=keys)
        try:
            yield
        finally:
            close()

    def with_runtime(self, work: Callable[[Runtime], Awaitable[T]], *, with_llm: bool = False) -> T:
        """Do `work` through the daemon if one runs, else with the program's parts opened.

        Files are read before the event loop starts, which must not wait for a disk. Logging goes to standard
        error.

        Args:
            work: what to do.
            with_llm: whether agents are run, and so need their model.

        Raises:
            SettingsError: the configuration cannot work.
            StoreError: the database cannot be used.
            ControlError: a daemon runs and takes no commands of ours.
        """
        from daemon.control.reach import reached, signs_of  # noqa: PLC0415 - loads pydantic

        settings = self.settings()
        signs = signs_of(settings)
        if not signs.runs:
            import daemon.store.runs  # noqa: F401, PLC0415 - loads SQLAlchemy

        async def done() -> T:
            async with reached(settings, signs, with_llm=with_llm) as runtime:
                return await work(runtime)

        with self.logging(settings):
            return run(done())

    def with_daemon(
        self, settings: Settings, signs: Signs, work: Callable[[RemoteRuntime], Awaitable[T]]
    ) -> T:
        """Do `work` with the daemon that runs.

        Raises:
            DaemonAbsent: none does.
            ControlError: it takes no commands of ours.
        """
        from daemon.control.reach import daemon_of  # noqa: PLC0415 - loads pydantic

        async def done() -> T:
            async with daemon_of(settings, signs) as daemon:
                return await work(daemon)

        with self.logging(settings):
            return run(done())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    import asyncio  # noqa: PLC0415 - a third of what `--help` would cost

    return asyncio.run(work)


def person() -> str:
    """Who types: the login name, or the number of the user when it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"uid{os.getuid()}"


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Invocation), name, value)

    return callback


def global_options(*, hidden: bool = False) -> Callable[[F], F]:
    """`--config`, `--debug` and `--log-format`, understood by the program and by each of its commands."""
    path = click.Path(path_type=Path)

    def decorate(function: F) -> F:
        options = (
            click.option(
                "--config",
                type=path,
                metavar="PATH",
                help="Configuration file; else $ASKFIRST_CONFIG, ./config/askfirst.toml, the usual places.",
                callback=_remember("config"),
                expose_value=False,
                hidden=hidden,
            ),
            click.option(
                "--debug",
                is_flag=True,
                help="Log everything and show tracebacks.",
                callback=_remember("debug"),
                expose_value=False,
                hidden=hidden,
            ),
            click.option(
                "--log-format",
                type=click.Choice(["auto", "console", "json"]),
                help="How log lines look: for people, for machines, or as suits where they go.",
                callback=_remember("log_format"),
                expose_value=False,
                hidden=hidden,
            ),
        )
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def examples(*lines: str) -> str:
    """The end of a command's help: command lines to copy, marked for click not to wrap them."""
    return "\n".join(("\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)))


def json_option(function: F) -> F:
    """`--json`, understood by the program and by each of its commands."""
    return click.option(
        "--json",
        is_flag=True,
        help="Answer in JSON, on standard output, and nothing else there.",
        callback=_remember("as_json"),
        expose_value=False,
    )(function)


def command_options(function: F) -> F:
    """What every command understands: `--json`, and after it what may also stand before it."""
    return global_options(hidden=True)(json_option(function))


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
