"""The two files by which Grafana finds its data source and the dashboards."""

from __future__ import annotations

DATASOURCES = """\
# The Prometheus that scrapes Askfirst. Where you have one in Grafana already, leave this file out and choose
# yours at the top of a dashboard; switch on "Manage alerts via Alerting UI" there, for the list of alerts.
# Made by `make dashboards`.
apiVersion: 1

datasources:
  - name: Askfirst Prometheus
    uid: askfirst-prometheus
    type: prometheus
    access: proxy
    url: http://127.0.0.1:9090
    # Never the default: Grafana does not start with two of these.
    isDefault: false
    editable: true
    jsonData:
      httpMethod: POST
      # The scrape interval of config/prometheus: rates are made over four of these and more.
      timeInterval: 30s
      prometheusType: Prometheus
      manageAlerts: true
"""

DASHBOARDS = """\
# The dashboards of Askfirst, read again when their files change. Made by `make dashboards`.
apiVersion: 1

providers:
  - name: askfirst
    type: file
    folder: Askfirst
    folderUid: askfirst
    disableDeletion: false
    # Changes made in Grafana would be lost with the next upgrade. Save a copy under another name instead.
    allowUiUpdates: false
    updateIntervalSeconds: 60
    options:
      path: /var/lib/grafana/dashboards/askfirst
"""

FILES = {
    "provisioning/datasources/askfirst.yaml": DATASOURCES,
    "provisioning/dashboards/askfirst.yaml": DASHBOARDS,
}
"""Each file, below config/grafana, with its text."""
