from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from gateway.telemetry import configure_logs, logger


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_event_and_fields(stream):
    configure_logs(format="json", stream=stream)
    logger("hub").info("published", channel="alerts", offset=3)
    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "area": "hub",
        "event": "published",
        "channel": "alerts",
        "offset": 3,
    }


def test_lines_below_the_level_are_not_written(stream):
    configure_logs(format="json", level="warning", stream=stream)
    logger("hub").info("quiet")
    logger("hub").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_a_logger_made_before_the_setup_writes_where_the_setup_says(stream):
    early = logger("early")
    configure_logs(format="json", stream=stream)
    early.info("hello")
    assert lines(stream)[0]["area"] == "early"


@pytest.mark.parametrize(
    "name", ["token", "Authorization", "payload", "private_key", "client_secret", "body"]
)
def test_fields_that_are_secrets_by_name_are_hidden(stream, name):
    configure_logs(format="json", stream=stream)
    logger("edge").info("x", **{name: "hunter2"})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][name] == "[hidden]"


@pytest.mark.parametrize(
    "text",
    [
        "GET / Authorization: Bearer hunter2hunter2",
        "bearer hunter2hunter2",
        "fct_hunter2hunter2hunter2",
        "eyJhbGciOiJFUzI1NiJ9.hunter2.hunter2",
    ],
)
def test_tokens_inside_a_text_are_cut_out(stream, text):
    configure_logs(format="json", stream=stream)
    logger("edge").info(f"failed: {text}", detail=text, error=ValueError(text))
    assert "hunter2" not in stream.getvalue()


def test_tokens_inside_a_traceback_are_cut_out(stream):
    configure_logs(format="json", stream=stream)
    try:
        raise ValueError("Bearer hunter2hunter2")
    except ValueError:
        logger("edge").exception("failed")
    (line,) = lines(stream)
    assert "ValueError" in str(line["exception"])
    assert "hunter2" not in stream.getvalue()


def test_bytes_are_logged_as_their_length(stream):
    configure_logs(format="json", stream=stream)
    logger("edge").info("x", envelope=b"secret")
    assert lines(stream)[0]["envelope"] == "[6 bytes]"


def test_the_standard_library_writes_the_same_lines(stream):
    configure_logs(format="json", stream=stream)
    logging.getLogger("aiohttp.server").warning("bad request from %s", "10.0.0.1")
    logging.getLogger("sqlalchemy.engine").info("parameters: secret")
    (line,) = lines(stream)
    assert line["event"] == "bad request from 10.0.0.1"
    assert line["area"] == "aiohttp.server"
    assert line["level"] == "warning"


def test_a_traceback_of_the_standard_library_is_on_its_line(stream):
    configure_logs(format="json", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("asyncio").exception("callback failed")
    (line,) = lines(stream)
    assert "ValueError: broken" in str(line["exception"])


def test_setting_up_twice_does_not_write_twice(stream):
    configure_logs(format="json", stream=stream)
    configure_logs(format="json", stream=stream)
    logging.getLogger("x").error("once")
    assert len(lines(stream)) == 1


def test_console_lines_are_text_without_colours_off_a_terminal(stream):
    configure_logs(format="console", stream=stream)
    logger("hub").info("published", channel="alerts")
    text = stream.getvalue()
    assert "published" in text
    assert "channel=alerts" in text
    assert "\x1b" not in text


def test_context_of_the_task_is_on_its_lines(stream):
    configure_logs(format="json", stream=stream)
    with structlog.contextvars.bound_contextvars(device_id="dev-1"):
        logger("session").info("x")
    logger("session").info("y")
    assert [line.get("device_id") for line in lines(stream)] == ["dev-1", None]
