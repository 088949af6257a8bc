"""Which model, or models, a command or the daemon uses: the named backends, else what is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from daemon.settings import Settings, routes_of
from llm import LLMClient, LLMConfig, Routes, Selection, get_llm_client, select_backend

if TYPE_CHECKING:
    from llm.events import Observer


async def choose_model(settings: Settings, environ: Mapping[str, str] | None = None) -> Selection:
    """Choose, without loading a model.

    Args:
        settings: the configuration.
        environ: the environment, `os.environ` if None; its LLM_BACKEND wins over named backends.

    Raises:
        SettingsError: a file that holds a key cannot be read.
        LLMError: the settings cannot work.
    """
    source = os.environ if environ is None else environ
    # In threads: keys may stand in files.
    routes = await asyncio.to_thread(routes_of, settings, source)
    if routes is not None:
        first = routes.backends[routes.default[0]]
        return Selection(config=first, routes=routes, reason=_reason(routes))
    selection = await select_backend(await asyncio.to_thread(settings.llm_environ, source))
    if not settings.llm.backends:
        return selection
    names = ", ".join(settings.llm.backends)
    return replace(
        selection, reason=f"{selection.reason} The backends of the configuration ({names}) are not used."
    )


def as_asked(config: LLMConfig | Routes) -> Selection:
    """What the program's caller chose itself."""
    if isinstance(config, Routes):
        return Selection(
            config=config.backends[config.default[0]],
            routes=config,
            reason=f"The caller names the backends {_names(config)}.",
        )
    reason = f"{config.backend} with the model {config.model}, as the caller asked."
    return Selection(config=config, reason=reason)


def _names(routes: Routes) -> str:
    return ", ".join(f"{name} ({each.backend}, {each.model})" for name, each in routes.backends.items())


def _reason(routes: Routes) -> str:
    order = ", then ".join(routes.default)
    return (
        f"The configuration names the backends {_names(routes)}. "
        f"Asked is {order}, unless a route says otherwise."
    )


def open_client(selection: Selection, *, observers: Sequence[Observer] = ()) -> LLMClient | None:
    """The client for what was chosen, None for rules only; nothing is connected before the first call.

    Raises:
        ConfigurationError: the configuration cannot work.
    """
    if selection.routes is not None:
        return get_llm_client(selection.routes, observers=observers)
    return None if selection.config is None else get_llm_client(selection.config, observers=observers)


async def health_of(client: LLMClient) -> dict[str, bool]:
    """Whether each backend of a client answers and has its model, by name. Never raises, loads no model."""
    from llm.router import RoutedClient  # noqa: PLC0415 - beside what it is needed for

    if isinstance(client, RoutedClient):
        return await client.health()
    return {client.name: await client.health_check()}
