"""The overview: is it well, do the agents do their work, does anything need a person?"""

from __future__ import annotations

from daemon.install.dashboards.alarms import alarm, alarm_names
from daemon.install.dashboards.boards import Board, Row, Variable
from daemon.install.dashboards.panels import (
    BAD,
    CALM,
    LATE,
    NOTICE,
    PLAIN,
    WELL,
    Column,
    Link,
    Panel,
    Target,
    alert_list,
    bar_gauge,
    bars,
    dashboard,
    heatmap,
    runbook,
    series,
    stat,
    state_timeline,
    table,
)
from daemon.install.dashboards.promql import (
    RANGE,
    Expr,
    Source,
    alerts,
    increase,
    largest,
    number,
    number_of_alerts,
    rate,
    ratio,
    total,
    up,
)

LATE_AFTER = 3
"""Intervals without a success after which an agent is late; the alert rule says the same."""

_own = Source({"agent": ("agent",)})

OUTCOMES = {
    "succeeded": WELL,
    "failed": BAD,
    "timed_out": LATE,
    "cancelled": "gray",
    "interrupted": "purple",
}

INBOX = dashboard("askfirst-inbox", "To the inbox")
MODELS = dashboard("askfirst-models", "To the models")


def board() -> Board:
    """The dashboard."""
    return Board(
        uid="askfirst-overview",
        description="Is Askfirst well, do its agents do their work, does anything wait for a person?",
        variables=[
            Variable(name="agent", title="Agent", metric="askfirst_agent_runs_total", label="agent"),
        ],
        rows=[
            Row(title="Now", panels=_now()),
            Row(title="Alerts", panels=_alerts()),
            Row(title="Agents", panels=_agents()),
            Row(title="Proposals and models", panels=_work()),
            Row(title="The program", panels=_program()),
            Row(title="Disk and database", panels=_disk()),
        ],
    )


def _now() -> list[Panel]:
    return [
        stat(
            "Daemon",
            "Whether Prometheus reaches the daemon. Down: the program, the machine or the network between.",
            up(),
            unit="short",
            values={1: ("up", WELL), 0: ("down", BAD)},
        ).linked(alarm("AskfirstDown"), alarm("AskfirstAbsent")),
        stat(
            "Version",
            "The version of Askfirst that runs.",
            _own("askfirst_build_info"),
            unit="short",
            legend="{{version}}",
            names=True,
            nothing="none",
        ),
        stat(
            "Running since",
            "When the program began. If this is young and nobody started it: it ended by itself or was "
            "killed.",
            _own("process_start_time_seconds") * 1000,
            unit="dateTimeFromNow",
            nothing="not running",
        ).linked(alarm("AskfirstRestarting")),
        stat(
            "Alerts firing",
            "Alerts of Askfirst that fire now, on any of its daemons; the next row says which.",
            number_of_alerts(alertstate="firing"),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, BAD)),
        ).linked(runbook("what-each-alarm-means")),
        stat(
            "Proposals waiting",
            "Proposals that wait for a person. Nothing happens to them until somebody decides or they "
            "expire.",
            total(_own("askfirst_proposals", status="pending")),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, CALM)),
        ).linked(INBOX, alarm("AskfirstProposalsWaiting")),
        stat(
            "Agents late",
            f"Agents without a success for more than {LATE_AFTER} intervals of their schedule.",
            number(_own("askfirst_agent_intervals_since_success").above(LATE_AFTER)).or_zero(),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, BAD)),
        ).linked(alarm("AskfirstAgentStale")),
        stat(
            "Quarantined",
            "Agents that are not run any more because they failed too often: "
            "askfirst agents why NAME says why, askfirst agents resume NAME lets it run again.",
            total(_own("askfirst_agent_quarantined")).or_zero(),
            unit="short",
            decimals=0,
            steps=((None, WELL), (1, BAD)),
        ).linked(alarm("AskfirstAgentQuarantined")),
        stat(
            "Disk free",
            "Free part of the disk of the data folder. When it is nearly full, agents stop and decisions go "
            "on.",
            _own("askfirst_disk_free_bytes") / _own("askfirst_disk_size_bytes"),
            unit="percentunit",
            decimals=0,
            steps=((None, BAD), (0.05, LATE), (0.1, WELL)),
        ).linked(alarm("AskfirstDiskLow"), alarm("AskfirstStorageFull")),
    ]


def _alerts() -> list[Panel]:
    over_time = state_timeline(
        "Alerts over time",
        "When each alert of Askfirst was pending or fired, on any of its daemons. "
        "A click on one leads to its runbook.",
        [
            Target(
                expr=largest(alerts(alertstate="pending"), "alertname").or_else(
                    largest(alerts(alertstate="firing"), "alertname") * 2
                ),
                legend="{{alertname}}",
            )
        ],
        values={1: ("pending", NOTICE), 2: ("firing", BAD)},
        width=16,
        height=6,
        nothing="No alert in this time",
        series_links={name: [alarm(name)] for name in alarm_names()},
    )
    return [
        alert_list(
            "Alerts now",
            "Alerts of Askfirst that are pending or fire, as Grafana reads them from Prometheus and from "
            "itself; each one's page has the button to its runbook.",
            width=8,
            height=6,
        ).linked(runbook("what-each-alarm-means")),
        over_time.linked(runbook("what-each-alarm-means")),
    ]


def _agents() -> list[Panel]:
    return [
        _agent_table(),
        bars(
            "Runs by outcome",
            "Runs in each stretch of time by how they ended. Single failures are normal: they are tried "
            "again.",
            [
                Target(
                    expr=total(increase(_own("askfirst_agent_runs_total")), "outcome"),
                    legend="{{outcome}}",
                )
            ],
            colors=OUTCOMES,
        ).linked(alarm("AskfirstRunsFailing")),
        state_timeline(
            "State of each agent",
            f"Late: no success for more than {LATE_AFTER} intervals. Quarantined: not run until a person "
            "resumes it.",
            [Target(expr=_agent_state(), legend="{{agent}}")],
            values={0: ("well", WELL), 1: ("late", LATE), 2: ("quarantined", BAD), 3: ("quarantined", BAD)},
        ).linked(alarm("AskfirstAgentStale"), alarm("AskfirstAgentQuarantined")),
        series(
            "Intervals since the last success",
            "Time since each agent last succeeded, in intervals of its schedule: about 1 is as it should be, "
            f"above {LATE_AFTER} the agent is late.",
            [
                Target(
                    expr=largest(_own("askfirst_agent_intervals_since_success"), "agent"), legend="{{agent}}"
                )
            ],
            unit="short",
            decimals=1,
            steps=((None, PLAIN), (LATE_AFTER, BAD)),
        ).linked(alarm("AskfirstAgentStale")),
        series(
            "Duration of the last run",
            "How long each agent's last run took, model calls included.",
            [
                Target(
                    expr=largest(_own("askfirst_agent_last_run_duration_seconds"), "agent"),
                    legend="{{agent}}",
                )
            ],
            unit="s",
        ),
        heatmap(
            "Duration of runs",
            "How the durations of all agents' runs are spread: darker is more runs.",
            total(increase(_own("askfirst_agent_run_duration_seconds", "bucket")), "le"),
            unit="s",
        ),
        heatmap(
            "Lateness of runs",
            "Time from when a run was due to when it began. Seconds: a place was waited for; hours: a due "
            "time was caught up after the program or the machine was off.",
            total(increase(_own("askfirst_agent_run_lateness_seconds", "bucket")), "le"),
            unit="s",
        ).linked(alarm("AskfirstRunsMissed")),
    ]


def _agent_table() -> Panel:
    runs = _own("askfirst_agent_runs_total", outcome="succeeded")
    failures = _own("askfirst_agent_runs_total", outcome="failed|timed_out|interrupted")
    return table(
        "Agents",
        "How each agent stands. Runs, failures and missed due times are those of the time that is shown. "
        "No next run: only a person or an event brings one.",
        {"agent": "Agent"},
        [
            Column(
                name="Last success",
                expr=largest(_own("askfirst_agent_last_success_timestamp_seconds"), "agent") * 1000,
                unit="dateTimeFromNow",
            ),
            Column(
                name="Next run",
                expr=largest(_own("askfirst_agent_next_run_timestamp_seconds"), "agent") * 1000,
                unit="dateTimeFromNow",
            ),
            Column(
                name="Intervals since success",
                expr=largest(_own("askfirst_agent_intervals_since_success"), "agent"),
                unit="short",
                decimals=1,
                steps=((None, WELL), (2, NOTICE), (LATE_AFTER, BAD)),
            ),
            Column(
                name="Last run took",
                expr=largest(_own("askfirst_agent_last_run_duration_seconds"), "agent"),
                unit="s",
            ),
            Column(name="Succeeded", expr=total(increase(runs, RANGE), "agent"), unit="short", decimals=0),
            Column(
                name="Failed",
                expr=total(increase(failures, RANGE), "agent"),
                unit="short",
                decimals=0,
                steps=((None, PLAIN), (0.5, LATE)),
            ),
            Column(
                name="Missed",
                expr=total(increase(_own("askfirst_agent_missed_total"), RANGE), "agent"),
                unit="short",
                decimals=0,
                steps=((None, PLAIN), (0.5, LATE)),
            ),
            Column(
                name="Waiting",
                expr=total(_own("askfirst_proposals", status="pending"), "agent"),
                unit="short",
                decimals=0,
            ),
            Column(
                name="Quarantined",
                expr=largest(_own("askfirst_agent_quarantined"), "agent"),
                unit="short",
                values={0: ("no", WELL), 1: ("yes", BAD)},
            ),
        ],
        key_links=[
            Link(
                title="Proposals of ${__data.fields.Agent}",
                url="/d/askfirst-inbox?${__url_time_range}&${datasource:queryparam}&${job:queryparam}"
                "&${instance:queryparam}&${runbooks:queryparam}&var-agent=${__data.fields.Agent}",
            )
        ],
        nothing="No agent has run yet",
    ).linked(runbook("when-agents-run", "What became of each due time"), runbook("when-an-agent-fails"))


def _agent_state() -> Expr:
    quarantined = largest(_own("askfirst_agent_quarantined"), "agent") * 2
    late = largest(_own("askfirst_agent_intervals_since_success").above(LATE_AFTER, as_bool=True), "agent")
    # An agent that only events bring has no intervals, and is still in quarantine or not.
    return (quarantined + late).or_else(quarantined)


def _work() -> list[Panel]:
    hits = total(increase(_own("askfirst_llm_cache_hits_total")))
    misses = total(increase(_own("askfirst_llm_cache_misses_total")))
    used, left = _own("askfirst_llm_budget_used"), _own("askfirst_llm_budget_left")
    return [
        series(
            "Waiting by agent",
            "Proposals that wait for a decision, by agent.",
            [Target(expr=total(_own("askfirst_proposals", status="pending"), "agent"), legend="{{agent}}")],
            unit="short",
            width=6,
            stacked=True,
            decimals=0,
        ).linked(INBOX),
        bars(
            "Model calls",
            "What became of each question to a model: answered by one, by the cache, together with an "
            "identical one, or failed.",
            [
                Target(
                    expr=total(increase(_own("gen_ai_client_operation_duration_seconds", "count"))),
                    legend="model",
                ),
                Target(expr=hits, legend="cache"),
                Target(expr=total(increase(_own("askfirst_llm_coalesced_total"))).or_zero(), legend="shared"),
                Target(expr=total(increase(_own("askfirst_llm_errors_total"))).or_zero(), legend="failed"),
            ],
            width=6,
            colors={"model": CALM, "cache": WELL, "shared": "purple", "failed": BAD},
        ).linked(MODELS),
        series(
            "Cache hit ratio",
            "Which part of the questions the response cache answers. Falls when prompts or the data change, "
            "and after the cache was emptied.",
            [Target(expr=ratio(hits, hits + misses), legend="hit ratio")],
            unit="percentunit",
            width=6,
            most=1,
            nothing="No call in this time",
            seldom=True,
        ).linked(MODELS),
        bar_gauge(
            "Budgets spent",
            "Which part of each budget is spent since its hour, day or month began. At 100 % calls are "
            "refused and agents go on by rules.",
            [Target(expr=ratio(used, used + left), legend="{{budget}}", instant=True)],
            unit="percentunit",
            width=6,
            steps=((None, WELL), (0.8, LATE), (1, BAD)),
            most=1,
            nothing="No budget is set",
        ).linked(MODELS, alarm("AskfirstBudgetNearlyUsed")),
    ]


def _program() -> list[Panel]:
    return [
        series(
            "Loop lag",
            "The longest that the event loop kept others waiting in the last minute. Above a second, "
            "buttons and scrapes feel it.",
            [Target(expr=_own("askfirst_loop_lag_seconds"), legend="lag")],
            unit="s",
            width=8,
            steps=((None, PLAIN), (1, LATE)),
        ).linked(alarm("AskfirstLoopStalls")),
        bars(
            "Time stalled",
            "How long agents kept the whole program from all other work, beyond daemon.stall_after. "
            'isolation = "process" helps at once.',
            [
                Target(
                    expr=increase(_own("askfirst_loop_stalled_seconds_total")),
                    legend="stalled",
                )
            ],
            unit="s",
            width=8,
            colors={"stalled": BAD},
        ).linked(alarm("AskfirstLoopStalls")),
        series(
            "What waits",
            "Runs that wait for a free place, and log lines that wait to be written.",
            [Target(expr=largest(_own("askfirst_queue_length"), "queue"), legend="{{queue}}")],
            unit="short",
            width=8,
            decimals=0,
        ),
        series(
            "Memory",
            "Resident memory of the daemon itself. Models and agents in processes of their own are not in "
            "it.",
            [Target(expr=_own("process_resident_memory_bytes"), legend="resident")],
            unit="bytes",
            width=8,
        ),
        series(
            "CPU",
            "CPU time that the daemon uses, in cores. Idle it is next to nothing.",
            [Target(expr=rate(_own("process_cpu_seconds_total")), legend="cores")],
            unit="short",
            width=8,
            decimals=3,
        ),
        series(
            "Open files",
            "Open files and connections. A line that only rises is a leak.",
            [Target(expr=_own("process_open_fds"), legend="open")],
            unit="short",
            width=8,
            decimals=0,
        ),
        bars(
            "Log lines dropped",
            "Log lines that were lost because whoever reads the log was too slow.",
            [Target(expr=increase(_own("askfirst_log_lines_dropped_total")), legend="dropped")],
            width=8,
            colors={"dropped": LATE},
        ).linked(runbook("logs", "Logs"), alarm("AskfirstLogLinesDropped")),
        bars(
            "Clock steps and stalls",
            "How often the clock was set or the machine slept, and how often an agent kept the program from "
            "its work. A step loses no run.",
            [
                Target(expr=increase(_own("askfirst_clock_steps_total")), legend="clock steps"),
                Target(expr=increase(_own("askfirst_loop_stalls_total")), legend="stalls"),
            ],
            width=8,
            colors={"clock steps": "purple", "stalls": BAD},
        ).linked(runbook("time", "Time"), alarm("AskfirstClockStepped")),
        state_timeline(
            "Housekeeping",
            "Whether backups and the forgetting of old records succeed, and whether the disk leaves room "
            "for runs.",
            [
                Target(
                    expr=largest(_own("askfirst_housekeeping_failing"), "task"),
                    legend="{{task}}",
                ),
                Target(expr=largest(_own("askfirst_storage_full")), legend="room on the disk"),
            ],
            values={0: ("well", WELL), 1: ("failing", BAD)},
            width=8,
        ).linked(
            runbook("back-up-restore", "Backups"),
            runbook("when-the-disk-is-full", "Disk full"),
            alarm("AskfirstHousekeepingFailing"),
            alarm("AskfirstStorageFull"),
        ),
    ]


def _disk() -> list[Panel]:
    return [
        series(
            "Disk",
            "Free room on the disk of the data folder, and how large the disk is.",
            [
                Target(expr=_own("askfirst_disk_free_bytes"), legend="free"),
                Target(expr=_own("askfirst_disk_size_bytes"), legend="size"),
            ],
            unit="bytes",
            width=8,
            colors={"free": WELL, "size": "gray"},
        ).linked(alarm("AskfirstDiskFilling"), alarm("AskfirstDiskLow")),
        series(
            "Databases",
            "Size of the database with its write-ahead log, and of the response cache, which deletes its "
            "oldest answers at its limit.",
            [
                Target(expr=_own("askfirst_database_size_bytes"), legend="database"),
                Target(expr=_own("askfirst_llm_cache_size_bytes"), legend="response cache"),
            ],
            unit="bytes",
            width=8,
        ).linked(runbook("what-is-forgotten", "What is forgotten"), alarm("AskfirstDatabaseGrowing")),
        bars(
            "Database writes",
            "Transactions that were committed: each is a write to the disk, which an SD card does not like. "
            "Idle there is none.",
            [Target(expr=increase(_own("askfirst_database_writes_total")), legend="transactions")],
            width=8,
        ),
    ]
