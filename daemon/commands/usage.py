"""`askfirst llm usage`: what model calls used, and how far the budgets are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.errors import DaemonError
from daemon.render import Column, Screen, Style, columns, shortened

if TYPE_CHECKING:
    from llm.usage import BudgetStatus, Usage

GROUPINGS = ("agent", "model", "backend", "day", "task")  # those of llm.usage, which loads sqlite3
BAR_COLUMNS = 40
_NAME_COLUMNS = 26
_WIDE_COLUMNS = 104  # what the whole table takes
_EIGHTHS = " ▏▎▍▌▋▊▉"
_NOBODY = {"agent": "(no agent)", "task": "(no task)"}
_MICRO = 1_000_000


@click.command(
    "usage",
    epilog=examples(
        "askfirst llm usage",
        "askfirst llm usage --by day --since 7d",
        "askfirst llm usage --by agent --json",
    ),
)
@click.option(
    "--by", type=click.Choice(GROUPINGS), default="model", show_default=True, help="What to add up for."
)
@click.option("--since", default="30d", show_default=True, metavar="DURATION", help='Such as "12h" or "7d".')
@command_options
@pass_invocation
def usage(call: Invocation, by: Any, since: str) -> None:
    """Show what model calls used: tokens, seconds, money, and what is left of the budgets."""
    from daemon.settings import budgets_of  # noqa: PLC0415 - loads pydantic
    from llm.usage import SUM_DAYS, budget_status, read_usage  # noqa: PLC0415 - loads sqlite3

    start = datetime.now(UTC) - _span(since, SUM_DAYS)
    settings = call.settings()
    environ = settings.llm_environ()
    file = Path(environ["LLM_USAGE_FILE"]).expanduser()
    budgets = budgets_of(settings)
    try:
        rows, states = read_usage(file, by, start), budget_status(budgets, file)
    except OSError as error:
        raise DaemonError(str(error)) from error
    screen = call.screen()
    if screen.as_json:
        screen.data(_data(file, by, start, rows, states))
        return
    if rows:
        _show_usage(screen, by, since, rows)
    else:
        screen.line(
            f"No model call in the last {since} ({file}). Make one: askfirst llm ask ..., askfirst --once"
        )
    if states:
        _show_budgets(screen, states)


def _span(text: str, most_days: int) -> Any:
    from agents.durations import parse_duration  # noqa: PLC0415 - beside what it is needed for

    try:
        span = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error
    if span.days > most_days:
        msg = f"the ledger goes back {most_days} days"
        raise click.BadParameter(msg, param_hint="--since")
    return span


def _show_usage(screen: Screen, by: str, since: str, rows: Sequence[Usage]) -> None:
    total = _total(rows)
    # At a terminal of eighty columns there is room for the most important ones; `--json` has all.
    narrow = screen.for_people and get_terminal_size().columns < _WIDE_COLUMNS
    wide = _Columns(
        narrow=narrow,
        cached=not narrow and any(row.cached for row in rows),
        joules=not narrow and total.joules is not None,
    )
    screen.line(f"Model calls of the last {since}, by {by}", "bold")
    shown = (*rows, total) if len(rows) > 1 else rows
    screen.table(wide.heads(by), [wide.cells(row, by) for row in shown])
    _show_bars(screen, by, rows)
    if total.unpriced:
        screen.line()
        screen.line(
            f"The price of {_number(total.unpriced)} calls is unknown (?): name it in [llm.prices], or"
        )
        screen.line("install the vendors' list prices: pip install 'askfirst[prices]'")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Which columns the table has."""

    narrow: bool
    cached: bool
    joules: bool

    def heads(self, by: str) -> list[Column]:
        names = ["calls", "failed", "hits", "in", "out", *["cached"] * self.cached, "seconds"]
        names += [*["joules"] * self.joules, "usd"]
        return [Column(by, style="bold"), *(Column(name, right=True) for name in names)]

    def cells(self, row: Usage, by: str) -> list[object]:
        count = _short if self.narrow else _number
        joules = "" if row.joules is None else f"{row.joules:,.0f}"
        cells: list[object] = [shortened(_name(row, by), 16) if self.narrow else _name(row, by)]
        cells += map(count, (row.calls, row.failed, row.hits, row.tokens_in, row.tokens_out))
        cells += [count(row.cached)] * self.cached
        cells += [f"{row.seconds:.0f}" if self.narrow else f"{row.seconds:,.1f}"]
        return [*cells, *[joules] * self.joules, _cost(row)]


def _show_bars(screen: Screen, by: str, rows: Sequence[Usage]) -> None:
    """One bar for each row: its tokens, or its seconds where no backend counted any."""
    counts_tokens = any(_tokens(row) for row in rows)
    amounts = [float(_tokens(row)) if counts_tokens else row.seconds for row in rows]
    most = max(amounts)
    if not most:
        return
    screen.heading("Tokens in and out" if counts_tokens else "Seconds")
    names = [_name(row, by) for row in rows]
    wide = max(map(columns, names))
    for name, amount in zip(names, amounts, strict=True):
        shown = _number(round(amount)) if counts_tokens else f"{amount:,.1f}"
        space = " " * (wide - columns(name))
        screen.line(f"  {name}{space}  {bar(amount / most)} {shown}")


def bar(share: float, width: int = BAR_COLUMNS) -> str:
    """A bar of block characters, to an eighth of a column; what is more than nothing is seen."""
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _show_budgets(screen: Screen, states: Sequence[BudgetStatus]) -> None:
    screen.heading("Budgets")
    names = [shortened(state.budget, 38) for state in states]
    wide = max(map(columns, names))
    for name, state in zip(names, states, strict=True):
        share = state.used / float(state.budget.limit)
        filled = bar(min(share, 1.0), 8)
        colour: Style = "red" if share >= 1 else "yellow" if share >= 0.8 else "green"
        space = " " * (wide - columns(name))
        line = f"  {name}{space}  {filled}{'░' * (8 - len(filled))} {share:4.0%}, "
        screen.line(f"{line}{_left(state)} left until {_resets(state)}", colour)


def _resets(state: BudgetStatus) -> str:
    at = datetime.fromtimestamp(state.resets).astimezone()
    return at.strftime("%H:%M" if state.budget.window == "hour" else "%m-%d")


def _left(state: BudgetStatus) -> str:
    match state.budget.unit:
        case "tokens":
            return _number(int(state.left))
        case "usd":
            return f"{state.left:.2f} usd"
    return f"{state.left:,.0f} s"


def _name(row: Usage, by: str) -> str:
    return shortened(row.name or _NOBODY.get(by, ""), _NAME_COLUMNS)


def _tokens(row: Usage) -> int:
    return row.tokens_in + row.tokens_out


def _number(value: int) -> str:
    return f"{value:,}"


def _short(value: int) -> str:
    return f"{value}" if value < 100_000 else f"{value / 1e3:.0f}k" if value < 1e8 else f"{value / 1e6:.0f}M"


def _cost(row: Usage) -> str:
    """The money that is known; "?" where it is not, and behind a sum that lacks some."""
    if row.unpriced and not row.cost:
        return "?"
    amount = row.cost / _MICRO
    text = "0" if not row.cost else f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"
    return f"{text}+?" if row.unpriced else text


def _total(rows: Sequence[Usage]) -> Usage:
    from llm.usage import Usage  # noqa: PLC0415 - loads sqlite3

    data = [asdict(row) for row in rows]
    summed: dict[str, Any] = {
        key: sum(each[key] for each in data) for key in data[0] if key not in {"name", "joules"}
    }
    measured = [row.joules for row in rows if row.joules is not None]
    return Usage(name="in all", joules=sum(measured) if measured else None, **summed)


def _data(
    file: Path, by: str, start: datetime, rows: Sequence[Usage], states: Sequence[BudgetStatus]
) -> dict[str, Any]:
    """The same for programs: money in USD, null where no call's price is known."""
    used = []
    for row in rows:
        data = asdict(row)
        cost = data.pop("cost")
        known = row.unpriced < row.calls or not row.calls
        used.append({**data, "usd": cost / _MICRO if known else None})
    budgets = [
        {
            "budget": str(state.budget),
            "unit": state.budget.unit,
            "limit": float(state.budget.limit),
            "used": state.used,
            "left": state.left,
            "resets_at": datetime.fromtimestamp(state.resets, UTC),
        }
        for state in states
    ]
    return {"usage_file": file, "by": by, "since": start, "usage": used, "budgets": budgets}
