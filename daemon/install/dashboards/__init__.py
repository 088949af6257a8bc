"""Dashboards: everything in config/grafana, made from Python so that it cannot drift from the metrics' names.

`make dashboards` (python -m daemon.install.dashboards) writes it. It is no part of the program: the wheel
carries what it writes.

    promql        queries, made from the names and labels of the catalogue; a name that is not there raises
    panels        the kinds of panels: stat, time series, bars, table, heatmap, state timeline, ...
    alarms        the alarms of config/prometheus, and the way to their runbooks
    boards        a dashboard: rows laid out on Grafana's 24 columns, variables, links, JSON
    overview models inbox    the three dashboards
    provisioning  the two files by which Grafana finds its data source and the dashboards

The JSON is Grafana's classic model, which 11, 12 and 13 read from files:
https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations
