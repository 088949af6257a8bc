"""Which model a command asks: the configured ones, or the one that its options name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from daemon.settings import Settings
    from llm import LLMClient, LLMConfig, Selection


async def choose(settings: Settings, backend: str | None = None, model: str | None = None) -> LLMClient:
    """A client for the model that is meant.

    Args:
        settings: the configuration.
        backend: a backend to ask instead of the configured ones: one of their names, or a kind of backend.
        model: the model to ask instead of that backend's.

    Raises:
        NoModel: there is none.
        ConfigurationError: the settings cannot work.
        click.UsageError: there is no such backend.
    """
    from daemon.selection import choose_model, open_client  # noqa: PLC0415 - beside what it is needed for
    from llm import get_llm_client  # noqa: PLC0415 - the same

    if backend is None and model is None:
        selection = await choose_model(settings)
        client = open_client(selection)
        return client if client is not None else get_llm_client(config_of(selection))
    return get_llm_client(await _named(settings, backend, model))


async def _named(settings: Settings, backend: str | None, model: str | None) -> LLMConfig:
    """The one backend that the options of a command name."""
    from daemon.settings import routes_of  # noqa: PLC0415 - beside what it is needed for
    from llm import select_backend  # noqa: PLC0415 - the same
    from llm.registry import backend_names  # noqa: PLC0415 - the same

    routes = await asyncio.to_thread(routes_of, settings)
    own = {} if routes is None else routes.backends
    if backend is not None and backend in own:
        config = own[backend]
        return config if model is None else config.with_values(model=model)
    environ = await asyncio.to_thread(settings.llm_environ)
    if backend is not None:
        if backend not in backend_names():
            msg = f"there is no backend {backend!r}; there are {', '.join((*own, *backend_names()))}"
            raise click.UsageError(msg)
        if environ.get("LLM_BACKEND", backend) != backend:
            environ.pop("LLM_MODEL", None)  # that one is the other backend's
        environ["LLM_BACKEND"] = backend
    if model is not None:
        environ["LLM_MODEL"] = model
    return config_of(await select_backend(environ))


def config_of(selection: Selection) -> LLMConfig:
    """The configuration that was chosen.

    Raises:
        NoModel: none was; says what was looked at.
    """
    from llm import NoModel  # noqa: PLC0415 - beside what it is needed for

    if selection.config is None:
        raise NoModel("\n".join((selection.reason, *selection.considered)))
    return selection.config
