"""What agents hand in, made fit to keep: of the right kinds, storable, no larger than one can judge. Pure.

A text that is too long is cut with a mark; a payload is never cut, since it is what would be done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, get_args

from agents.context import ModelCall
from agents.errors import InvalidProposal
from agents.proposal import Approvers, DecidedBy, Evidence, Proposal, Risk, canonical_json, sha256_of

MAX_TITLE = 200
MAX_EXPLANATION = 4_000
MAX_SENTENCE = 1_000
"""Characters of one reason, one constraint, one note, one comment."""
MAX_EXCERPT = 2_000
MAX_KEY = 200
"""Characters of a kind or a precondition; a longer fingerprint is replaced by its hash."""
MAX_PIECES = 100
"""Reasons, constraints, pieces of evidence, call ids and approvers of one proposal, each."""
MAX_PAYLOAD_BYTES = 64 * 1024
MAX_UNDO_BYTES = 1024 * 1024
MAX_ERROR = 2_000
MAX_CALL_TEXT = 64_000
"""Characters of a kept prompt or reply."""

MAX_RETURNED = 10_000
"""Most proposals of one run that are looked at; the others are only counted."""
MAX_NOTES = 20

_MAX_NUMBER = 2**53
_REPLACEMENT = "\ufffd"


def storable(text: str, limit: int) -> str:
    """`text` as SQLite and UTF-8 can hold it, cut at `limit` characters with a mark."""
    if len(text) > limit:
        text = f"{text[: limit - 1]}…"
    if text.isascii():
        return text.replace("\0", _REPLACEMENT)
    fit = "".join(_REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in text)
    return fit.replace("\0", _REPLACEMENT)


def one_line(text: str, limit: int) -> str:
    """As `storable`, with every run of white space and line breaks as one space."""
    # Shortened first: a text of many megabytes must not keep the loop from its other work.
    return storable(" ".join(text[: 8 * limit].split()), limit)


def fit_payload(payload: Any) -> None:
    """Check a payload's size.

    Raises:
        InvalidProposal: it is larger than `MAX_PAYLOAD_BYTES` as JSON.
    """
    size = json_bytes(payload)
    if size > MAX_PAYLOAD_BYTES:
        msg = f"its payload is {size:,} bytes of JSON, more than the {MAX_PAYLOAD_BYTES:,} that are kept"
        raise InvalidProposal(msg)


def json_bytes(value: Any) -> int:
    """Size of a value as JSON.

    Raises:
        InvalidProposal: the value is not JSON.
    """
    return len(canonical_json(value).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands for something that a worker could not hand over.

    Attributes:
        why: what is wrong with it, as `fit_proposal` says it.
    """

    why: str


def fit_proposal(candidate: Any, agent: str) -> Proposal:
    """A proposal of `agent` with only the fields that are an agent's to fill in.

    Args:
        candidate: what the agent handed in.
        agent: the agent's own name, whatever the candidate says.

    Raises:
        InvalidProposal: it is no proposal, or cannot be kept; the message names the field.
    """
    if isinstance(candidate, Refused):
        raise InvalidProposal(candidate.why)
    if not isinstance(candidate, Proposal):
        msg = f"a {type(candidate).__name__} is no Proposal"
        raise InvalidProposal(msg)
    fit_payload(candidate.payload)
    _check_kinds(candidate)
    return Proposal(
        agent=agent,
        kind=one_line(_text(candidate.kind, "kind"), MAX_KEY),
        title=one_line(_text(candidate.title, "title"), MAX_TITLE),
        explanation=storable(_text(candidate.explanation, "explanation"), MAX_EXPLANATION),
        payload=candidate.payload,
        fingerprint=_fingerprint(_text(candidate.fingerprint, "fingerprint")),
        reasons=_sentences(candidate.reasons, "reasons"),
        constraints=_sentences(candidate.constraints, "constraints"),
        confidence=None if candidate.confidence is None else float(candidate.confidence),
        decided_by=candidate.decided_by,
        evidence=_evidence(candidate.evidence),
        call_ids=_sentences(candidate.call_ids, "call_ids"),
        risk=candidate.risk,
        reversible=candidate.reversible,
        precondition=candidate.precondition,
        approvers=_approvers(candidate.approvers),
        expires_at=candidate.expires_at,
    )


def fit_call(call: ModelCall) -> ModelCall:
    """A model call whose texts can be kept."""
    changes: dict[str, Any] = {
        name: storable(str(getattr(call, name)), MAX_KEY) for name in ("id", "backend", "model", "template")
    }
    for name in ("prompt", "system_prompt", "reply"):
        value = getattr(call, name)
        changes[name] = None if value is None else storable(str(value), MAX_CALL_TEXT)
    for name in ("prompt_tokens", "completion_tokens"):
        changes[name] = min(max(int(getattr(call, name)), 0), _MAX_NUMBER)
    return replace(call, **changes)


def fit_returned(returned: Any) -> tuple[tuple[Any, ...], int]:
    """What `analyze` returned, as far as it is looked at, and how many more there were.

    Raises:
        InvalidProposal: it is no list.
    """
    if not isinstance(returned, list | tuple):
        msg = f"analyze() returned a {type(returned).__name__}, not a list of Proposals"
        raise InvalidProposal(msg)
    return tuple(returned[:MAX_RETURNED]), max(0, len(returned) - MAX_RETURNED)


def fit_notes(notes: Iterable[Any]) -> tuple[str, ...]:
    """Notes that can be kept, the first ones."""
    return tuple(one_line(str(note), MAX_SENTENCE) for note in islice(notes, MAX_NOTES))


def _check_kinds(candidate: Proposal) -> None:
    fine = {
        "decided_by": candidate.decided_by in get_args(DecidedBy),
        "risk": candidate.risk in get_args(Risk),
        "reversible": isinstance(candidate.reversible, bool),
        "approvers": isinstance(candidate.approvers, Approvers),
        "expires_at": candidate.expires_at is None or isinstance(candidate.expires_at, datetime),
        "precondition": candidate.precondition is None
        or storable(_text(candidate.precondition, "precondition"), MAX_KEY) == candidate.precondition,
    }
    for name, ok in fine.items():
        if not ok:
            msg = f"its {name} cannot be {getattr(candidate, name)!r:.100}"
            raise InvalidProposal(msg)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        msg = f"its {name} is a {type(value).__name__}, not a text"
        raise InvalidProposal(msg)
    return value


def _fingerprint(text: str) -> str:
    fit = storable(text, MAX_KEY)
    return fit if fit == text else sha256_of(text)


def _sentences(values: Any, name: str) -> tuple[str, ...]:
    pieces = _pieces(values, name)
    kept = tuple(storable(_text(piece, name), MAX_SENTENCE) for piece in pieces[:MAX_PIECES])
    more = len(pieces) - MAX_PIECES
    return kept if more <= 0 else (*kept[:-1], f"… and {more + 1} more")


def _evidence(values: Any) -> tuple[Evidence, ...]:
    pieces = _pieces(values, "evidence")
    if not all(isinstance(piece, Evidence) for piece in pieces):
        msg = "its evidence holds something that is no Evidence"
        raise InvalidProposal(msg)
    kept = tuple(_fit_evidence(piece) for piece in pieces[:MAX_PIECES])
    rest = pieces[MAX_PIECES:]
    if not rest:
        return kept
    # What is not kept still counts: new evidence brings back what a person turned down.
    summary = sha256_of(*(sha256_of(p.source, p.locator, p.sha256) for p in rest))
    return (*kept, Evidence(source="…", locator=f"{len(rest)} more pieces", excerpt="", sha256=summary))


def _fit_evidence(piece: Evidence) -> Evidence:
    return Evidence(
        source=storable(_text(piece.source, "evidence"), MAX_SENTENCE),
        locator=storable(_text(piece.locator, "evidence"), MAX_SENTENCE),
        excerpt=storable(_text(piece.excerpt, "evidence"), MAX_EXCERPT),
        sha256=storable(_text(piece.sha256, "evidence"), MAX_KEY),
    )


def _approvers(approvers: Approvers) -> Approvers:
    people = _pieces(approvers.people, "approvers")
    if len(people) > MAX_PIECES:
        msg = f"it names {len(people)} approvers; at most {MAX_PIECES} can be kept"
        raise InvalidProposal(msg)
    names = tuple(storable(_text(person, "approvers"), MAX_KEY) for person in people)
    return Approvers(mode=approvers.mode, people=names, quorum=approvers.quorum)


def _pieces(values: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list):
        msg = f"its {name} is a {type(values).__name__}, not a list"
        raise InvalidProposal(msg)
    return tuple(values)
