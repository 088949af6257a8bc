"""A match is written once and taken back byte for byte, in every style of file, with others in between."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import os
import random
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from agents.builtin.matchmaker.csv_source import CsvSource
from agents.builtin.matchmaker.csv_text import written_cell
from agents.builtin.matchmaker.journal import locked
from agents.builtin.matchmaker.ledger import Order
from agents.errors import AgentError, PreconditionFailed, UndoConflict
from agents.proposal import Proposal, canonical_json
from agents.testing import NOON
from tests.support.matchmaker_data import (
    contents,
    examples_in,
    folder_with,
    kept,
    matchmaker,
    proposals_of,
    simple_folder,
)

pytestmark = pytest.mark.usefixtures("untraced")

STYLES = [
    pytest.param({}, id="as shipped"),
    pytest.param({"delimiter": ";", "newline": "\r\n", "bom": "\ufeff"}, id="Excel in Spain"),
    pytest.param({"delimiter": "\t", "newline": "\r"}, id="tabs and an old Mac"),
    pytest.param({"delimiter": ";", "quote": True, "end": False}, id="all quoted, no last line ending"),
    pytest.param({"newline": "\r\n", "end": False, "comma": True}, id="decimal commas in a comma file"),
]


def restyled(folder: Path, style: Mapping[str, Any]) -> None:
    """Write both files again in another style."""
    delimiter, newline = style.get("delimiter", ","), style.get("newline", "\n")
    for name in ("offers.csv", "needs.csv"):
        rows = list(csv.reader(io.StringIO((folder / name).read_text(encoding="utf-8"), newline="")))
        for row in rows[1:] if style.get("comma") else ():
            row[2] = row[2].replace(".", ",")
        quoted = style.get("quote", False)
        lines = [delimiter.join(written_cell(cell, delimiter, quoted=quoted) for cell in row) for row in rows]
        text = style.get("bom", "") + newline.join(lines) + (newline if style.get("end", True) else "")
        (folder / name).write_bytes(text.encode("utf-8"))


async def applied(folder: Path, proposal: Proposal) -> Proposal:
    data = await matchmaker(folder).apply(proposal)
    assert data is not None
    canonical_json(dict(data))  # plain JSON data
    return proposal.with_changes(undo_data=data)


async def one_match(tmp_path: Path) -> tuple[Path, Proposal]:
    folder = simple_folder(
        tmp_path / "community", ["O1,rice,10.00,kg", "O2,beans,5,kg"], ["N1,arroz,4,kg", "N2,rice,3,kg"]
    )
    (first, *_) = kept(await proposals_of(folder))
    assert (first.payload["offer_id"], first.payload["need_id"]) == ("O1", "N1")
    return folder, first


def changed_lines(before: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
    one, other = before.splitlines(keepends=True), after.splitlines(keepends=True)
    assert len(one) == len(other)
    return [(a, b) for a, b in zip(one, other, strict=True) if a != b]


@pytest.mark.parametrize("style", STYLES)
async def test_everything_applied_and_undone_leaves_every_byte_as_it_was(
    tmp_path: Path, style: dict[str, Any]
) -> None:
    folder = examples_in(tmp_path / "community")
    restyled(folder, style)
    before = contents(folder)
    every = kept(await proposals_of(folder))
    assert len(every) > 20
    done = [await applied(folder, proposal) for proposal in every]
    assert len((folder / "matches.csv").read_bytes().splitlines()) == len(every) + 1
    for proposal in reversed(done):
        await matchmaker(folder).undo(proposal)
    assert contents(folder) == before


@pytest.mark.parametrize("style", STYLES)
async def test_undone_in_any_order_the_files_say_the_same_again(
    tmp_path: Path, style: dict[str, Any]
) -> None:
    folder = examples_in(tmp_path / "community")
    restyled(folder, style)
    before = contents(folder)
    done = [await applied(folder, proposal) for proposal in kept(await proposals_of(folder))]
    random.Random(2).shuffle(done)
    for proposal in done:
        await matchmaker(folder).undo(proposal)
    assert contents(folder) == before


@pytest.mark.parametrize("style", STYLES)
async def test_only_the_two_quantities_and_one_new_row_change(tmp_path: Path, style: dict[str, Any]) -> None:
    folder = examples_in(tmp_path / "community")
    restyled(folder, style)
    before = contents(folder)
    (first, *_) = kept(await proposals_of(folder))
    await applied(folder, first)
    after = contents(folder)
    assert sorted(after) == sorted([*before, "matches.csv"])
    for name in ("offers.csv", "needs.csv"):
        ((old, new),) = changed_lines(before[name], after[name])
        delimiter = style.get("delimiter", ",").encode()
        assert [
            n
            for n, (a, b) in enumerate(zip(old.split(delimiter), new.split(delimiter), strict=True))
            if a != b
        ] == [2]


async def test_a_match_looks_like_the_files_it_comes_from(tmp_path: Path) -> None:
    offers = "\ufeffid;item;quantity;unit\r\nO1;arroz;10,0;kg\r\n"
    folder = folder_with(tmp_path, offers, "id,item,quantity,unit\nN1,rice,2.5,kg\n")
    (proposal,) = kept(await proposals_of(folder))
    await applied(folder, proposal)
    text = (folder / "matches.csv").read_bytes().decode("utf-8")
    assert text.startswith("\ufeffproposal;offer;need;item;quantity;unit;")
    assert text.endswith(";10,0;7,5;2.5;0.0\r\n")
    assert ";O1;N1;arroz;2,5;kg;2,5;kg;" in text
    assert (folder / "offers.csv").read_bytes().decode("utf-8") == offers.replace("10,0", "7,5")


async def test_applied_again_it_happens_once_and_gives_the_same_undo_data(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    data = (await applied(folder, proposal)).undo_data
    after = contents(folder)
    assert (await applied(folder, proposal)).undo_data == data
    assert contents(folder) == after
    assert data is not None
    assert (data["offer"]["before"], data["offer"]["after"]) == ("O1,rice,10.00,kg", "O1,rice,6.00,kg")
    assert (data["need"]["before"], data["need"]["after"]) == ("N1,arroz,4,kg", "N1,arroz,0,kg")


async def test_the_undo_data_is_the_same_although_other_matches_came_in_between(tmp_path: Path) -> None:
    folder, first = await one_match(tmp_path)
    (second,) = [p for p in kept(await proposals_of(folder), first=5) if p.payload["need_id"] == "N2"]
    data = (await applied(folder, first)).undo_data
    await applied(folder, second)
    assert (await applied(folder, first)).undo_data == data


async def test_the_same_number_from_another_database_is_another_match(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    await applied(folder, proposal)
    (folder / "needs.csv").write_text(
        "id,item,quantity,unit\nN1,arroz,4,kg\nN2,rice,3,kg\n", encoding="utf-8"
    )
    await applied(folder, proposal.with_changes(run_id="a run of a new database"))
    assert (folder / "offers.csv").read_text(encoding="utf-8").splitlines()[1] == "O1,rice,2.00,kg"


async def test_without_a_number_nothing_is_applied(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    with pytest.raises(AgentError, match="this one has none"):
        await matchmaker(folder).apply(proposal.with_changes(id=None))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("O1,rice,10.00,kg\n", "", "the offer O1 is gone"),
        ("O1,rice,10.00,kg", "O1,brown rice,10.00,kg", "was changed since this was proposed"),
        ("O1,rice,10.00,kg", "O1,rice,10.00,lb", "was changed since this was proposed"),
        ("O1,rice,10.00,kg", "O1,rice,3.50,kg", "only 3.5 kg of the offer O1 are left, the match takes 4 kg"),
        ("O1,rice,10.00,kg", "O1,rice,?,kg", "the offer O1 is gone, or its row cannot be read any more"),
    ],
)
async def test_a_row_that_is_not_as_it_was_proposed_is_left_alone(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    folder, proposal = await one_match(tmp_path)
    path = folder / "offers.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    before = contents(folder)
    with pytest.raises(PreconditionFailed, match=complaint.replace("?", r"\?")):
        await matchmaker(folder).apply(proposal)
    assert contents(folder) == before
    reason = await matchmaker(folder).recheck(proposal)
    assert reason is not None
    assert complaint in reason


async def test_a_need_that_asks_for_less_now_is_not_overfilled(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    (folder / "needs.csv").write_text(
        "id,item,quantity,unit\nN1,arroz,3,kg\nN2,rice,3,kg\n", encoding="utf-8"
    )
    with pytest.raises(PreconditionFailed, match="the need N1 now asks for 3 kg, the match gives 4 kg"):
        await matchmaker(folder).apply(proposal)


async def test_a_quantity_that_a_person_lowered_is_what_is_applied(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    edited = {**proposal.payload, "quantity": 1.5, "offer_quantity": "1.5"}
    await applied(folder, proposal.with_changes(payload=edited))
    assert (folder / "offers.csv").read_text(encoding="utf-8").splitlines()[1] == "O1,rice,8.50,kg"
    assert (folder / "needs.csv").read_text(encoding="utf-8").splitlines()[1] == "N1,arroz,2.5,kg"


async def test_undoing_twice_is_undoing_once(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    before = contents(folder)
    done = await applied(folder, proposal)
    for _ in range(2):
        await matchmaker(folder).undo(done)
        assert contents(folder) == before


async def test_a_match_is_undone_after_other_matches_of_the_same_offer(tmp_path: Path) -> None:
    folder, first = await one_match(tmp_path)
    before = contents(folder)
    (second,) = [p for p in kept(await proposals_of(folder), first=5) if p.payload["need_id"] == "N2"]
    one, other = await applied(folder, first), await applied(folder, second)
    await matchmaker(folder).undo(one)
    assert (folder / "offers.csv").read_text(encoding="utf-8").splitlines()[1] == "O1,rice,7.00,kg"
    await matchmaker(folder).undo(other)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("offers.csv", "6.00", "9.00", "the quantity of O1 .* was changed by hand since the match, to 9 kg"),
        ("offers.csv", "O1,rice", "O1,wild rice", "the row O1 .* was changed since the match"),
        ("needs.csv", "N1,arroz,0,kg\n", "", "the row N1 is gone"),
        ("matches.csv", "1-", "x-", "was changed by hand since the match"),
    ],
)
async def test_what_somebody_changed_since_is_not_overwritten_by_an_undo(
    tmp_path: Path, name: str, old: str, new: str, complaint: str
) -> None:
    folder, proposal = await one_match(tmp_path)
    done = await applied(folder, proposal)
    path = folder / name
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace(old, new) if name != "matches.csv" else text.splitlines(keepends=True)[0],
        encoding="utf-8",
    )
    before = contents(folder)
    with pytest.raises(UndoConflict, match=complaint):
        await matchmaker(folder).undo(done)
    assert contents(folder) == before


async def test_an_undo_without_its_data_is_refused(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    with pytest.raises(AgentError, match="it was never applied"):
        await matchmaker(folder).undo(proposal)


async def test_a_matches_file_of_somebody_is_appended_to_and_stays_theirs(tmp_path: Path) -> None:
    folder, first = await one_match(tmp_path)
    (second,) = [p for p in kept(await proposals_of(folder), first=5) if p.payload["need_id"] == "N2"]
    await applied(folder, first)
    path = folder / "matches.csv"
    header, row = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{header},thanked\n{row},yes\n", encoding="utf-8")
    before = contents(folder)
    done = await applied(folder, second)
    assert path.read_text(encoding="utf-8").splitlines()[2].endswith(",")
    await matchmaker(folder).undo(done)
    assert contents(folder) == before


async def test_a_matches_file_of_another_program_is_refused_and_untouched(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    (folder / "matches.csv").write_text("team,score\nA,1\n", encoding="utf-8")
    before = contents(folder)
    with pytest.raises(AgentError, match=r"matches.csv:1: the columns proposal, offer, need, .* are missing"):
        await matchmaker(folder).apply(proposal)
    assert contents(folder) == before


async def test_modes_of_files_stay_and_a_new_file_is_as_private_as_the_offers(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    (folder / "offers.csv").chmod(0o640)
    (folder / "needs.csv").chmod(0o604)
    await applied(folder, proposal)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"offers.csv": 0o640, "needs.csv": 0o604, "matches.csv": 0o640}


async def test_a_file_behind_a_link_is_changed_where_it_lies(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    real = tmp_path / "shared.csv"
    (folder / "offers.csv").rename(real)
    (folder / "offers.csv").symlink_to(real)
    await applied(folder, proposal)
    assert (folder / "offers.csv").is_symlink()
    assert "O1,rice,6.00,kg" in real.read_text(encoding="utf-8")


async def test_a_file_that_is_open_in_libreoffice_is_not_changed_under_its_feet(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    (folder / ".~lock.needs.csv#").write_text(",me,here,;", encoding="utf-8")
    with pytest.raises(AgentError, match="is open in LibreOffice"):
        await matchmaker(folder).apply(proposal)


def test_a_folder_that_another_program_holds_is_waited_for_and_then_reported(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with (
        pytest.raises(AgentError, match=r"another program has had the folder for 0\.2 s"),
        locked(tmp_path, [], seconds=0.2),
    ):
        pytest.fail("two had the folder at once")
    os.close(descriptor)
    with locked(tmp_path, [], seconds=0.2):
        pass


async def test_a_folder_that_cannot_be_written_says_so_and_nothing_changes(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    (folder / ".needs.csv.askfirst-new").mkdir()  # where the new content would be written
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(AgentError, match="nothing was changed"):
        await matchmaker(folder).apply(proposal)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_matches_applied_at_the_same_time_all_happen_and_each_once(tmp_path: Path) -> None:
    folder = examples_in(tmp_path / "community")
    every = kept(asyncio.run(proposals_of(folder)))[:6]
    orders = [Order.of(proposal, NOON) for proposal in (*every, *every)]
    with ThreadPoolExecutor(max_workers=len(orders)) as pool:
        results = list(pool.map(lambda order: CsvSource(folder, UTC).apply(order), orders))
    assert results[: len(every)] == results[len(every) :]
    assert len((folder / "matches.csv").read_text(encoding="utf-8").splitlines()) == len(every) + 1


async def test_a_new_column_or_another_order_of_columns_changes_no_row(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    done = await applied(folder, proposal)
    (folder / "offers.csv").write_text(
        "unit,id,item,quantity,colour\nkg,O1,rice,6.00,\nkg,O2,beans,5,black\n", encoding="utf-8"
    )
    await matchmaker(folder).undo(done)
    assert (folder / "offers.csv").read_text(encoding="utf-8").splitlines()[1] == "kg,O1,rice,10.00,"
    assert await matchmaker(folder).recheck(proposal) is None


async def test_a_payload_that_is_no_match_is_refused(tmp_path: Path) -> None:
    folder, proposal = await one_match(tmp_path)
    wrong = proposal.with_changes(payload={**proposal.payload, "quantity": "-1"})
    with pytest.raises(AgentError, match=r"the payload of proposal 1 is no match: quantity: "):
        await matchmaker(folder).apply(wrong)
