"""What a hub's refusal means, as one of our errors: pure, from its status and its `X-Error-Code`."""

from __future__ import annotations

from collections.abc import Mapping

from llm.backends.known import HubFile
from llm.errors import (
    AuthenticationFailed,
    BadReply,
    LLMError,
    ModelNotFound,
    RateLimited,
    ServerError,
)


def refusal(
    status: int, headers: Mapping[str, str], *, source: HubFile, revision: str, origin: str, token: bool
) -> LLMError:
    """The error for an answer that is neither the file nor a redirect to it.

    Args:
        status: of HTTP.
        headers: of the answer, found by lower-case names.
        source: what was asked for.
        revision: of the repository.
        origin: the hub's, to be shown.
        token: whether one was sent.
    """
    page = f"{origin}/{source.repo}"
    match headers.get("x-error-code", ""), status:
        case "GatedRepo", _:
            words = f"{source.repo} is gated: accept its terms at {page} and set HF_TOKEN to a token of yours"
            return AuthenticationFailed(words)
        case "EntryNotFound", _:
            return ModelNotFound(f"{source.repo} has no file {source.file}; see {page}/tree/{revision}")
        case "RevisionNotFound", _:
            return ModelNotFound(f"{source.repo} has no revision {revision}; see {page}/tree/main")
        case _, 401 | 404:  # the hub does not tell what is private from what is not there
            hint = "is HF_TOKEN one that may see it?" if token else "a private one needs HF_TOKEN"
            return ModelNotFound(f"{origin} shows no repository {source.repo}; check the name ({hint})")
    return _by_status(status, headers, source.repo, origin)


def _by_status(status: int, headers: Mapping[str, str], repo: str, origin: str) -> LLMError:
    if status == 403:
        return AuthenticationFailed(f"{origin} does not let this HF_TOKEN read {repo}")
    if status == 429:
        wait = headers.get("retry-after", "")
        after = float(wait) if wait.isdecimal() else None
        return RateLimited(f"{origin} was asked too often; try later or set HF_TOKEN", retry_after=after)
    if status >= 500:
        return ServerError(f"{origin} failed (HTTP {status})")
    return BadReply(f"{origin} answers with HTTP {status}; check HF_ENDPOINT")
