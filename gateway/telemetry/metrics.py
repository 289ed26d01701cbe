"""Metrics of one node, as Prometheus reads them.

One ``Metrics`` object is made in ``app`` and passed on; there is no global registry. Children with labels are
bound here once, because ``labels()`` costs more than the ``inc()`` after it: what has a closed set of labels
is a mapping from label to child, and an unknown label is our bug. Nothing is labelled by device, fleet or
channel: a million devices must not become a million series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

TRANSPORTS: Final = ("websocket", "longpoll", "events")
ACCEPT_LANES: Final = ("ticket", "stranger")
DELIVERY_KINDS: Final = ("live", "page", "redelivery")
DEAD_LETTER_REASONS: Final = ("nacked", "expired", "attempts")
ORIGIN_OUTCOMES: Final = ("accepted", "refused", "unknown")
CACHE_RESULTS: Final = ("hit", "refused", "joined", "miss", "ticket")
VOID_REASONS: Final = (
    "behind",
    "malformed",
    "unknown_key",
    "forged",
    "expired",
    "wrong_token",
    "wrong_claim",
    "revoked",
    "re_enrolled",
)
CIRCUIT_STATES: Final = ("closed", "half_open", "open")
UPLINK_OUTCOMES: Final = ("recorded", "refused", "unavailable", "busy")
REPORT_STATUSES: Final = ("recorded", "duplicate", "refused")
ROLLOUT_STATES: Final = ("running", "paused", "aborted", "finished")
DEPLOYMENT_STATES: Final = (
    "notified",
    "received",
    "verified",
    "downloading",
    "installing",
    "rebooting",
    "committed",
    "failed",
    "rejected",
    "rolled_back",
    "timed_out",
    "cancelled",
    "superseded",
)

_FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUEST_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DELIVERY_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)
_ROWS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class Metrics:
    """Every series of a node. Attributes are grouped as the gateway's planes are."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.acked_lately = 0  # not in ``acked`` yet: counted for each ack, where ``inc`` costs too much
        self._devices()
        self._alerts()
        self._updates()
        self._identity()
        self._storage()
        self._http()

    def render(self) -> bytes:
        """Return all series in Prometheus's text format (``CONTENT_TYPE``). Some ms for 1,000 series."""
        self.acked.inc(self.acked_lately)
        self.acked_lately = 0
        return generate_latest(self.registry)

    def closed(self, code: int) -> None:
        """Count a WebSocket closed by us with ``code``, one of the registry ``CloseCode``."""
        child = self._closes_by_code.get(code)
        if child is None:
            child = self._closes_by_code[code] = self._closes.labels(str(code))
        child.inc()

    def http_answered(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP answer. ``route`` is the route's pattern, never the path a client sent."""
        key = (route, f"{status // 100}xx")
        child = self._http_by_route.get(key)
        if child is None:
            child = self._http_by_route[key] = self._http_seconds.labels(*key)
        child.observe(seconds)

    def rollouts_are(self, counts: Mapping[str, int]) -> None:
        """Set how many rollouts are in each state; states that are not named have none."""
        for state, gauge in self.rollouts.items():
            gauge.set(counts.get(state, 0))

    def circuit_is(self, state: str, *, of: str = "origin") -> None:
        """Set the state of the circuit to the origin or the uplinks' backend, one of ``CIRCUIT_STATES``."""
        circuit = self.origin_circuit if of == "origin" else self.uplink_circuit
        circuit.set(CIRCUIT_STATES.index(state))

    def _devices(self) -> None:
        self.connections = self._gauges("device_connections", "Devices connected.", "transport", TRANSPORTS)
        self.connects = self._counters(
            "device_connects", "Device sessions that began.", "transport", TRANSPORTS
        )
        self.sessions_behind = self._gauge("device_sessions_behind", "Sessions that are fed from the log.")
        self._closes = self._labelled("device_closes", "WebSockets closed by the gateway.", "code")
        self._closes_by_code: dict[int, Counter] = {}
        self.accepted = self._counters(
            "device_accepted", "New connections that were given their turn.", "lane", ACCEPT_LANES
        )
        self.not_accepted = self._counters(
            "device_not_accepted",
            "New connections told to come later, by lane or reason.",
            "reason",
            (*ACCEPT_LANES, "full", "draining"),
        )
        self.hello_timeouts = self._counter("device_hello_timeouts", "Connections that never said hello.")
        self.protocol_errors = self._counter("device_protocol_errors", "Messages refused as malformed.")

    def _alerts(self) -> None:
        self.published = self._counter("alerts_published", "Alerts committed to a log.")
        self.delivered = self._counters(
            "alerts_delivered", "Alerts written to a connection.", "kind", DELIVERY_KINDS
        )
        self.acked = self._counter("alerts_acked", "Alerts acknowledged by devices.")
        self.nacked = self._counter("alerts_nacked", "Alerts refused by a device.")
        self.redelivered = self.delivered["redelivery"]
        self.dead_lettered = self._counters(
            "alerts_dead_lettered", "Alerts given up for a device.", "reason", DEAD_LETTER_REASONS
        )
        self.publish_to_ack_s = self._histogram(
            "alert_publish_to_ack_seconds", "From the publish's commit to the ack's.", _DELIVERY_S
        )
        self.log_blocks_read = self._counter("alert_log_blocks_read", "Blocks of the log read.")
        self.log_blocks_hit = self._counter("alert_log_blocks_hit", "Blocks found in memory.")

    def _updates(self) -> None:
        self.rollouts = self._gauges("rollouts", "Rollouts by state.", "state", ROLLOUT_STATES)
        self.deployments = self._counters(
            "deployment_transitions", "Deployments that entered a state.", "state", DEPLOYMENT_STATES
        )
        self.updates_sent = self._counter("updates_sent", "Update notices written to a connection.")
        self.updates_redelivered = self._counter("updates_redelivered", "Update notices written again.")
        self.reports = self._counters("reports", "Reports answered.", "status", REPORT_STATUSES)
        self.signatures = self._counters(
            "signatures", "Objects signed online.", "role", ("alert", "directive", "statement")
        )
        self.uplinks = self._counters(
            "uplinks", "Uplinks answered, by what the device was told.", "outcome", UPLINK_OUTCOMES
        )
        self.uplinks_waiting = self._gauge("uplinks_waiting", "Uplinks on their way to the backend.")
        self.uplink_circuit = self._gauge(
            "uplink_circuit_state", "Of the uplinks' backend: 0 closed, 1 half open, 2 open."
        )
        self.artifact_bytes = self._counter("artifact_bytes", "Bytes of artifacts sent.")

    def _identity(self) -> None:
        self.origin_requests = self._counters(
            "origin_requests", "Questions to the origin by outcome.", "outcome", ORIGIN_OUTCOMES
        )
        self.origin_request_s = self._histogram(
            "origin_request_seconds", "Time until the origin answered, or did not.", _REQUEST_S
        )
        self.origin_waiting = self._gauge("origin_waiting", "Tokens waiting to be asked about.")
        self.origin_circuit = self._gauge("origin_circuit_state", "0 closed, 1 half open, 2 open.")
        self.verdicts = self._counters(
            "identity_verdicts", "Tokens judged, by where the verdict came from.", "result", CACHE_RESULTS
        )
        self.tickets_void = self._counters(
            "identity_tickets_void", "Tickets shown that were as none, by reason.", "reason", VOID_REASONS
        )
        self.revocations = self._counter("identity_revocations", "Revocations read from the feed.")
        self.refusal_alarm = self._gauge(
            "identity_refusal_alarm", "1 while refusals of lately accepted tokens are answered as retryable."
        )

    def _storage(self) -> None:
        self.flush_s = self._histogram("db_flush_seconds", "One transaction of the batching writer.", _FAST_S)
        self.flush_rows = self._histogram("db_flush_rows", "Rows in one such transaction.", _ROWS)
        self.queue_rows = self._gauge("db_queue_rows", "Rows that wait for the batching writer.")
        self.query_s = self._histogram("db_query_seconds", "One read or write outside of it.", _FAST_S)
        self.storage_failures = self._counter("db_failures", "Operations answered storage_unavailable.")

    def _http(self) -> None:
        self._http_seconds = Histogram(
            "fleetcast_http_request_seconds",
            "HTTP answers by route pattern and class of status.",
            ("route", "status"),
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self._http_by_route: dict[tuple[str, str], Histogram] = {}
        self.certificate_expires_at_s = self._gauge(
            "tls_certificate_expires_at_seconds",
            "When the certificate in use is over, Unix time; 0: none is.",
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"fleetcast_{name}", text, registry=self.registry)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"fleetcast_{name}", text, (label,), registry=self.registry)

    def _counters(self, name: str, text: str, label: str, values: Sequence[str]) -> Mapping[str, Counter]:
        parent = self._labelled(name, text, label)
        return {value: parent.labels(value) for value in values}

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"fleetcast_{name}", text, registry=self.registry)

    def _gauges(self, name: str, text: str, label: str, values: Sequence[str]) -> Mapping[str, Gauge]:
        parent = Gauge(f"fleetcast_{name}", text, (label,), registry=self.registry)
        return {value: parent.labels(value) for value in values}

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"fleetcast_{name}", text, buckets=buckets, registry=self.registry)
