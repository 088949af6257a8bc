"""Which model a command asks: the configured one, or the one that its options name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from daemon.settings import Settings
    from llm import LLMClient, LLMConfig, Selection


async def choose(settings: Settings, backend: str | None = None, model: str | None = None) -> LLMClient:
    """A client for the model that is meant.

    Args:
        settings: the configuration.
        backend: the kind of backend to ask instead of the configured one.
        model: the model to ask instead of the configured one.

    Raises:
        NoModel: there is none.
        ConfigurationError: the settings cannot work.
        click.UsageError: there is no such backend.
    """
    from llm import get_llm_client, select_backend  # noqa: PLC0415 - beside what it is needed for

    environ = settings.llm_environ()
    if backend is not None:
        _must_exist(backend)
        if environ.get("LLM_BACKEND", backend) != backend:
            environ.pop("LLM_MODEL", None)  # that one is the other backend's
        environ["LLM_BACKEND"] = backend
    if model is not None:
        environ["LLM_MODEL"] = model
    return get_llm_client(config_of(await select_backend(environ)))


def _must_exist(backend: str) -> None:
    from llm.registry import backend_names  # noqa: PLC0415 - beside what it is needed for

    if backend not in backend_names():
        msg = f"there is no backend {backend!r}; there are {', '.join(backend_names())}"
        raise click.UsageError(msg)


def config_of(selection: Selection) -> LLMConfig:
    """The configuration that was chosen.

    Raises:
        NoModel: none was; says what was looked at.
    """
    from llm import NoModel  # noqa: PLC0415 - beside what it is needed for

    if selection.config is None:
        raise NoModel("\n".join((selection.reason, *selection.considered)))
    return selection.config
