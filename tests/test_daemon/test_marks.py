"""Marks: written in place, read whatever is there, and no foreign or torn bytes are taken for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.marks import SIZE, Mark, from_bytes, read_mark, to_bytes, write_mark
from daemon.outcome import new_run_id
from tests.support.stores import START

MARK = Mark(run_id=new_run_id(START), trigger="schedule", started_at=START, due=START, attempt=2, crashes=1)

marks = st.builds(
    Mark,
    run_id=st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=13, max_size=13),
    trigger=st.sampled_from(["once", "schedule", "after pantry", "webhook"]),
    started_at=st.datetimes(timezones=st.just(UTC)),
    due=st.none() | st.datetimes(timezones=st.just(UTC)),
    attempt=st.integers(1, 1_000_000),
    crashes=st.integers(0, 1_000_000),
    under_way=st.booleans(),
)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "quick.run", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@given(marks)
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    record = to_bytes(mark)
    assert len(record) == SIZE
    assert record.endswith(b"\n")
    assert from_bytes(record) == mark
    assert from_bytes(record + b"what stood there before") == mark


def test_nothing_under_way_is_read_as_no_mark() -> None:
    assert len(to_bytes(None)) == SIZE
    assert from_bytes(to_bytes(None)) is None


@pytest.mark.parametrize("before", [None, MARK])
def test_a_record_torn_at_any_byte_is_the_old_one_the_new_one_or_none(before: Mark | None) -> None:
    new = Mark(run_id=new_run_id(START), trigger="manual", started_at=START + timedelta(days=1))
    for old in (b"", to_bytes(before)):
        for cut in range(SIZE + 1):
            torn = to_bytes(new)[:cut] + old[cut:]
            assert from_bytes(torn) in {new, before, None}, cut


def test_a_record_with_any_byte_changed_is_no_mark() -> None:
    record = to_bytes(MARK)
    for place in range(len(record.rstrip())):
        changed = bytearray(record)
        changed[place] ^= 1
        assert from_bytes(bytes(changed)) is None, place


@given(st.binary(max_size=2 * SIZE))
def test_foreign_bytes_are_no_mark(record: bytes) -> None:
    assert from_bytes(record) is None


@pytest.mark.parametrize("record", [b"", b"0", b"3", b"\0" * SIZE, b"askfirst-run-1", b"askfirst-run-1 0 {}"])
def test_what_others_may_have_left_is_no_mark(record: bytes) -> None:
    assert from_bytes(record) is None


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"null",
        b'{"run":"a"}',
        b'{"run":1,"trigger":"once","started":"2026-03-01T12:00:00+00:00","due":null,"attempt":1,"crashes":0,"under_way":true}',
        b'{"run":"a","trigger":"once","started":"soon","due":null,"attempt":1,"crashes":0,"under_way":true}',
        b'{"run":"a","trigger":"once","started":7,"due":null,"attempt":1,"crashes":0,"under_way":true}',
        b'{"run":"a","trigger":"once","started":"2026-03-01T12:00:00+00:00","due":null,"attempt":1,"crashes":-1,"under_way":true}',
        b'{"run":"a","trigger":"once","started":"2026-03-01T12:00:00+00:00","due":null,"attempt":true,"crashes":0,"under_way":true}',
        b'{"run":"a","trigger":"once","started":"0001-01-01T00:00:00+14:00","due":null,"attempt":1,"crashes":0,"under_way":true}',
        b"[" * 400,
    ],
)
def test_whole_records_of_another_kind_are_no_marks(text: bytes) -> None:
    import zlib

    assert from_bytes(b"askfirst-run-1 %08x %b\n" % (zlib.crc32(text), text)) is None


def test_a_mark_is_written_in_place_and_makes_the_file_no_longer_than_a_record(file: int) -> None:
    assert read_mark(file) is None
    for durable in (False, True):
        write_mark(file, MARK, durable=durable)
        assert read_mark(file) == MARK
        assert os.fstat(file).st_size == SIZE
    write_mark(file, None)
    assert read_mark(file) is None
    assert os.fstat(file).st_size == SIZE


def test_a_mark_written_over_something_longer_is_read(file: int) -> None:
    os.pwrite(file, b"x" * 3 * SIZE, 0)
    assert read_mark(file) is None
    write_mark(file, MARK)
    assert read_mark(file) == MARK


def test_times_of_other_zones_are_kept_in_utc_and_a_long_trigger_is_cut() -> None:
    berlin = START.astimezone(timezone(timedelta(hours=2)))
    mark = Mark(run_id="a" * 200, trigger="\N{SNOWMAN}" * 500, started_at=berlin, due=berlin, attempt=10**9)
    record = to_bytes(mark)
    assert len(record) == SIZE
    read = from_bytes(record)
    assert read is not None
    assert (read.started_at, read.due, read.started_at.tzinfo) == (START, START, UTC)
    assert len(read.trigger) == 64
    assert read.attempt == 1_000_000
    assert isinstance(read.started_at, datetime)
