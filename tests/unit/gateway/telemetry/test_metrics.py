from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_two_nodes_in_one_process_do_not_share_series():
    one, other = Metrics(), Metrics()
    one.published.inc()
    assert samples(one)["fleetcast_alerts_published_total", ()] == 1
    assert samples(other)["fleetcast_alerts_published_total", ()] == 0


def test_closed_sets_of_labels_are_there_from_the_start_at_zero():
    values = samples(Metrics())
    assert values["fleetcast_device_connections", (("transport", "longpoll"),)] == 0
    assert values["fleetcast_alerts_dead_lettered_total", (("reason", "attempts"),)] == 0
    assert values["fleetcast_deployment_transitions_total", (("state", "rolled_back"),)] == 0


def test_an_unknown_label_is_our_bug():
    with pytest.raises(KeyError):
        Metrics().connections["pigeon"].inc()


def test_close_codes_and_routes_are_counted_by_label():
    metrics = Metrics()
    metrics.closed(4001)
    metrics.closed(4001)
    metrics.http_answered("/api/v1/channels/{name}", 204, 0.002)
    metrics.http_answered("/api/v1/channels/{name}", 200, 0.002)
    values = samples(metrics)
    assert values["fleetcast_device_closes_total", (("code", "4001"),)] == 2
    labels = (("route", "/api/v1/channels/{name}"), ("status", "2xx"))
    assert values["fleetcast_http_request_seconds_count", labels] == 2


def test_rollout_states_that_are_not_named_have_none():
    metrics = Metrics()
    metrics.rollouts_are({"running": 2, "paused": 1})
    metrics.rollouts_are({"running": 1})
    values = samples(metrics)
    assert values["fleetcast_rollouts", (("state", "running"),)] == 1
    assert values["fleetcast_rollouts", (("state", "paused"),)] == 0


@pytest.mark.parametrize(("state", "number"), [("closed", 0), ("half_open", 1), ("open", 2)])
def test_circuit_state_is_a_number(state, number):
    metrics = Metrics()
    metrics.circuit_is(state)
    assert samples(metrics)["fleetcast_origin_circuit_state", ()] == number


def test_every_series_has_our_prefix_and_a_meaning():
    for family in Metrics().registry.collect():
        assert family.name.startswith(("fleetcast_", "process_"))
        assert family.documentation
