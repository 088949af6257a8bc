"""The inbox: what waits for people, how long, how they decide, and what became of it."""

from __future__ import annotations

from daemon.install.dashboards.alarms import alarm
from daemon.install.dashboards.boards import Board, Row, Variable
from daemon.install.dashboards.panels import (
    BAD,
    CALM,
    LATE,
    NOTICE,
    PLAIN,
    WELL,
    Panel,
    Target,
    bar_gauge,
    bars,
    heatmap,
    matrix,
    series,
    stat,
)
from daemon.install.dashboards.promql import (
    RANGE,
    WINDOW,
    Expr,
    Source,
    increase,
    largest,
    quantile,
    ratio,
    total,
)

_own = Source({"agent": ("agent",)})

DECIDED = "askfirst_proposal_decision_duration_seconds"

HOUR = 3600.0

ACTIONS = {"approve": WELL, "edit": CALM, "reject": LATE, "snooze": "gray", "undo": BAD}


def board() -> Board:
    """The dashboard."""
    return Board(
        uid="askfirst-inbox",
        description="What waits for people, how long, how they decide, and what became of it.",
        variables=[
            Variable(name="agent", title="Agent", metric="askfirst_proposals", label="agent"),
        ],
        since="now-7d",
        rows=[
            Row(title="Now, and in the time that is shown", panels=_summary()),
            Row(title="Waiting", panels=_waiting()),
            Row(title="Decisions", panels=_decisions()),
            Row(title="What became of them", panels=_applied()),
        ],
    )


def _did(action: str, window: str = WINDOW) -> Expr:
    return total(increase(_own("askfirst_proposal_decisions_total", action=action), window))


def _approval_ratio(window: str = WINDOW) -> Expr:
    return ratio(_did("approve", window), _did("approve|reject", window))


def _summary() -> list[Panel]:
    return [
        stat(
            "Waiting",
            "Proposals that wait for a decision. Those that were put aside come back by themselves.",
            total(_own("askfirst_proposals", status="pending")),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, CALM)),
        ),
        stat(
            "Oldest",
            "Age of the proposal that has waited longest, of any agent. Most expire after 72 hours.",
            largest(_own("askfirst_proposal_oldest_pending_age_seconds")),
            unit="s",
            steps=((None, WELL), (36 * HOUR, LATE), (60 * HOUR, BAD)),
        ).linked(alarm("AskfirstProposalsWaiting")),
        stat(
            "Late",
            "Proposals of any agent that have waited over half the time until they expire.",
            largest(_own("askfirst_proposals_late")),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, LATE)),
        ).linked(alarm("AskfirstProposalsWaiting")),
        stat(
            "Not carried out",
            "Approved changes that could not be carried out: askfirst proposals show ID, then apply or "
            "reject.",
            total(_own("askfirst_proposals", status="apply_failed|needs_attention")).or_zero(),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, BAD)),
        ).linked(alarm("AskfirstApplyFailing")),
        stat(
            "Decided",
            "Proposals that people approved or rejected in the time that is shown.",
            _did("approve|reject", RANGE).or_zero(),
            unit="short",
            decimals=0,
        ),
        stat(
            "Approved",
            "Part of the decided ones that was approved. Low: an agent proposes what nobody wants.",
            _approval_ratio(RANGE),
            unit="percentunit",
            decimals=0,
            nothing="none decided",
        ),
        stat(
            "Median time to decide",
            "Half of the decisions came within this time of the proposal.",
            quantile(0.5, _own(DECIDED, "bucket"), window=RANGE),
            unit="s",
            nothing="none decided",
        ),
        stat(
            "Failed to apply",
            "How often an approved change could not be carried out in the time that is shown, each try "
            "counted.",
            total(increase(_own("askfirst_proposal_apply_failures_total"), RANGE)).or_zero(),
            unit="short",
            decimals=0,
            steps=((None, WELL), (0.5, BAD)),
        ).linked(alarm("AskfirstApplyFailing")),
    ]


def _waiting() -> list[Panel]:
    return [
        series(
            "Waiting by agent",
            "Proposals that wait for a decision. A line that only rises: nobody looks.",
            [Target(expr=total(_own("askfirst_proposals", status="pending"), "agent"), legend="{{agent}}")],
            unit="short",
            width=8,
            stacked=True,
            decimals=0,
        ),
        series(
            "Age of the oldest",
            "Age of the proposal that has waited longest, of any agent. The lines are half of the usual 72 "
            "hours, and all of them.",
            [Target(expr=_own("askfirst_proposal_oldest_pending_age_seconds"), legend="oldest")],
            unit="s",
            width=8,
            steps=((None, PLAIN), (36 * HOUR, LATE), (72 * HOUR, BAD)),
        ).linked(alarm("AskfirstProposalsWaiting")),
        series(
            "Late over time",
            "Proposals of any agent that have waited over half the time until they expire. An expired one "
            "is not approved; it is gone.",
            [Target(expr=_own("askfirst_proposals_late"), legend="late")],
            unit="short",
            width=8,
            decimals=0,
            colors={"late": LATE},
        ).linked(alarm("AskfirstProposalsWaiting")),
        bar_gauge(
            "By status",
            "All proposals in the database by where they stand.",
            [Target(expr=total(_own("askfirst_proposals"), "status"), legend="{{status}}", instant=True)],
            unit="short",
            width=8,
            steps=((None, CALM),),
            nothing="No proposal yet",
        ),
        matrix(
            "By agent and status",
            "All proposals in the database.",
            Target(expr=total(_own("askfirst_proposals"), "agent", "status"), legend="{{agent}}"),
            rows="agent",
            columns="status",
            width=16,
        ),
    ]


def _decisions() -> list[Panel]:
    decided = _own(DECIDED, "bucket")
    return [
        bars(
            "What people did",
            "Approvals, edits, rejections, snoozes and undos in each stretch of time.",
            [
                Target(
                    expr=total(increase(_own("askfirst_proposal_decisions_total")), "action"),
                    legend="{{action}}",
                )
            ],
            colors=ACTIONS,
        ),
        series(
            "Approved of the decided",
            "Part of the decided proposals that was approved in each stretch of time.",
            [Target(expr=_approval_ratio(), legend="approved")],
            unit="percentunit",
            most=1,
            nothing="Nothing was decided in this time",
            seldom=True,
        ),
        series(
            "Time to decide",
            "Half of the decisions, and 9 of 10, came within this time of the proposal.",
            [
                Target(expr=quantile(0.5, decided), legend="p50", exemplars=True),
                Target(expr=quantile(0.9, decided), legend="p90"),
            ],
            unit="s",
            colors={"p50": WELL, "p90": LATE},
            nothing="Nothing was decided in this time",
            seldom=True,
        ),
        heatmap(
            "Spread of the time to decide",
            "How the times from a proposal to its decision are spread: darker is more decisions.",
            total(increase(decided), "le"),
            unit="s",
        ),
    ]


def _applied() -> list[Panel]:
    ended = "applied|undone|rejected|expired|superseded|withdrawn"
    return [
        series(
            "How proposals ended",
            "Closed proposals in the database by how they ended; it falls when old ones are forgotten. "
            "Many expired: nobody looks. Many undone: what was approved was not what was wanted.",
            [Target(expr=total(_own("askfirst_proposals", status=ended), "status"), legend="{{status}}")],
            unit="short",
            width=8,
            decimals=0,
            colors={"applied": WELL, "undone": BAD, "rejected": LATE, "expired": NOTICE},
        ),
        bars(
            "Failed tries to apply",
            "Tries to carry out an approved change that failed. A few are tried again by themselves.",
            [Target(expr=increase(_own("askfirst_proposal_apply_failures_total")), legend="failed")],
            width=8,
            colors={"failed": BAD},
        ).linked(alarm("AskfirstApplyFailing")),
        series(
            "On the way or stuck",
            "Approved proposals that are not carried out yet, and those that need a person.",
            [
                Target(
                    expr=total(
                        _own(
                            "askfirst_proposals",
                            status="approved|applying|apply_failed|needs_attention|undoing",
                        ),
                        "status",
                    ),
                    legend="{{status}}",
                )
            ],
            unit="short",
            width=8,
            decimals=0,
            colors={"apply_failed": LATE, "needs_attention": BAD},
            nothing="None",
        ).linked(alarm("AskfirstApplyFailing")),
    ]
