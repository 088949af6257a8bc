"""Where a configuration's models work: on this machine, on other hardware of one's own, or at a vendor's."""

from __future__ import annotations

from dataclasses import dataclass

from llm.backends.address import Address
from llm.config import LLMConfig

OLLAMA_CLOUD = (":cloud", "-cloud")
"""How names of models end that a local Ollama only passes on to its makers' paid service."""


@dataclass(frozen=True, slots=True)
class WorkPlace:
    """Where models work.

    Attributes:
        own: on hardware of one's own: this machine or one in a private network.
        here: on this very machine.
        url: base URL of a vendor, None on one's own hardware or when it is not known.
    """

    own: bool
    here: bool
    url: str | None = None


def work_place(config: LLMConfig) -> WorkPlace:
    """Where the models of `config` work, by its backend and its address; nothing is connected.

    A server at a private address is taken for one's own. One that only passes calls on to a vendor, such as a
    gateway at home, looks the same from here: LLM_PRICES says what its models cost.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    match config.backend:
        case "llamacpp" | "mlx" | "mock":
            return WorkPlace(own=True, here=True)
        case "ollama":
            from llm.backends.ollama import ollama_address  # noqa: PLC0415 - one backend's module, not all

            return _at(ollama_address(config))
        case "remote":
            from llm.backends.remote import choose_service  # noqa: PLC0415 - one backend's module, not all

            return _at(choose_service(config).address)
    return WorkPlace(own=False, here=False, url=config.api_base)


def _at(address: Address) -> WorkPlace:
    own = address.is_private
    return WorkPlace(own=own, here=address.is_loopback, url=None if own else address.url)
