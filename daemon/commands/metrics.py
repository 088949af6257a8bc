"""`askfirst metrics`: every metric there is, as the catalogue has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.render import Column, Screen

if TYPE_CHECKING:
    from daemon.observability.catalogue import Metric


@click.group(
    "metrics",
    short_help="See what is measured.",
    epilog=examples("askfirst metrics list", "askfirst metrics list --json"),
)
@command_options
def command() -> None:
    """See what is measured: what /metrics shows to Prometheus."""


@command.command(
    "list", epilog=examples("askfirst metrics list", "askfirst metrics list --markdown > docs/metrics.md")
)
@click.option("--markdown", is_flag=True, help="A document for people: docs/metrics.md.")
@command_options
@pass_invocation
def list_metrics(call: Invocation, markdown: bool) -> None:
    """List every metric with its type, unit, labels and meaning. Needs no configuration and no daemon."""
    screen = call.screen()
    if screen.as_json:
        screen.data(data())
    elif markdown:
        screen.line(document().rstrip("\n"))
    else:
        _show(screen)


def data() -> dict[str, Any]:
    """All metrics and labels as plain values."""
    from daemon.observability.catalogue import GROUPS, LABELS  # noqa: PLC0415 - loads parts of all layers

    return {
        "metrics": [_plain(metric, group) for group, metrics in GROUPS.items() for metric in metrics],
        "labels": dict(LABELS),
    }


def _plain(metric: Metric, group: str) -> dict[str, Any]:
    return {
        "name": metric.name,
        "group": group,
        "type": metric.kind,
        "unit": metric.unit,
        "labels": list(metric.labels),
        "meaning": metric.help,
        "buckets": list(metric.buckets),
        "other": metric.together if _has_names(metric) else None,
    }


def _show(screen: Screen) -> None:
    from daemon.observability.catalogue import GROUPS, LABELS  # noqa: PLC0415 - loads parts of all layers

    heads = (Column("name", style="bold"), *map(Column, ("type", "unit", "labels", "meaning")))
    for at, (group, metrics) in enumerate(GROUPS.items()):
        if at:
            screen.line()
        screen.line(group, "bold")
        rows = [(each.name, each.kind, each.unit, ", ".join(each.labels), each.help) for each in metrics]
        screen.table(heads, rows)
    screen.heading("Labels")
    screen.fields((name, meaning.replace("`", "")) for name, meaning in LABELS.items())


def document() -> str:
    """docs/metrics.md."""
    from daemon.observability.catalogue import (  # noqa: PLC0415 - loads parts of all layers
        CALL_BUCKETS,
        GROUPS,
        LABELS,
    )

    parts = [HEAD]
    for group, metrics in GROUPS.items():
        rows = [
            (f"`{each.name}`", each.kind, each.unit, ", ".join(map(_code, each.labels)), each.help)
            for each in metrics
        ]
        parts.append(f"## {group}\n\n{_table(('metric', 'type', 'unit', 'labels', 'meaning'), rows)}")
    histograms = [each for metrics in GROUPS.values() for each in metrics if each.buckets]
    buckets = _table(
        ("histogram", "buckets"), [(_code(each.name), ", ".join(_numbers(each))) for each in histograms]
    )
    parts.append(
        f"## Histograms\n\n{HISTOGRAMS.strip().format(longest=f'{CALL_BUCKETS[-1]:g}')}\n\n{buckets}"
    )
    labels = _table(("label", "what it can be"), [(_code(name), text) for name, text in LABELS.items()])
    parts.append(f"## Labels\n\n{labels}")
    together = _table(("metric", "what `other` is"), list(_of_others()))
    parts.append(f"## Never too many series\n\n{SERIES.strip()}\n\n{together}")
    parts.append(EXEMPLARS)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _of_others() -> Iterator[tuple[str, str]]:
    from daemon.observability.catalogue import METRICS  # noqa: PLC0415 - loads parts of all layers

    for name, metric in METRICS.items():
        if metric.kind == "gauge" and _has_names(metric):
            ways = {"sum": "the sum", "left out": "not shown"}
            yield _code(name), ways.get(metric.together, f"the {metric.together} of them")


def _has_names(metric: Metric) -> bool:
    from daemon.observability.catalogue import NAMES  # noqa: PLC0415 - loads parts of all layers

    return any(label in NAMES for label in metric.labels)


def _numbers(metric: Metric) -> Iterator[str]:
    return (f"{bound:g}" for bound in metric.buckets)


def _code(text: str) -> str:
    return f"`{text}`"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in (heads, *rows)]
    return "\n".join((lines[0], "|" + "---|" * len(heads), *lines[1:]))


HEAD = """
# Metrics

What `http://127.0.0.1:8484/metrics` shows to [Prometheus](https://prometheus.io). How to let it, and which to
begin with, is told [here](operations.md#watch). All of this is what the program says of itself:

```sh
askfirst metrics list
askfirst metrics list --json
```

`askfirst metrics list --markdown > docs/metrics.md` makes this page, and a test keeps it true. A metric that
has had nothing to show since the program began is not there yet. Counters of the agents and models that the
configuration names begin at 0.
"""

HISTOGRAMS = """
Upper bounds of their buckets, chosen for small machines: on a Raspberry Pi a call takes seconds to minutes,
and the last bound, {longest} seconds, is above the longest time limit of a call. The token histogram has
those of OpenTelemetry's conventions that small models reach.
"""

SERIES = """
A series is one line of `/metrics`: each bucket of a histogram is one. However many agents, models and
errors there are, and whatever they are called, there are at most 200, or `metrics.max_series` of the
[configuration](configuration.md). No input can grow the number: label values come from the configuration or
from lists in the program. Any other value is counted as `other`.

So is an agent or a model beyond those that there is room for, and no sum is ever wrong. Of the agents the
first ones of the configuration are shown by name, each with all its metrics. Budgets, backends and models
come before them, and take a third of the free room each at most. Of the models the first one has a place
for its histograms beforehand, another one gets it with its first call if there is room. Rare outcomes,
statuses and error codes have a name while there is room, and are `other` after that. The log says at the
start what is not shown by name.

Three agents, one model with streamed answers and one budget are shown in full. Each further agent takes
about 10 series, each further model 15, and 35 more for its histograms: `max_series = 1000` is enough for
fifty agents and five models.

Where a sum over several agents or backends would mean nothing, `other` is what an alert needs:
"""

EXEMPLARS = """
## Which run was it

Scrapers that take [OpenMetrics](https://prometheus.io/docs/specs/om/open_metrics_spec/) get an exemplar with
counters and buckets: the last run, `run_id`, and model call, `call_id`, that were counted there. Prometheus
keeps them if it is started with `--enable-feature=exemplar-storage`. From a slow bucket to what happened:

<!-- example: not run, there is no such run -->
```sh
askfirst runs show 0190f3a1
```

The plain text format has no exemplars.
"""
