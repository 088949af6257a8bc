"""For reports: what the usage ledger holds, and how far budgets are used.

from llm.usage import budget_status, read_usage

for row in read_usage(Path("usage.sqlite3"), by="model", since=datetime.now() - timedelta(days=7)):
    print(row.name, row.tokens_in + row.tokens_out, row.cost / 1_000_000, "usd")
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from llm.budgets import Budget, parse_budgets
from llm.middleware.accountant import Account, BudgetStatus
from llm.stores.ledger import read_series, read_spent, read_usage
from llm.stores.usage_tables import CALL_DAYS, GROUPINGS, SUM_DAYS, Grouping, Series, Slice, Usage

__all__ = [
    "CALL_DAYS",
    "GROUPINGS",
    "SUM_DAYS",
    "Budget",
    "BudgetStatus",
    "Grouping",
    "Series",
    "Slice",
    "Usage",
    "budget_status",
    "parse_budgets",
    "read_series",
    "read_usage",
]


def budget_status(
    budgets: Iterable[Budget], usage_file: Path, *, now: float | None = None
) -> tuple[BudgetStatus, ...]:
    """How far budgets are used by all programs together, as far as the ledger has been told.

    Args:
        budgets: which ones.
        usage_file: the ledger; without it nothing is used.
        now: seconds since 1970, None for the present.

    Raises:
        OSError: the ledger cannot be read.
    """
    at = time.time() if now is None else now
    accounts = [Account(budget) for budget in budgets]
    for account in accounts:
        account.roll(at)
    spent = read_spent(usage_file, [account.question() for account in accounts])
    return tuple(
        BudgetStatus(budget=account.budget, used=account.share(each), reserved=0.0, resets=account.end)
        for account, each in zip(accounts, spent, strict=True)
    )
