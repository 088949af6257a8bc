"""CSV files as people keep them: read as meant, or the wrong place is named; nothing is dropped silently."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.builtin.matchmaker.csv_text import split_records, written_cell
from agents.builtin.matchmaker.sheet import read_sheet
from agents.errors import SourceError
from agents.testing import run_agent
from tests.support.matchmaker_data import (
    HEADER,
    Matchmaker,
    examples_in,
    folder_with,
    matchmaker,
    pairs_of,
    proposals_of,
    simple_folder,
    table,
)

NEEDS = table(["N1,tomatoes,4,kg,,,,,,,,"])


async def notes_of(folder: Path) -> list[str]:
    agent = matchmaker(folder)
    await agent.analyze()
    return agent.context.notes


@given(st.text(alphabet='ab",;\t\r\n é', max_size=30), st.sampled_from([",", ";", "\t"]))
def test_records_are_those_of_pythons_csv_module(text: str, delimiter: str) -> None:
    try:
        records = split_records(text, delimiter, "file.csv")
    except SourceError:
        return
    expected = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    assert [record.texts for record in records] == [row or [""] for row in expected]
    assert "".join(text[r.start : r.after] for r in records) == text, "every byte belongs to one record"


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.sampled_from([",", ";", "\t"]))
def test_a_written_field_is_read_back(cells: list[str], delimiter: str) -> None:
    line = delimiter.join(written_cell(cell, delimiter, quoted=not cell) for cell in cells)
    assert split_records(line, delimiter, "file.csv")[0].texts == cells


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
async def test_delimiters_line_endings_and_a_byte_order_mark_make_no_difference(
    tmp_path: Path, delimiter: str, newline: str, bom: str
) -> None:
    folder = examples_in(tmp_path / "plain")
    expected = pairs_of(await proposals_of(folder))
    assert len(expected) > 20
    other = tmp_path / "other"
    texts = []
    for name in ("offers.csv", "needs.csv"):
        rows = csv.reader(io.StringIO((folder / name).read_text(encoding="utf-8"), newline=""))
        lines = (delimiter.join(written_cell(cell, delimiter) for cell in row) for row in rows)
        texts.append(bom + newline.join(lines) + newline)
    assert pairs_of(await proposals_of(folder_with(other, *texts))) == expected


async def test_spanish_headings_decimal_commas_and_own_columns_are_understood(tmp_path: Path) -> None:
    offers = (
        "Código;Artículo;Cantidad;Unidad;Lugar;Días;Color favorito\nO1;tomates;2,5;kilos;Plaza;sáb;rojo\n"
    )
    needs = "sep=;\nRef;Qué;Cantidad;Lugar\nN1;Tomates;1,5 kg;Plaza\n"
    (found,) = await proposals_of(folder_with(tmp_path, offers, needs))
    assert (found.payload["quantity"], found.payload["unit"]) == ("1.5", "kg")


async def test_a_field_may_span_lines_and_the_lines_after_it_are_still_counted_right(tmp_path: Path) -> None:
    offers = HEADER + '\nO1,tomatoes,5,kg,,,,,,,,"two\nlines"\nO2,rice,much,kg,,,,,,,,\n'
    folder = folder_with(tmp_path, offers, NEEDS)
    assert pairs_of(await proposals_of(folder)) == {("O1", "N1")}
    assert any(
        note.startswith("offers.csv:4: quantity: 'much' is no quantity") for note in await notes_of(folder)
    )


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("O1,tomatoes,,kg,,,,,,,,", "offers.csv:2: quantity: the quantity is missing"),
        ("O1,tomatoes,-4,kg,,,,,,,,", "offers.csv:2: quantity: '-4' is less than nothing"),
        ("O1,tomatoes,1.500,kg,,,,,,,,", "write 1.5000 or 1500"),
        (
            "O1,tomatoes,4,kilogrems,,,,,,,,",
            "offers.csv:2: unit: 'kilogrems' is no unit that is known here; did you mean",
        ),
        ("O1,tomatoes,4 lb,kg,,,,,,,,", "the quantity says 'lb', the unit says 'kg'"),
        ("O1,,4,kg,,,,,,,,", "offers.csv:2: item: there is no item"),
        ("O1,???,4,kg,,,,,,,,", "does not say what it is"),
        (",tomatoes,4,kg,,,,,,,,", "offers.csv:2: id: it is missing"),
        (
            "O1,tomatoes,4,kg,,03/05/2031,,,,,,",
            "offers.csv:2: from: '03/05/2031' is no date; write 2031-05-03",
        ),
        (
            "O1,tomatoes,4,kg,,2031-05-03,2031-05-01,,,,,",
            "offers.csv:2: until: it ends (2031-05-01) before it begins",
        ),
        ("O1,tomatoes,4,kg,,,,whenever,,,,", "offers.csv:2: times: 'whenever' is not understood"),
    ],
)
async def test_a_bad_row_is_left_out_and_named_with_what_would_be_right(
    tmp_path: Path, row: str, complaint: str
) -> None:
    folder = folder_with(tmp_path, table([row]), NEEDS)
    assert await proposals_of(folder) == []
    notes = await notes_of(folder)
    assert any(complaint in note and note.endswith("was left out") for note in notes), notes


async def test_a_dietary_limit_that_is_not_understood_keeps_the_need_from_being_served(
    tmp_path: Path,
) -> None:
    folder = folder_with(
        tmp_path, table(["O1,tomatoes,9,kg,,,,,,,,"]), table(["N1,tomatoes,4,kg,,,,,low sodium,,,"])
    )
    assert await proposals_of(folder) == []
    assert any("needs.csv:2: dietary: the limit 'low sodium'" in note for note in await notes_of(folder))


async def test_an_id_that_stands_twice_is_used_for_neither_row(tmp_path: Path) -> None:
    folder = simple_folder(
        tmp_path, ["O1,tomatoes,5,kg", "O1,rice,5,kg", "O2,tomatoes,1,kg"], ["N1,tomatoes,4,kg"]
    )
    assert pairs_of(await proposals_of(folder)) == {("O2", "N1")}
    (note,) = await notes_of(folder)
    assert note.startswith("offers.csv: id: 'O1' stands in line 2 and line 3")


async def test_the_notes_of_many_bad_rows_are_counted_not_all_listed(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path, [f"O{n},rice,?,kg" for n in range(50)], ["N1,rice,4,kg"])
    notes = await notes_of(folder)
    assert len(notes) == 21
    assert notes[-1] == "rows that were left out as well: 30"


async def test_empty_lines_missing_last_fields_and_used_up_rows_need_no_words(tmp_path: Path) -> None:
    offers = HEADER + "\n\nO1,tomatoes,5,kg\n,,,,,,,,,,,\nO2,rice,0,kg\n\n"
    folder = folder_with(tmp_path, offers, table(["N1,tomatoes,4,kg,,,,,,,,", "N2,rice,4,kg,,,,,,,,"]))
    assert pairs_of(await proposals_of(folder)) == {("O1", "N1")}
    assert await notes_of(folder) == []


@pytest.mark.parametrize(
    ("offers", "complaint"),
    [
        (b"", "offers.csv:1: the file is empty"),
        (
            b"id,item\nO1,rice\n",
            "offers.csv:1: there is no column for the quantity; name one of them 'quantity'",
        ),
        (
            b"\n\nid;item;amount;qty\n",
            "offers.csv:3: 'amount' (column 3) and 'qty' (column 4) both mean the quantity",
        ),
        (
            b'id,item,quantity\nO1,"rice,4\nO2,beans,1\n',
            "offers.csv:2:4: a quote is opened here and never closed",
        ),
        ("id,item,quantity\nO1,jamón,4\n".encode("latin-1"), "offers.csv:2:7: the byte 0xf3 is not UTF-8"),
        (
            "id,item,quantity\nO1,rice,4\n".encode("utf-16"),
            "offers.csv: this is not UTF-8 text; save it again",
        ),
    ],
)
async def test_a_file_that_cannot_be_used_is_refused_with_file_line_and_column(
    tmp_path: Path, offers: bytes, complaint: str
) -> None:
    folder_with(tmp_path, "", NEEDS)
    (tmp_path / "offers.csv").write_bytes(offers)
    with pytest.raises(SourceError) as caught:
        await run_agent(Matchmaker, settings={"folder": str(tmp_path)})
    assert complaint in str(caught.value)


async def test_a_folder_or_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere: No such file or directory; the setting 'folder'"):
        await proposals_of(tmp_path / "nowhere")
    (tmp_path / "needs.csv").write_text(NEEDS, encoding="utf-8")
    with pytest.raises(SourceError, match=r"offers\.csv: No such file or directory"):
        await proposals_of(tmp_path)


def test_one_cell_can_change_and_every_other_byte_stays(tmp_path: Path) -> None:
    path = tmp_path / "offers.csv"
    text = '\ufeffid;item;"quantity"\r\n\r\n"O;1";"a ""b""";"10,5 kg"\r\nO2;c;7\r\n'
    path.write_bytes(text.encode("utf-8"))
    sheet = read_sheet(path, lambda heading: heading in {"id", "item", "quantity"})
    assert [row.texts for row in sheet.rows] == [["O;1", 'a "b"', "10,5 kg"], ["O2", "c", "7"]]
    assert sheet.with_raw_cell(sheet.rows[0], 2, '"4,5 kg"') == text.replace('"10,5 kg"', '"4,5 kg"')
    assert sheet.with_raw_cell(sheet.rows[1], 2, "0") == text.replace("c;7", "c;0")


async def test_a_decimal_comma_without_quotes_is_noticed_and_not_taken_for_two_fields(tmp_path: Path) -> None:
    offers = "id,item,quantity,place\nO1,tomatoes,4,5,\nO2,tomatoes,2 kg,Plaza\n"
    folder = folder_with(tmp_path, offers, NEEDS)
    assert pairs_of(await proposals_of(folder)) == {("O2", "N1")}
    (note,) = await notes_of(folder)
    assert note.startswith(
        "offers.csv:2: it has 5 fields, the header has 4; put a field that contains ',' into quotes"
    )


async def test_a_delimiter_at_the_end_of_every_row_is_no_fault(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "id,item,quantity,unit\nO1,tomatoes,4,kg,\nO2,rice,2,kg,\n", NEEDS)
    assert pairs_of(await proposals_of(folder)) == {("O1", "N1")}
    assert await notes_of(folder) == []


async def test_characters_that_a_terminal_obeys_reach_no_proposal(tmp_path: Path) -> None:
    rows = ["O1,tomatoes\x1b\u202e,5,kg,Pla\x07za,,,,,An\x1b]52;a,,", "O\x1b2,rice,5,kg,,,,,,,,"]
    folder = folder_with(tmp_path, table(rows), table(["N1,\x1btomatoes,4,kg,,,,,,,,"]))
    (found,) = await proposals_of(folder)
    shown = [
        found.title,
        found.explanation,
        *found.reasons,
        *found.constraints,
        *map(str, found.payload.values()),
    ]
    shown += [evidence.excerpt for evidence in found.evidence] + await notes_of(folder)
    assert all(text.isprintable() for text in shown), shown
    assert any("id: 'O\\x1b2' cannot be shown" in note for note in shown)
