"""Which runtime a command gets: the daemon's if one runs, else its own.

A daemon that holds its lock and does not answer is starting, stopping or stuck. Then nothing is written
beside it; what only reads goes to the file, which is safe while the schema is the one that we know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from daemon.control.client import Connection, connected
from daemon.control.lock import Holder, holder
from daemon.control.places import candidates
from daemon.control.remote import RemoteRuntime, Unreachable
from daemon.errors import DaemonAbsent, DaemonSilent

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from daemon.settings import Settings

_log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 2.0
"""A daemon that has not said hello by then does not answer."""

_AGAIN_AFTER_S = 0.05


@dataclass(frozen=True, slots=True)
class Signs:
    """What can be seen of a daemon without asking it.

    Attributes:
        data_dir: its data folder.
        holder: who holds its lock, None when nobody does or that cannot be seen.
        sockets: where it may listen.
        group: the group that may give it commands.
    """

    data_dir: Path
    holder: Holder | None
    sockets: tuple[Path, ...]
    group: str | None

    @property
    def runs(self) -> bool:
        """Whether there is a daemon to ask, as far as can be seen."""
        return self.holder is not None or (self.group is not None and bool(self.sockets))


def signs_of(settings: Settings) -> Signs:
    """Look for a daemon; blocks."""
    data_dir, group = settings.daemon.data_dir, settings.daemon.control_group
    return Signs(data_dir, holder(data_dir), candidates(data_dir, group), group)


async def connect(settings: Settings, signs: Signs) -> Connection | None:
    """A connection to the daemon; None if it has ended meanwhile.

    Raises:
        DaemonSilent: it does not answer.
        OtherVersion, NotAllowed: see `Connection.open`.
    """
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while signs.runs:
                for path in signs.sockets:
                    found = await connected(path, signs.data_dir)
                    if found is not None:
                        return found
                if signs.holder is None:  # a socket that nobody listens on any more
                    return None
                await asyncio.sleep(_AGAIN_AFTER_S)
                signs = await asyncio.to_thread(signs_of, settings)
    except TimeoutError as error:
        who = f" ({signs.holder})" if signs.holder else ""
        msg = (
            f"the daemon on {signs.data_dir}{who} does not answer: it is starting, stopping or stuck; "
            "try again in a moment, and see its log"
        )
        raise DaemonSilent(msg) from error
    return None


@asynccontextmanager
async def reached(settings: Settings, signs: Signs, *, with_llm: bool = False) -> AsyncIterator[Runtime]:
    """What a command works with: a `RemoteRuntime` while a daemon runs, else a `Runtime` of its own.

    Args:
        settings: the configuration.
        signs: what was seen of a daemon.
        with_llm: whether agents are run, and so need their model; the daemon has its own.

    Raises:
        OtherVersion, NotAllowed: the daemon does not take our commands.
        DaemonSilent: it does not answer, and its database is not of our version.
        StoreError: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        try:
            connection = await connect(settings, signs)
        except DaemonSilent as silent:
            yield await _only_to_read(settings, stack, silent)
            return
        if connection is None:
            yield await _own(settings, stack, with_llm=with_llm)
            return
        stack.push_async_callback(connection.aclose)
        # The commands' code is one for both; a test holds that what they use is there.
        yield cast("Runtime", RemoteRuntime(settings, connection))


@asynccontextmanager
async def daemon_of(settings: Settings, signs: Signs) -> AsyncIterator[RemoteRuntime]:
    """The daemon that runs.

    Raises:
        DaemonAbsent: none does.
        DaemonSilent, OtherVersion, NotAllowed: it does not take our commands.
    """
    connection = await connect(settings, signs)
    if connection is None:
        raise absent(signs.data_dir)
    try:
        yield RemoteRuntime(settings, connection)
    finally:
        await connection.aclose()


def absent(data_dir: Path) -> DaemonAbsent:
    """What to say when there is no daemon."""
    return DaemonAbsent(f"no daemon runs on {data_dir}; `askfirst run` starts one")


async def _own(settings: Settings, stack: AsyncExitStack, *, with_llm: bool = False) -> Runtime:
    from daemon.runtime import open_runtime  # noqa: PLC0415 - loads the agents and the store

    return await stack.enter_async_context(open_runtime(settings, with_llm=with_llm))


async def _only_to_read(settings: Settings, stack: AsyncExitStack, silent: DaemonSilent) -> Runtime:
    """A runtime that cannot decide, if the database is of our schema: nothing is migrated under a daemon."""
    from daemon.runtime import DATABASE  # noqa: PLC0415 - loads the agents
    from daemon.store.migrations import is_current  # noqa: PLC0415 - loads SQLAlchemy

    if not await asyncio.to_thread(is_current, settings.daemon.data_dir / DATABASE):
        raise silent
    _log.warning("%s; this is read from its database", silent)
    runtime = await _own(settings, stack)
    refusing: Any = Unreachable(silent)
    return replace(runtime, desk=refusing, controls=refusing)
