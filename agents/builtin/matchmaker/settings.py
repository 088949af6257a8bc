"""The matchmaker's own settings: the table [agents.matchmaker] of the configuration."""

from __future__ import annotations

from datetime import UTC, tzinfo
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def zone_of(name: str) -> tzinfo:
    """The time zone of that name; UTC needs no time zone database.

    Raises:
        ZoneInfoNotFoundError: this system knows none of that name.
        ValueError: it is no name of a time zone.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


class MatchmakerSettings(BaseModel):
    """Where offers and needs come from, and how freely the matchmaker proposes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["csv", "sqlite"] = Field(
        default="csv", description="where offers and needs are: a folder of CSV files, or a SQLite database"
    )
    folder: Path | None = Field(
        default=None,
        validate_default=True,
        description="csv: the folder with offers.csv and needs.csv; matches.csv is made there. "
        "A relative path starts at the folder of the configuration file",
    )
    database: Path | None = Field(
        default=None,
        validate_default=True,
        description=(
            "sqlite: the database file. A relative path starts at the folder of the configuration file"
        ),
    )
    offers_query: str = Field(
        default="SELECT * FROM offers",
        min_length=1,
        description="sqlite: the query for the offers; its columns are named like those of the CSV files",
    )
    needs_query: str = Field(
        default="SELECT * FROM needs",
        min_length=1,
        description="sqlite: the query for the needs; its columns are named like those of the CSV files",
    )
    offers_table: str = Field(
        default="offers", min_length=1, description="sqlite: the table whose quantities a match decreases"
    )
    needs_table: str = Field(
        default="needs", min_length=1, description="sqlite: the table whose quantities a match decreases"
    )
    matches_table: str = Field(
        default="matches", min_length=1, description="sqlite: the table of matches, made when it is missing"
    )
    id_column: str = Field(
        default="id", min_length=1, description="sqlite: the column of the id in both tables"
    )
    quantity_column: str = Field(
        default="quantity", min_length=1, description="sqlite: the column of the quantity in both tables"
    )
    timezone: str = Field(
        default="UTC",
        description="the time zone that dates and times of the data are meant in, such as Europe/Madrid",
    )
    model: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: unclear pairs are put to the model, where there is one; off: rules only",
    )
    max_questions: int = Field(
        default=12,
        ge=0,
        le=1000,
        description="most questions to the model in one run; cached answers do not count",
    )
    model_seconds: float = Field(
        default=120, gt=0, le=3600, description="seconds of one run that may go into questions to the model"
    )
    propose_from: float = Field(
        default=0.5,
        ge=0.3,
        le=0.7,
        description="likeness from which an unclear pair is proposed when no model was asked; "
        "unclear is everything from 0.3 (rules say no below) to 0.7 (rules say yes from there)",
    )
    smallest_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description=(
            "a rest of an offer is not proposed for a need of which it would serve a smaller part than this"
        ),
    )

    @field_validator("folder")
    @classmethod
    def _folder(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("source") == "csv":
            msg = "name the folder that holds offers.csv and needs.csv"
            raise ValueError(msg)
        return value

    @field_validator("database")
    @classmethod
    def _database(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("source") == "sqlite":
            msg = "name the SQLite file that holds the offers and needs"
            raise ValueError(msg)
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            zone_of(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            msg = f"{value!r} is no time zone that this system knows; write one such as Europe/Madrid or UTC"
            raise ValueError(msg) from error
        return value
