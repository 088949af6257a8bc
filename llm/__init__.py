"""Askfirst's LLM layer: one small contract over local engines and remote services, usable alone.

    from llm import LLMConfig, get_llm_client

    client = get_llm_client(LLMConfig(backend="ollama", model="qwen2.5:1.5b"))
    response = await client.generate("Name three vegetables")

Names are imported on first use, so that `import llm` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.autoselect import Selection, select_backend
    from llm.backends.llamacpp import LlamaCppBackend
    from llm.backends.mlx import MLXBackend
    from llm.backends.mock import MockBackend
    from llm.backends.ollama import OllamaBackend
    from llm.backends.remote import RemoteBackend
    from llm.caller import calling
    from llm.client import LLMClient
    from llm.config import LLMConfig
    from llm.errors import (
        AuthenticationFailed,
        BadReply,
        BadRequest,
        BreakerOpen,
        BudgetExceeded,
        CallCancelled,
        ConfigurationError,
        ConnectionFailed,
        DeadlineExceeded,
        LLMError,
        ModelNotFound,
        NoModel,
        NotSupported,
        RateLimited,
        SchemaMismatch,
        ServerError,
        TemplateError,
        ToolLoopExceeded,
    )
    from llm.factory import get_llm_client, get_response_store
    from llm.fence import clean, fenced
    from llm.registry import register_backend
    from llm.routes import Routes
    from llm.streams import LLMStream
    from llm.templates import Prompt, PromptTemplate, Templates
    from llm.tools import run_tools, tool_of
    from llm.types import (
        Caller,
        Capabilities,
        Embeddings,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        StreamEnd,
        TextChunk,
        ThinkingChunk,
        Tool,
        ToolCall,
    )
    from llm.untrusted import Trusted

_HOMES = {
    "AuthenticationFailed": "llm.errors",
    "BadReply": "llm.errors",
    "BadRequest": "llm.errors",
    "BreakerOpen": "llm.errors",
    "BudgetExceeded": "llm.errors",
    "CallCancelled": "llm.errors",
    "Caller": "llm.types",
    "Capabilities": "llm.types",
    "ConfigurationError": "llm.errors",
    "ConnectionFailed": "llm.errors",
    "DeadlineExceeded": "llm.errors",
    "Embeddings": "llm.types",
    "LLMClient": "llm.client",
    "LLMConfig": "llm.config",
    "LLMError": "llm.errors",
    "LLMMessage": "llm.types",
    "LLMRequest": "llm.types",
    "LLMResponse": "llm.types",
    "LLMStream": "llm.streams",
    "LlamaCppBackend": "llm.backends.llamacpp",
    "MLXBackend": "llm.backends.mlx",
    "MockBackend": "llm.backends.mock",
    "ModelNotFound": "llm.errors",
    "NoModel": "llm.errors",
    "NotSupported": "llm.errors",
    "OllamaBackend": "llm.backends.ollama",
    "Prompt": "llm.templates",
    "PromptTemplate": "llm.templates",
    "RateLimited": "llm.errors",
    "RemoteBackend": "llm.backends.remote",
    "Routes": "llm.routes",
    "SchemaMismatch": "llm.errors",
    "Selection": "llm.autoselect",
    "ServerError": "llm.errors",
    "StreamEnd": "llm.types",
    "TemplateError": "llm.errors",
    "Templates": "llm.templates",
    "TextChunk": "llm.types",
    "ThinkingChunk": "llm.types",
    "Tool": "llm.types",
    "ToolCall": "llm.types",
    "ToolLoopExceeded": "llm.errors",
    "Trusted": "llm.untrusted",
    "calling": "llm.caller",
    "clean": "llm.fence",
    "fenced": "llm.fence",
    "get_llm_client": "llm.factory",
    "get_response_store": "llm.factory",
    "register_backend": "llm.registry",
    "run_tools": "llm.tools",
    "select_backend": "llm.autoselect",
    "tool_of": "llm.tools",
}

__all__ = [
    "AuthenticationFailed",
    "BadReply",
    "BadRequest",
    "BreakerOpen",
    "BudgetExceeded",
    "CallCancelled",
    "Caller",
    "Capabilities",
    "ConfigurationError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Embeddings",
    "LLMClient",
    "LLMConfig",
    "LLMError",
    "LLMMessage",
    "LLMRequest",
    "LLMResponse",
    "LLMStream",
    "LlamaCppBackend",
    "MLXBackend",
    "MockBackend",
    "ModelNotFound",
    "NoModel",
    "NotSupported",
    "OllamaBackend",
    "Prompt",
    "PromptTemplate",
    "RateLimited",
    "RemoteBackend",
    "Routes",
    "SchemaMismatch",
    "Selection",
    "ServerError",
    "StreamEnd",
    "TemplateError",
    "Templates",
    "TextChunk",
    "ThinkingChunk",
    "Tool",
    "ToolCall",
    "ToolLoopExceeded",
    "Trusted",
    "calling",
    "clean",
    "fenced",
    "get_llm_client",
    "get_response_store",
    "register_backend",
    "run_tools",
    "select_backend",
    "tool_of",
]

# Hidden from type checkers: a module __getattr__ would turn every typo into a valid name for them.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _HOMES:
            message = f"module 'llm' has no attribute {name!r}"
            raise AttributeError(message)
        from importlib import import_module  # noqa: PLC0415 - `import llm` stays light

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted(__all__)
