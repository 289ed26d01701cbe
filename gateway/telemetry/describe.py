"""The metrics for people: docs/reference/metrics.md, made from ``Metrics`` so that it cannot differ."""

from __future__ import annotations

from typing import Final

from prometheus_client.metrics_core import Metric

from gateway.telemetry.metrics import Metrics

_HEAD: Final = """\
# Metrics

`GET /metrics` answers in Prometheus's text format, version 0.0.4, unless `metrics.enabled` is false. Each
node speaks for itself; sum over nodes. Nothing is labelled by device, fleet or channel: what is asked about
one of them, the operator API answers.

This page is made from the code: `python -m gateway.telemetry > docs/reference/metrics.md`.

| metric | type | labels | meaning |
|---|---|---|---|
"""
# Labels whose values are not a closed set of ours.
_OPEN_LABELS: Final = {
    ("fleetcast_device_closes", "code"): "a close code ([codes.md](codes.md))",
    ("fleetcast_http_request_seconds", "route"): "the pattern of a route",
    ("fleetcast_http_request_seconds", "status"): "`2xx` … `5xx`",
}
_SUFFIX: Final = {"counter": "_total"}


def reference() -> str:
    """Return the reference page, as Markdown."""
    metrics = Metrics()
    # What has an open set of labels shows them only once there is a child.
    metrics.closed(1000)
    metrics.http_answered("/", 200, 0.0)
    return _HEAD + "".join(map(_row, metrics.registry.collect()))


def _row(metric: Metric) -> str:
    name = metric.name + _SUFFIX.get(metric.type, "")
    return f"| `{name}` | {metric.type} | {_labels(metric)} | {metric.documentation} |\n"


def _labels(metric: Metric) -> str:
    found: dict[str, list[str]] = {}
    for sample in metric.samples:
        for label, value in sample.labels.items():
            if label != "le" and value not in found.setdefault(label, []):
                found[label].append(value)
    return "<br>".join(
        f"`{label}`: " + _OPEN_LABELS.get((metric.name, label), ", ".join(f"`{value}`" for value in values))
        for label, values in found.items()
    )
