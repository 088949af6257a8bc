"""Servers that speak as OpenAI does, one row each: where they are, and in what they differ.

A gateway is data and no class. What is not said here is found out: a parameter that a server refuses is
left out from then on (`llm.wire.takes`). Sources: each service's own API reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from llm.wire.takes import EVERYTHING, Takes

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """One service, or a kind of server.

    Attributes:
        name: what it is called.
        hosts: domains that mean it; subdomains count.
        base: path of its API, where the address names none.
        takes: what may be sent to it.
        names_say: whether a model's name means there what it means at OpenAI.
        key_header: header of the key; the key stands there alone unless it is "Authorization".
        headers: what else it wants in every request.
        tools: whether its models can call tools as a rule.
        provider: what OpenTelemetry's GenAI conventions call it; empty where they have no name for it.
    """

    name: str
    hosts: tuple[str, ...] = ()
    base: str = "/v1"
    takes: Takes = EVERYTHING
    names_say: bool = False
    key_header: str = "Authorization"
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)
    tools: bool = False
    provider: str = ""

    def authorization(self, key: str | None) -> dict[str, str]:
        """The headers of a request, with the key if there is one."""
        if not key:
            return dict(self.headers)
        value = f"Bearer {key}" if self.key_header == "Authorization" else key
        return {self.key_header: value, **self.headers}


OPENAI = Gateway(name="OpenAI", hosts=("openai.com",), names_say=True, tools=True, provider="openai")

LOCAL = Gateway(name="a server in this network", takes=Takes(switch=True))
"""llama.cpp, vLLM, LM Studio, SGLang, mlx_lm: their open models are told by the template not to think."""

UNKNOWN = Gateway(name="an unknown gateway")

GATEWAYS: tuple[Gateway, ...] = (
    OPENAI,
    Gateway(
        name="Azure OpenAI",
        hosts=("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com"),
        base="/openai/v1",
        names_say=True,
        key_header="api-key",
        tools=True,
        provider="azure.ai.openai",
    ),
    Gateway(
        name="OpenRouter",
        hosts=("openrouter.ai",),
        base="/api/v1",
        headers=MappingProxyType({"X-Title": "askfirst"}),
        tools=True,
    ),
    Gateway(
        name="Groq",
        hosts=("groq.com",),
        base="/openai/v1",
        takes=Takes(cap="max_completion_tokens", limits=False),
        tools=True,
        provider="groq",
    ),
    Gateway(
        name="Mistral",
        hosts=("mistral.ai",),
        takes=Takes(seed_name="random_seed", usage=False, effort=False),
        tools=True,
        provider="mistral_ai",
    ),
    Gateway(
        name="DeepSeek",
        hosts=("deepseek.com",),
        takes=Takes(schema=False, effort=False),
        tools=True,
        provider="deepseek",
    ),
    Gateway(name="Together", hosts=("together.xyz", "together.ai"), tools=True),
    Gateway(name="Hugging Face", hosts=("router.huggingface.co",)),
    Gateway(
        name="Gemini",
        hosts=("generativelanguage.googleapis.com",),
        base="/v1beta/openai",
        tools=True,
        provider="gcp.gemini",
    ),
)


def gateway_of(host: str, *, private: bool) -> Gateway:
    """The row of a host.

    Args:
        host: its name.
        private: whether it is this machine or in a home or company network.
    """
    for row in GATEWAYS:
        if any(host == domain or host.endswith(f".{domain}") for domain in row.hosts):
            return row
    return LOCAL if private else UNKNOWN
