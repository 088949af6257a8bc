"""Nothing is given or received twice: shares, splits, what open proposals hold back, the order of serving."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.builtin.matchmaker.agent import Matchmaker
from agents.builtin.matchmaker.allocation import Stock, amounts, natural
from agents.builtin.matchmaker.quantities import number_text
from agents.builtin.matchmaker.units import convert, parse_unit
from agents.proposal import ProposalStatus
from agents.testing import NOON, run_agent
from tests.support.matchmaker_data import (
    examples_in,
    kept,
    need,
    offer,
    pairs_of,
    proposals_of,
    simple_folder,
)

MASS = st.sampled_from(["kg", "g", "lb", "oz"])
COUNT = st.sampled_from(["pieces", "dozen", "loaves"])
UNITS = st.one_of(st.tuples(MASS, MASS), st.tuples(COUNT, COUNT))
AMOUNT = st.decimals("0.01", 5000, places=2)


@given(AMOUNT, AMOUNT, UNITS)
def test_a_share_is_never_more_than_is_free_or_asked_for(
    free: Decimal, asked: Decimal, units: tuple[str, str]
) -> None:
    one, other = parse_unit(units[0]), parse_unit(units[1])
    quantity, taken = amounts(free, one, asked, other)
    assert 0 <= quantity <= asked
    assert 0 <= taken <= free
    if one != other and quantity > 0:  # the need is credited with what is taken, up to a grain of either unit
        difference = convert(taken, one, other) - Fraction(quantity)
        assert 0 <= difference <= Fraction(other.grain) + convert(one.grain, one, other)


@given(
    st.lists(st.tuples(AMOUNT, MASS), min_size=1, max_size=6),
    st.lists(st.tuples(AMOUNT, MASS), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40),
)
def test_however_shares_are_taken_nothing_is_promised_twice(
    offers: list[tuple[Decimal, str]], needs: list[tuple[Decimal, str]], order: list[tuple[int, int]]
) -> None:
    given_ = [offer("rice", number_text(q), u, id=f"O{n}") for n, (q, u) in enumerate(offers)]
    wanted = [need("rice", number_text(q), u, id=f"N{n}") for n, (q, u) in enumerate(needs)]
    stock = Stock({r.id: r for r in given_}, {r.id: r for r in wanted})
    taken: dict[str, Decimal] = {}
    for one, other in order:
        if one < len(given_) and other < len(wanted):
            share = stock.share(given_[one], wanted[other])
            if share is not None:
                stock.take(given_[one], wanted[other], share)
                assert share.offer_left >= 0
                assert share.need_left >= 0
                taken[f"O{one}"] = taken.get(f"O{one}", Decimal(0)) + share.offer_quantity
                taken[f"N{other}"] = taken.get(f"N{other}", Decimal(0)) + share.quantity
    for record in (*given_, *wanted):
        assert taken.get(record.id, Decimal(0)) <= record.quantity


@pytest.mark.parametrize(
    ("free", "asked", "expected"),
    [
        (("10", "kg"), ("4", "kg"), ("4", "4")),
        (("1.5", "kg"), ("4", "kg"), ("1.5", "1.5")),
        (("10", "lb"), ("2", "kg"), ("2", "4.41")),
        (("10", "lb"), ("6", "kg"), ("4.53", "10")),
        (("3", "dozen"), ("18", "pieces"), ("18", "1.5")),
        (("30", "pieces"), ("2", "dozen"), ("2", "24")),
        (("2.5", "pieces"), ("4", "pieces"), ("2", "2")),
        (("500", "g"), ("2", "kg"), ("0.5", "500")),
        (("90", "minutes"), ("1", "hour"), ("1", "60")),
        (("0.4", "pieces"), ("1", "piece"), ("0", "0")),
    ],
)
def test_shares_are_whole_where_things_cannot_be_cut_and_exact_within_one_unit(
    free: tuple[str, str], asked: tuple[str, str], expected: tuple[str, str]
) -> None:
    found = amounts(Decimal(free[0]), parse_unit(free[1]), Decimal(asked[0]), parse_unit(asked[1]))
    assert found == (Decimal(expected[0]), Decimal(expected[1]))


def test_ids_are_served_in_the_order_in_which_people_count() -> None:
    assert sorted(["O10", "O2", "O1", "x"], key=natural) == ["x", "O1", "O2", "O10"]


async def test_an_offer_is_split_and_a_need_is_served_by_several(tmp_path: Path) -> None:
    folder = simple_folder(
        tmp_path,
        ["O1,tomatoes,10,kg", "O2,tomatoes,3,kg"],
        ["N1,tomatoes,4,kg", "N2,tomates,5,kg", "N3,vegetables,6,kg"],
    )
    found = await proposals_of(folder)
    given_ = {pair: p.payload["quantity"] for p in found for pair in pairs_of([p])}
    assert given_ == {("O1", "N1"): "4", ("O1", "N2"): "5", ("O1", "N3"): "1", ("O2", "N3"): "3"}


async def test_an_exact_thing_is_served_before_a_category_and_what_is_urgent_before_what_is_not(
    tmp_path: Path,
) -> None:
    header = "id,item,quantity,unit,until"
    tmp_path.joinpath("offers.csv").write_text(f"{header}\nO1,tomatoes,5,kg,\n", encoding="utf-8")
    needs = ["N1,vegetables,5,kg,2026-05-21", "N2,tomatoes,3,kg,", "N3,tomatoes,3,kg,2026-06-30"]
    tmp_path.joinpath("needs.csv").write_text("\n".join([header, *needs]) + "\n", encoding="utf-8")
    found = await proposals_of(tmp_path)
    assert [(p.payload["need_id"], p.payload["quantity"]) for p in found] == [("N3", "3"), ("N2", "2")]


async def test_a_rest_that_is_not_worth_the_way_is_not_proposed_but_a_small_whole_offer_is(
    tmp_path: Path,
) -> None:
    folder = simple_folder(
        tmp_path, ["O1,rice,10,kg", "O2,beans,1,kg"], ["N1,rice,9.5,kg", "N2,rice,20,kg", "N3,beans,50,kg"]
    )
    assert pairs_of(await proposals_of(folder)) == {("O1", "N1"), ("O2", "N3")}
    everything = pairs_of(await proposals_of(folder, smallest_share=0))
    assert everything == {("O1", "N1"), ("O1", "N2"), ("O2", "N3")}


async def test_what_open_proposals_promise_is_held_back_and_their_pairs_are_not_proposed_again(
    tmp_path: Path,
) -> None:
    folder = simple_folder(tmp_path, ["O1,rice,10,kg"], ["N1,rice,4,kg", "N2,rice,5,kg"])
    first = kept(await proposals_of(folder))
    settings = {"folder": str(folder)}
    again = await run_agent(Matchmaker, settings=settings, now=NOON, open_proposals=first)
    assert again.proposals == ()
    simple_folder(tmp_path, ["O1,rice,10,kg"], ["N1,rice,4,kg", "N2,rice,5,kg", "N3,rice,8,kg"])
    more = await run_agent(Matchmaker, settings=settings, now=NOON, open_proposals=first)
    (new,) = more.proposals
    assert (new.payload["need_id"], new.payload["quantity"]) == ("N3", "1")


async def test_a_closed_proposal_holds_nothing_back(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path, ["O1,rice,10,kg"], ["N1,rice,4,kg"])
    (first,) = await proposals_of(folder)
    closed = first.with_changes(id=1, status=ProposalStatus.REJECTED)
    run = await run_agent(Matchmaker, settings={"folder": str(folder)}, now=NOON, open_proposals=[closed])
    assert pairs_of(run.proposals) == {("O1", "N1")}


async def test_what_was_turned_down_is_free_for_somebody_else_until_its_evidence_changes(
    tmp_path: Path,
) -> None:
    folder = simple_folder(tmp_path, ["O1,rice,4,kg"], ["N1,rice,4,kg", "N2,rice,4,kg"])
    settings = {"folder": str(folder)}
    (first,) = await proposals_of(folder)
    assert first.payload["need_id"] == "N1"
    run = await run_agent(Matchmaker, settings=settings, now=NOON, turned_down=[first])
    assert pairs_of(run.proposals) == {("O1", "N1"), ("O1", "N2")}  # the daemon leaves the first one out
    simple_folder(tmp_path, ["O1,rice,4,kg"], ["N1,white rice,4,kg", "N2,oats,4,kg"])
    changed = await run_agent(Matchmaker, settings=settings, now=NOON, turned_down=[first])
    assert [p.evidence_hash == first.evidence_hash for p in changed.proposals] == [False]
    assert pairs_of(changed.proposals) == {("O1", "N1")}


async def test_an_open_proposal_whose_payload_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path, ["O1,rice,10,kg"], ["N1,rice,4,kg"])
    (first,) = await proposals_of(folder)
    strange = first.with_changes(id=7, payload={"offer": "O1"})
    run = await run_agent(Matchmaker, settings={"folder": str(folder)}, now=NOON, open_proposals=[strange])
    assert any("the payload of proposal 7 is no match: " in note for note in run.notes)


async def test_over_the_examples_no_offer_and_no_need_is_overdrawn(tmp_path: Path) -> None:
    agent_proposals = await proposals_of(examples_in(tmp_path / "community"))
    sums: dict[str, Decimal] = {}
    for proposal in agent_proposals:
        for key, amount in (("offer_id", "offer_quantity"), ("need_id", "quantity")):
            record = str(proposal.payload[key])
            sums[record] = sums.get(record, Decimal(0)) + Decimal(str(proposal.payload[amount]))
    rows = [
        line.split(",")
        for name in ("offers", "needs")
        for line in _lines(tmp_path / "community" / f"{name}.csv")
    ]
    stock = {row[0]: Decimal(row[2]) for row in rows}
    assert all(total <= stock[record] for record, total in sums.items())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[1:]
