"""A refusing HTTP status to our error tree: pure; the status is trusted before the text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from llm.errors import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    ConfigurationError,
    DeadlineExceeded,
    LLMError,
    ModelNotFound,
    NotSupported,
    RateLimited,
    ServerError,
)
from llm.wire.common import decode
from llm.wire.redact import redact

_QUOTA = frozenset({"insufficient_quota", "billing_error", "billing_hard_limit_reached"})
_STATUS: Mapping[str, int] = {
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What the words of an error that comes inside a 200 would have been as a status."""

# Patterns as texts: they are compiled, and kept by `re`, when a server first refuses something.
_SPENT = (
    r"(?i)(spend|spending|usage|monthly) (limit|cap)|credit balance is too low|"
    r"insufficient (balance|credits?)"
)
"""Anthropic answers 400 when a limit that the account's owner set is reached."""

_CANNOT = r"does not support (chat|tools|thinking|embeddings?|generate|insert|images|vision)\b"

_LOCATION = r"(?i)(?:[a-z][a-z0-9+.-]*:)?//(?:[^/@]*@)?([^/?#@]+)"
_MODEL = r"(?i)\bmodels?\b"
_SPEAKING = ("error", "message", "detail")
_WRAPPINGS = 4
"""Ollama wraps its runner's error object as text in its own; more layers than this are not looked through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A reply with a status of 300 or more, or one that carries an error inside a 200.

    Attributes:
        server: where it came from, as scheme://host:port.
        status: the HTTP status.
        headers: with lower-case names.
        body: as much of it as could be read.
        secrets: what must not be shown.
    """

    server: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    secrets: Iterable[str] = field(default=(), repr=False)

    def error(self) -> LLMError:
        """The error that this reply means."""
        said = _said(self.body)
        text = f"{self.server} answered {self.status}"
        if said.message:
            text += f": {redact(said.message, self.secrets)}"
        error = _translate(self, said, text)
        told = self.headers.get("x-should-retry", "").strip().lower()
        if told in {"true", "false"} and not (isinstance(error, RateLimited) and error.quota):
            error.retryable = told == "true"
        return error


@dataclass(frozen=True, slots=True)
class _Said:
    """What an error body says: the message for people, and the words for programs."""

    message: str
    words: frozenset[str] = frozenset()


def _said(body: bytes) -> _Said:
    try:
        payload: Any = decode(body)
    except BadReply:
        text = body.decode("utf-8", errors="replace").strip()
        return _Said("" if text.startswith("<") else text)  # an HTML page says nothing in one line
    return unwrap(payload)


def unwrap(payload: Any) -> _Said:
    """Find the message in the shapes that servers use, text wrapped in text included.

    Seen: {"error": text}, {"error": {"message", "type", "code"}}, {"message": text}, {"detail": text}.
    """
    words: set[str] = set()
    for _ in range(_WRAPPINGS):
        if isinstance(payload, str):
            payload = _inner(payload)
        if not isinstance(payload, dict):
            break
        words |= {payload[k] for k in ("type", "code") if isinstance(payload.get(k), str)}
        payload = next((payload[k] for k in _SPEAKING if payload.get(k)), "")
    return _Said(payload if isinstance(payload, str) else json.dumps(payload), frozenset(words))


def inner_status(payload: Mapping[str, Any]) -> int:
    """The status that an error inside a 200 names, as a number or in words; else 500: the server failed."""
    error = payload.get("error")
    if not isinstance(error, Mapping):
        return 500
    codes = (error.get("code"), error.get("status"), error.get("type"))
    named = (_STATUS.get(code, 0) if isinstance(code, str) else code for code in codes)
    return next((code for code in named if type(code) is int and 400 <= code < 600), 500)


def _inner(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_KEY = "; check LLM_API_KEY and what its account may use"
_SLOW = "; the server itself ran out of time"
_PLAIN: Mapping[int, tuple[type[AuthenticationFailed | DeadlineExceeded], str]] = {
    401: (AuthenticationFailed, _KEY),
    402: (AuthenticationFailed, _KEY),
    403: (AuthenticationFailed, _KEY),
    408: (DeadlineExceeded, _SLOW),
    504: (DeadlineExceeded, _SLOW),
}


def _translate(refusal: Refusal, said: _Said, text: str) -> LLMError:
    status = refusal.status
    if 300 <= status < 400:
        return _redirected(refusal)
    if status in _PLAIN:
        kind, hint = _PLAIN[status]
        return kind(text + hint)
    if status == 404 or (status == 400 and "model_not_found" in said.words):
        return _not_found(said, text)
    if status == 429 or (status == 400 and re.search(_SPENT, said.message)):
        return _limited(refusal, said, text)
    if status == 501 or (status == 400 and re.search(_CANNOT, said.message)):
        return NotSupported(text)
    return _failed(refusal, text)


def _failed(refusal: Refusal, text: str) -> LLMError:
    # 409 and 425 are about the moment and not about the request; vendors' own clients send it again.
    if refusal.status < 500 and refusal.status not in {409, 425}:
        return BadRequest(text)
    wait = retry_after(refusal.headers)
    hint = "" if wait is None else f"; it asks to wait {wait:g} s"
    return ServerError(text + hint, retry_after=wait)


def _redirected(refusal: Refusal) -> ConfigurationError:
    """A redirect would carry the prompt, and perhaps the key, to a place that nobody configured."""
    target = re.match(_LOCATION, refusal.headers.get("location", ""))
    where = redact(target[1], refusal.secrets) if target else "another path"
    return ConfigurationError(
        f"{refusal.server} redirects to {where} (HTTP {refusal.status}), which is refused so that prompt and "
        "key go nowhere else; set LLM_API_BASE to the final address"
    )


def _not_found(said: _Said, text: str) -> BadRequest:
    if "model_not_found" in said.words or re.search(_MODEL, said.message):
        return ModelNotFound(f"{text}; set LLM_MODEL to a model that this server lists")
    return BadRequest(f"{text}; the path may be wrong: check LLM_API_BASE")


def _limited(refusal: Refusal, said: _Said, text: str) -> RateLimited:
    wait = retry_after(refusal.headers)
    # Anthropic's monthly spend limit is a rate_limit_error that names no time to wait.
    quota = (
        bool(said.words & _QUOTA)
        or re.search(_SPENT, said.message) is not None
        or (wait is None and {"error", "rate_limit_error"} <= said.words)
    )
    if quota:
        return RateLimited(
            f"{text}; the account's quota or spend limit is used up", quota=True, retry_after=wait
        )
    hint = "try again later" if wait is None else f"it asks to wait {wait:g} s"
    return RateLimited(f"{text}; {hint}", retry_after=wait)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, else `Retry-After` as seconds or HTTP date.

    The date is compared with the server's own `Date`, because a Raspberry Pi may not know the time.
    """
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after", "")
    seconds = _seconds(text)
    if seconds is not None or not text:
        return seconds
    until = _date(text)
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
