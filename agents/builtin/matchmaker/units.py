"""Units of what people give: their names in English and Spanish, and exact conversion within one dimension.

Sources of the factors: the pound is exactly 0.45359237 kg and the foot exactly 0.3048 m (international yard and
pound agreement of 1959; NIST Handbook 44, appendix C). The US gallon is 231 cubic inches, so a US pint is exactly
473.176473 ml; the imperial gallon is exactly 4.54609 l (UK Weights and Measures Act 1985), so an imperial pint is
exactly 568.26125 ml. A pint of which nobody says whose is a dimension of its own: it converts to quarts and
gallons, which hold 2 and 8 pints in both systems, and to nothing else.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache

from agents.builtin.matchmaker.text import plain_words


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure.

    Attributes:
        name: how one of it is written.
        plural: how several are written.
        dimension: units convert only within one.
        factor: how many of the dimension's base unit it is, exactly.
        grain: the smallest step that is worth handing over, in this unit; 1 for what cannot be cut.
    """

    name: str
    plural: str
    dimension: str
    factor: Fraction
    grain: Decimal

    def of(self, quantity: Decimal) -> str:
        """A quantity for people: "1 piece", "2.5 kg"."""
        return f"{written(quantity)} {self.name if quantity == 1 else self.plural}"


_POUND = "0.45359237"
_US_PINT = "0.473176473"
_UK_PINT = "0.56826125"

# name, plural, dimension, factor, grain, every way to write it (singular and plural, accents left out)
_TABLE = f"""
kg        | kg         | mass   | 1             | 0.01 | kg kgs kilo kilos kilogram kilograms kilogramme kilogrammes kilogramo kilogramos
g         | g          | mass   | 1/1000        | 1    | g gr grs gram grams gramme grammes gramo gramos
t         | t          | mass   | 1000          | 0.001| t tonne tonnes tonelada toneladas
lb        | lb         | mass   | {_POUND}      | 0.01 | lb lbs pound pounds libra libras
oz        | oz         | mass   | {_POUND}/16   | 0.1  | oz ounce ounces onza onzas
l         | l          | volume | 1             | 0.01 | l lt lts litre litres liter liters litro litros
ml        | ml         | volume | 1/1000        | 1    | ml millilitre millilitres milliliter milliliters mililitro mililitros cc
cl        | cl         | volume | 1/100         | 1    | cl centilitre centilitres centilitro centilitros
US pint   | US pints   | volume | {_US_PINT}    | 0.1  | us_pint us_pints
US quart  | US quarts  | volume | 2*{_US_PINT}  | 0.1  | us_quart us_quarts
US gallon | US gallons | volume | 8*{_US_PINT}  | 0.01 | us_gallon us_gallons us_gal
UK pint   | UK pints   | volume | {_UK_PINT}    | 0.1  | uk_pint uk_pints imperial_pint imperial_pints
UK gallon | UK gallons | volume | 8*{_UK_PINT}  | 0.01 | uk_gallon uk_gallons imperial_gallon imperial_gallons
pint      | pints      | pints  | 1             | 0.1  | pint pints pinta pintas
quart     | quarts     | pints  | 2             | 0.1  | quart quarts
gallon    | gallons    | pints  | 8             | 0.01 | gallon gallons gal galon galones
m         | m          | length | 1             | 0.01 | m metre metres meter meters metro metros
cm        | cm         | length | 1/100         | 1    | cm centimetre centimetres centimeter centimeters centimetro centimetros
ft        | ft         | length | 0.3048        | 0.1  | ft foot feet pie pies
hour      | hours      | time   | 1             | 0.25 | h hr hrs hour hours hora horas
minute    | minutes    | time   | 1/60          | 1    | min mins minute minutes minuto minutos
day       | days       | days   | 1             | 1    | day days dia dias
week      | weeks      | days   | 7             | 1    | week weeks semana semanas
night     | nights     | nights | 1             | 1    | night nights noche noches
piece     | pieces     | count  | 1             | 1    | piece pieces pc pcs unit units unidad unidades ud uds u pieza piezas each item items x loaf loaves barra barras hogaza hogazas head heads cabeza cabezas
dozen     | dozen      | count  | 12            | 1    | dozen dozens docena docenas
pair      | pairs      | pairs  | 1             | 1    | pair pairs par pares
set       | sets       | sets   | 1             | 1    | set sets juego juegos kit kits
box       | boxes      | boxes  | 1             | 1    | box boxes caja cajas
crate     | crates     | crates | 1             | 1    | crate crates cajon cajones
bag       | bags       | bags   | 1             | 1    | bag bags bolsa bolsas
sack      | sacks      | sacks  | 1             | 1    | sack sacks saco sacos
jar       | jars       | jars   | 1             | 1    | jar jars tarro tarros frasco frascos bote botes
can       | cans       | cans   | 1             | 1    | can cans tin tins lata latas
bottle    | bottles    | bottles| 1             | 1    | bottle bottles botella botellas
carton    | cartons    | cartons| 1             | 1    | carton cartons brik briks cartones
packet    | packets    | packets| 1             | 1    | packet packets pack packs package packages paquete paquetes sobre sobres
tray      | trays      | trays  | 1             | 1    | tray trays bandeja bandejas
bunch     | bunches    | bunches| 1             | 1    | bunch bunches manojo manojos ramo ramos
bundle    | bundles    | bundles| 1             | 1    | bundle bundles haz haces
roll      | rolls      | rolls  | 1             | 1    | roll rolls rollo rollos
cup       | cups       | cups   | 1             | 1    | cup cups taza tazas
portion   | portions   | meals  | 1             | 1    | portion portions serving servings meal meals racion raciones plato platos
seat      | seats      | seats  | 1             | 1    | seat seats plaza plazas asiento asientos
trip      | trips      | trips  | 1             | 1    | trip trips ride rides lift lifts viaje viajes trayecto trayectos
session   | sessions   | sessions| 1            | 1    | session sessions class classes sesion sesiones clase clases
"""


def _factor(text: str) -> Fraction:
    """A factor of the table: a number, a product or a quotient."""
    number, *rest = re.split(r"([*/])", text.strip())
    value = Fraction(number)
    for sign, other in zip(rest[::2], rest[1::2], strict=True):
        value = value * Fraction(other) if sign == "*" else value / Fraction(other)
    return value


@lru_cache(maxsize=1)
def _units() -> dict[str, Unit]:
    """Every spelling and its unit."""
    found: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        name, plural, dimension, factor, grain, words = (part.strip() for part in line.split("|"))
        unit = Unit(name, plural, dimension, _factor(factor), Decimal(grain))
        found |= {word.replace("_", " "): unit for word in words.split()}
    return found


UNIT_WORDS = frozenset(_units())
"""Every spelling of every unit, accents left out."""

PIECE = _units()["piece"]


class UnknownUnit(ValueError):
    """No unit of that name; the message names those that look alike."""


def parse_unit(text: str) -> Unit:
    """The unit that `text` names; an empty text means pieces.

    Raises:
        UnknownUnit: there is none of that name.
    """
    key = " ".join(plain_words(text))
    if not key:
        return PIECE
    unit = _units().get(key)
    if unit is None:
        near = get_close_matches(key, UNIT_WORDS, n=3, cutoff=0.6)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "known are kg, g, lb, oz, l, ml, pieces, boxes, hours, ..."
        )
        msg = f"{text.strip()!r} is no unit that is known here; {hint}"
        raise UnknownUnit(msg)
    return unit


def convert(quantity: Decimal | Fraction, unit: Unit, to: Unit) -> Fraction:
    """`quantity` of `unit` in the unit `to`, exactly.

    Raises:
        ValueError: the two are of different dimensions.
    """
    if unit.dimension != to.dimension:
        msg = f"{unit.plural} ({unit.dimension}) cannot be made into {to.plural} ({to.dimension})"
        raise ValueError(msg)
    return Fraction(quantity) * unit.factor / to.factor


def floor_to_grain(quantity: Fraction, unit: Unit) -> Decimal:
    """The largest whole number of grains of `unit` that is not more than `quantity`."""
    return math.floor(quantity / Fraction(unit.grain)) * unit.grain


def ceil_to_grain(quantity: Fraction, unit: Unit) -> Decimal:
    """The smallest whole number of grains of `unit` that is not less than `quantity`."""
    return math.ceil(quantity / Fraction(unit.grain)) * unit.grain


def written(quantity: Decimal) -> str:
    """A quantity as people write it: no exponent, no zeros at the end."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
