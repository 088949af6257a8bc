"""Proposal: a frozen value, its life cycle, and the hashes that approvals are bound to."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import InvalidProposal
from agents.proposal import (
    CLOSED,
    TRANSITIONS,
    Approvers,
    Decision,
    Evidence,
    Proposal,
    ProposalStatus,
    canonical_json,
    sha256_of,
)

NOON = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)

# The life cycle as a person would draw it; every arrow that is not here must not exist.
ARROWS = {
    "pending": "snoozed approved rejected expired superseded withdrawn",
    "snoozed": "pending approved rejected expired withdrawn",
    "approved": "applying rejected withdrawn",
    "applying": "applied apply_failed withdrawn",
    "apply_failed": "applying needs_attention rejected withdrawn",
    "needs_attention": "applying rejected withdrawn",
    "applied": "undoing",
    "undoing": "undone applied",
    "undone": "",
    "rejected": "",
    "expired": "",
    "superseded": "",
    "withdrawn": "",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
payloads = st.dictionaries(st.text(), json_values, max_size=4)
evidences = st.lists(st.builds(Evidence.of, st.text(), st.text(), st.text()), max_size=4)


def proposal(**changes: Any) -> Proposal:
    fields: dict[str, Any] = {
        "agent": "pantry",
        "kind": "cook",
        "title": "Cook the tomatoes",
        "explanation": "They spoil on Friday.",
        "payload": {"items": ["tomatoes"]},
        "fingerprint": "tomatoes",
    }
    return Proposal(**{**fields, **changes})


@pytest.mark.parametrize("before", ProposalStatus)
@pytest.mark.parametrize("after", ProposalStatus)
def test_the_life_cycle_has_exactly_the_arrows_that_were_drawn(
    before: ProposalStatus, after: ProposalStatus
) -> None:
    assert before.may_become(after) == (after.value in ARROWS[before.value].split())


def test_every_status_has_its_place_in_the_life_cycle() -> None:
    assert set(TRANSITIONS) == set(ProposalStatus)


def test_the_life_cycle_cannot_be_changed_at_run_time() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[ProposalStatus.UNDONE] = frozenset()  # type: ignore[index]


def test_every_status_can_be_reached_from_pending() -> None:
    reached, edge = {ProposalStatus.PENDING}, {ProposalStatus.PENDING}
    while edge:
        edge = {after for before in edge for after in TRANSITIONS[before]} - reached
        reached |= edge
    assert reached == set(ProposalStatus)


def test_nothing_is_applied_without_having_been_approved() -> None:
    """Without `approved` the statuses that change the world are out of reach."""
    reached, edge = {ProposalStatus.PENDING}, {ProposalStatus.PENDING}
    while edge:
        edge = {after for before in edge for after in TRANSITIONS[before]} - reached
        edge -= {ProposalStatus.APPROVED}
        reached |= edge
    assert not reached & {ProposalStatus.APPLYING, ProposalStatus.APPLIED, ProposalStatus.UNDONE}


def test_what_is_closed_waits_for_nothing_and_only_an_applied_one_can_move_on() -> None:
    assert {status for status in CLOSED if TRANSITIONS[status]} == {ProposalStatus.APPLIED}
    assert {status for status in ProposalStatus if not status.is_open} == CLOSED


@pytest.mark.parametrize("name", ["agent", "kind", "title", "fingerprint"])
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_a_proposal_needs_its_names(name: str, empty: str) -> None:
    with pytest.raises(InvalidProposal, match=name):
        proposal(**{name: empty})


@pytest.mark.parametrize("confidence", [-0.01, 1.01, float("nan"), float("inf")])
def test_confidence_is_from_0_to_1(confidence: float) -> None:
    with pytest.raises(InvalidProposal, match="confidence"):
        proposal(confidence=confidence)


@pytest.mark.parametrize("confidence", [None, 0, 0.5, 1])
def test_confidence_may_be_left_out_or_be_at_its_ends(confidence: float | None) -> None:
    assert proposal(confidence=confidence).confidence == confidence


@pytest.mark.parametrize("name", ["expires_at", "created_at", "updated_at", "snoozed_until"])
def test_a_time_without_a_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidProposal, match=name):
        proposal(**{name: NOON.replace(tzinfo=None)})
    assert getattr(proposal(**{name: NOON}), name) == NOON


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    east = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert proposal(expires_at=east).expires_at == NOON


def test_a_proposal_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        proposal().title = "Another"  # type: ignore[misc]


def test_the_payload_is_a_copy_that_later_changes_of_the_original_do_not_reach() -> None:
    items = ["tomatoes"]
    made = proposal(payload={"items": items})
    items.append("milk")
    assert made.payload == {"items": ["tomatoes"]}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), NOON, object(), b"bytes", {1, 2}, {("a", "b"): 1}, {1: "a", "1": "b"}],
    ids=lambda value: "object" if type(value) is object else repr(value),  # the same name in every process
)
def test_a_payload_that_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidProposal, match="not a JSON value"):
        proposal(payload={"value": value})


def test_a_payload_without_an_end_is_refused() -> None:
    circle: dict[str, Any] = {}
    circle["inside"] = circle
    with pytest.raises(InvalidProposal):
        proposal(payload=circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidProposal):
        proposal(payload={"deep": deep})


@given(payloads)
def test_canonical_json_says_the_same_value_in_one_text(payload: dict[str, Any]) -> None:
    backwards = dict(reversed(payload.items()))
    assert canonical_json(backwards) == canonical_json(payload)
    assert json.loads(canonical_json(payload)) == payload


@given(payloads)
def test_the_digest_survives_a_round_through_a_store(payload: dict[str, Any]) -> None:
    made = proposal(payload=payload)
    kept = json.loads(json.dumps(made.payload))
    assert proposal(payload=kept).digest == made.digest


@given(payloads, payloads)
def test_another_payload_has_another_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = canonical_json(one) == canonical_json(other)
    assert (proposal(payload=one).digest == proposal(payload=other).digest) == same


@pytest.mark.parametrize("name", ["agent", "kind", "precondition"])
def test_the_digest_depends_on_what_would_be_done(name: str) -> None:
    assert proposal(**{name: "another"}).digest != proposal().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "x"},
        {"explanation": "x"},
        {"confidence": 0.1},
        {"status": ProposalStatus.APPLIED},
        {"id": 7},
    ],
    ids=str,
)
def test_the_digest_does_not_depend_on_how_it_is_told(changes: dict[str, Any]) -> None:
    assert proposal(**changes).digest == proposal().digest


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_texts_that_are_hashed_together_are_kept_apart(one: list[str], other: list[str]) -> None:
    assert (sha256_of(*one) == sha256_of(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        (("a\x1fb",), ("a", "b")),
        (("1:a",), ("a",)),
        (("a", "1:b"), ("a1:b",)),
    ],
)
def test_no_text_can_pass_for_two(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert sha256_of(*one) != sha256_of(*other)


def test_a_text_that_is_no_valid_unicode_has_a_hash_too() -> None:
    assert len(sha256_of("half \ud83d a pair")) == 64


@given(evidences, st.randoms(use_true_random=False))
def test_the_evidence_hash_does_not_depend_on_the_order(evidence: list[Evidence], random: Any) -> None:
    shuffled = random.sample(evidence, len(evidence))
    assert (
        proposal(evidence=tuple(shuffled)).evidence_hash == proposal(evidence=tuple(evidence)).evidence_hash
    )


@given(evidences, evidences)
def test_other_evidence_has_another_hash(one: list[Evidence], other: list[Evidence]) -> None:
    def key(items: list[Evidence]) -> list[tuple[str, str, str]]:
        return sorted((e.source, e.locator, e.sha256) for e in items)

    same = proposal(evidence=tuple(one)).evidence_hash == proposal(evidence=tuple(other)).evidence_hash
    assert same == (key(one) == key(other))


def test_evidence_cannot_move_a_word_from_its_source_to_its_locator_unseen() -> None:
    one = Evidence(source="a\x1eb", locator="c", excerpt="", sha256="d")
    other = Evidence(source="a", locator="b\x1ec", excerpt="", sha256="d")
    assert proposal(evidence=(one,)).evidence_hash != proposal(evidence=(other,)).evidence_hash


def test_evidence_of_an_excerpt_has_the_excerpts_hash() -> None:
    evidence = Evidence.of("pantry.csv", "line 3", "tomatoes, 2 kg")
    assert evidence.sha256 == sha256_of("tomatoes, 2 kg")


def test_only_approvals_of_exactly_what_would_be_done_count() -> None:
    first = proposal()
    seen = Decision(action="approve", by="ana", via="cli", at=NOON, digest=first.digest)
    stale = Decision(action="approve", by="luis", via="cli", at=NOON, digest="of something else")
    looked = Decision(action="edit", by="eva", via="cli", at=NOON, digest=first.digest)
    decided = first.with_changes(decisions=(seen, stale, looked))
    assert decided.approved_by == {"ana"}
    edited = decided.with_changes(payload={"items": ["milk"]}, original_payload=first.payload)
    assert edited.approved_by == frozenset()


@pytest.mark.parametrize(
    ("approvers", "approvals", "enough"),
    [
        (Approvers(), [], False),
        (Approvers(), ["anybody"], True),
        (Approvers(people=("ana",)), ["luis"], False),
        (Approvers(people=("ana", "luis")), ["luis"], True),
        (Approvers(mode="all", people=("ana", "luis")), ["ana"], False),
        (Approvers(mode="all", people=("ana", "luis")), ["ana", "ana", "eva"], False),
        (Approvers(mode="all", people=("ana", "luis")), ["luis", "ana"], True),
        (Approvers(mode="quorum", quorum=2), ["ana", "ana"], False),
        (Approvers(mode="quorum", quorum=2), ["ana", "luis"], True),
        (Approvers(mode="quorum", quorum=2, people=("a", "b", "c")), ["a", "x"], False),
        (Approvers(mode="quorum", quorum=2, people=("a", "b", "c")), ["c", "a"], True),
        (Approvers(mode="all", people=("ana", "ana")), ["ana"], True),
    ],
)
def test_approvers_are_satisfied_by_enough_of_the_right_people(
    approvers: Approvers, approvals: list[str], enough: bool
) -> None:
    assert approvers.satisfied_by(approvals) == enough


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "all"},
        {"mode": "quorum", "quorum": 0},
        {"mode": "quorum", "quorum": 3, "people": ("ana", "luis")},
        {"mode": "quorum", "quorum": 2, "people": ("ana", "ana")},
    ],
    ids=str,
)
def test_approvers_that_nobody_could_satisfy_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidProposal, match="approvers"):
        Approvers(**values)
