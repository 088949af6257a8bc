"""Units convert exactly, only within a dimension; quantities are read as typed and written back that way."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.builtin.matchmaker.quantities import BadQuantity, number_text, parse_quantity, replace_number
from agents.builtin.matchmaker.units import (
    UNIT_WORDS,
    UnknownUnit,
    ceil_to_grain,
    convert,
    floor_to_grain,
    parse_unit,
    written,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("kg", "kg"),
        ("Kilos", "kg"),
        ("kg.", "kg"),
        ("gramos", "g"),
        ("libras", "lb"),
        ("OZ", "oz"),
        ("litros", "l"),
        ("piezas", "piece"),
        ("unidades", "piece"),
        ("", "piece"),
        ("docena", "dozen"),
        ("barras", "loaf"),
        ("raciones", "portion"),
        ("días", "day"),
        ("US pints", "US pint"),
        ("cajón", "crate"),
    ],
)
def test_a_unit_is_known_by_its_english_and_spanish_words(text: str, name: str) -> None:
    assert parse_unit(text).name == name


def test_an_unknown_unit_names_what_looks_like_it() -> None:
    with pytest.raises(UnknownUnit, match="did you mean kilos"):
        parse_unit("kiloss")
    with pytest.raises(UnknownUnit, match="known are kg, g, lb"):
        parse_unit("zzzzzzzz")


@pytest.mark.parametrize(
    ("quantity", "unit", "to", "expected"),
    [
        ("1", "lb", "kg", Fraction("0.45359237")),
        ("16", "oz", "lb", Fraction(1)),
        ("1", "kg", "g", Fraction(1000)),
        ("90", "minutes", "hours", Fraction(3, 2)),
        ("2", "weeks", "days", Fraction(14)),
        ("1", "dozen", "pieces", Fraction(12)),
        ("1", "US gallon", "l", Fraction("3.785411784")),
        ("8", "UK pints", "l", Fraction("4.54609")),
        ("1", "gallon", "pints", Fraction(8)),
        ("3", "cm", "m", Fraction(3, 100)),
    ],
)
def test_conversion_is_exact(quantity: str, unit: str, to: str, expected: Fraction) -> None:
    assert convert(Decimal(quantity), parse_unit(unit), parse_unit(to)) == expected


@pytest.mark.parametrize(
    ("unit", "to"),
    [("kg", "pieces"), ("pieces", "boxes"), ("l", "kg"), ("pint", "l"), ("hours", "days"), ("bags", "boxes")],
)
def test_units_of_different_dimensions_do_not_convert(unit: str, to: str) -> None:
    with pytest.raises(ValueError, match="cannot be made into"):
        convert(Decimal(1), parse_unit(unit), parse_unit(to))


@given(st.sampled_from(sorted(UNIT_WORDS)), st.sampled_from(sorted(UNIT_WORDS)), st.integers(1, 10**6))
def test_there_and_back_is_the_same_quantity(one: str, other: str, quantity: int) -> None:
    unit, to = parse_unit(one), parse_unit(other)
    if unit.dimension == to.dimension:
        assert convert(convert(Decimal(quantity), unit, to), to, unit) == quantity


@given(st.fractions(min_value=0, max_value=10**6), st.sampled_from(sorted(UNIT_WORDS)))
def test_rounding_to_grains_never_leaves_the_right_side(quantity: Fraction, word: str) -> None:
    unit = parse_unit(word)
    low, high = floor_to_grain(quantity, unit), ceil_to_grain(quantity, unit)
    assert Fraction(low) <= quantity <= Fraction(high)
    assert high - low <= unit.grain


@pytest.mark.parametrize(
    ("cell", "value", "unit"),
    [
        ("2", "2", ""),
        (" 2.5 ", "2.5", ""),
        ("2,5", "2.5", ""),
        ("0,125", "0.125", ""),
        ("2.1250", "2.125", ""),
        (".5", "0.5", ""),
        ("1.250,50", "1250.50", ""),
        ("1,250.50", "1250.50", ""),
        ("1.250.000", "1250000", ""),
        ("1 250", "1250", ""),
        ("2,5 kg", "2.5", "kg"),
        ("3kilos", "3", "kilos"),
    ],
)
def test_a_quantity_is_read_as_it_is_meant(cell: str, value: str, unit: str) -> None:
    found = parse_quantity(cell)
    assert (found.value, found.unit) == (Decimal(value), unit)


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("", "is missing"),
        ("some", "is no quantity"),
        ("-3", "less than nothing"),
        ("1.500", "can be read as 1.500 or as 1500"),
        ("1,500 kg", "can be read as"),
        ("1.2.3", "is no number"),
        ("2 or 3", "is no quantity"),
        ("1234567890123", "more than 12 digits"),
        ("1/2", "is no quantity"),
        ("1e5", "is no quantity"),
        ("0.1234567", "more than 6 decimals"),
    ],
)
def test_what_can_be_read_in_two_ways_is_not_guessed(cell: str, complaint: str) -> None:
    with pytest.raises(BadQuantity, match=complaint):
        parse_quantity(cell)


@pytest.mark.parametrize(
    ("cell", "value", "mark", "expected"),
    [
        ("10", "6", ".", "6"),
        ("10,0", "6", ".", "6,0"),
        ("10.00", "6.5", ".", "6.50"),
        ("10", "6.5", ",", "6,5"),
        ("10 kg", "6.5", ".", "6.5 kg"),
        (" 10 ", "7", ".", " 7 "),
        ("1.250,50", "1000", ".", "1000,00"),
        ("2", "1.375", ".", "1.3750"),
        ("2", "0.375", ".", "0.375"),
    ],
)
def test_a_quantity_is_written_back_in_its_own_style(cell: str, value: str, mark: str, expected: str) -> None:
    assert replace_number(cell, Decimal(value), mark) == expected


@given(st.decimals(0, 10**6, places=4), st.sampled_from(".,"), st.integers(0, 4))
def test_what_is_written_is_read_back_as_the_same_number(value: Decimal, mark: str, decimals: int) -> None:
    assert parse_quantity(number_text(value, mark, decimals)).value == value


def test_a_quantity_for_people_has_no_float_noise() -> None:
    assert written(Decimal("4.50")) == "4.5"
    assert written(Decimal(100)) == "100"
    assert parse_unit("kg").of(Decimal("2.50")) == "2.5 kg"
    assert parse_unit("pieces").of(Decimal(1)) == "1 piece"
    assert parse_unit("boxes").of(Decimal(3)) == "3 boxes"
