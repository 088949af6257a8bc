"""Webhooks: `POST /hooks/NAME` with the agent's token makes it due."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.errors import DaemonError
from daemon.triggers.tokens import HookTokens

MOST_BYTES = 64 * 1024
"""A longer body is refused; a shorter one is read and thrown away."""

BODY_LIMIT_S = 5.0
"""A body that takes longer to come is not waited for."""

MOST_A_MINUTE = 30

_MINUTE_S = 60.0
_ASK = {"WWW-Authenticate": "Bearer"}
_CLOSE = {"Connection": "close"}  # what is left of the body is not read

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Hooks:
    """What the webhooks do.

    Attributes:
        tokens: who may.
        hooked: the agents that have `webhook = true` now.
        take: makes an agent due; returns "" when that was done, else why it cannot be now.
    """

    tokens: HookTokens
    hooked: Callable[[], Collection[str]]
    take: Callable[[str], Awaitable[str]]
    _calls: dict[str, deque[float]] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)

    def routes(self) -> list[Route]:
        """The routes, for POST only."""
        return [Route("/hooks/{agent}", self.hook, methods=["POST"])]

    async def hook(self, request: Request) -> Response:
        """202 when the agent is due now; else why not, and nothing about agents to whoever has no token."""
        agent = request.path_params["agent"]
        if not await self._is_allowed(agent, request.headers.get("authorization", "")):
            return _refusal(401, "a valid token is needed: Authorization: Bearer TOKEN", _ASK)
        refused = await _body_refused(request)
        if refused is not None:
            return refused
        wait = self._seconds_to_wait(agent)
        if wait:
            too_often = f"at most {MOST_A_MINUTE} requests a minute for each agent"
            return _refusal(429, too_often, {"Retry-After": str(wait)})
        try:
            reason = await self.take(agent)
        except DaemonError as error:
            reason = str(error)
        if reason:
            return JSONResponse({"agent": agent, "taken": False, "error": reason}, status_code=503)
        return JSONResponse({"agent": agent, "taken": True}, status_code=202)

    async def _is_allowed(self, agent: str, header: str) -> bool:
        kind, _, token = header.partition(" ")
        fits = await asyncio.to_thread(self.tokens.fits, agent, token.strip())
        known = agent in self.hooked()
        allowed = fits and known and kind.lower() == "bearer"
        if allowed:
            self._refused.discard(agent)
        elif known and agent not in self._refused:  # once until it works again
            self._refused.add(agent)
            _log.warning("a request for a webhook had no valid token", extra={"agent": agent})
        return allowed

    def _seconds_to_wait(self, agent: str) -> int:
        """0 when the agent may be asked for again; counts this request then."""
        calls, now = self._calls.setdefault(agent, deque()), time.monotonic()
        while calls and now - calls[0] >= _MINUTE_S:
            calls.popleft()
        if len(calls) >= MOST_A_MINUTE:
            return math.ceil(calls[0] + _MINUTE_S - now) or 1
        calls.append(now)
        return 0


async def _body_refused(request: Request) -> Response | None:
    """Read the body and throw it away; an answer when it is too long or does not come."""
    too_long = _refusal(
        413, f"the body may have {MOST_BYTES} bytes; it is not handed to the agent anyway", _CLOSE
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        return too_long
    size = 0
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BYTES:
                    return too_long
    except TimeoutError:
        return _refusal(408, "the body did not come", _CLOSE)
    except ClientDisconnect:
        return _refusal(400, "the body did not come whole")
    return None


def _refusal(status: int, error: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": error}, status_code=status, headers=headers)
