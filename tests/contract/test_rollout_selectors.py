"""A selector means the same in SQL, on both databases, as its predicate does in Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select

from gateway.rollout.selector import Selector, Subject, parse_selector, predicate
from gateway.storage.engine import Database
from gateway.storage.selectors import condition
from gateway.storage.tables import device, fleet
from tests.harness import selectors as strategies

# The fixture's one database serves all examples: each begins by clearing it.
SHARED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def put_devices(conn: Connection, subjects: list[Subject]) -> dict[int, Subject]:
    conn.execute(delete(device))
    conn.execute(delete(fleet))
    fleet_id = conn.execute(insert(fleet).values(name="acme", created_at=0)).inserted_primary_key[0]
    rows = [
        {
            "fleet_id": fleet_id,
            "device_id": subject.device_id,
            "enrolment_id": bytes(16),
            "bucket": 0,
            "origin": dict(subject.origin),
            "reported": dict(subject.reported),
            "tags": sorted(subject.tags),
            "installed": {},
            "enrolled_at": 0,
        }
        for subject in subjects
    ]
    conn.execute(insert(device), rows)
    keys = conn.execute(select(device.c.device_id, device.c.id))
    by_name = {subject.device_id: subject for subject in subjects}
    return {key: by_name[name] for name, key in keys}


def matching(conn: Connection, selector: Selector) -> set[int]:
    return set(conn.scalars(select(device.c.id).where(condition(selector))))


@SHARED
@given(
    st.lists(strategies.SUBJECTS, min_size=1, max_size=8, unique_by=lambda subject: subject.device_id),
    st.lists(strategies.SELECTORS, min_size=1, max_size=4),
)
async def test_the_predicate_and_the_sql_agree(
    database: Database, subjects: list[Subject], selectors: list[Selector]
) -> None:
    devices = await database.write(lambda conn: put_devices(conn, subjects))
    for selector in selectors:
        found = await database.read(lambda conn, one=selector: matching(conn, one))  # type: ignore[misc]
        assert found == {key for key, subject in devices.items() if predicate(selector)(subject)}


ODD: dict[str, Any] = {
    "integer": 1,
    "real": 1.0,
    "zero": -0.0,
    "large": 2**53 - 1,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "digits": "1",
    "yes": True,
    "no": False,
    "empty": "",
    "astral": "\U0001f600",
    "last": "\uffff",
    "quote": 'it\'s "so" \\ %s :x $1 ?',
    "a.b": "dots",
}


@pytest.mark.parametrize(
    "text",
    [
        "origin.integer == 1.0",
        "origin.real == 1",
        "origin.zero == 0",
        "origin.large == 9007199254740991",
        "origin.large > 9007199254740990",
        "origin.tiny > 0",
        "origin.huge > 1e308",
        "origin.huge < 1e300",
        'origin.digits == "1"',
        "origin.digits == 1",
        "origin.yes == true",
        "origin.yes == 1",
        "origin.no == false",
        "origin.no != true",
        "not origin.no == true",
        'origin.empty == ""',
        'origin.empty < "a"',
        'origin.astral > "\uffff"',
        'origin.last < "\U0001f600"',
        'origin.quote == "it\'s \\"so\\" \\\\ %s :x $1 ?"',
        'origin.a.b == "dots"',
        'origin.a == "dots"',
        'reported.digits == "1"',
        'origin.missing != "x"',
        'not origin.missing != "x"',
        'tag in ("it\'s", "x")',
        'tag == "1"',
        'device_id == "D" or device_id >= "d"',
    ],
)
async def test_the_odd_ones_agree(database: Database, text: str) -> None:
    subject = Subject("d", origin=ODD, tags=frozenset({"it's", "eu"}))
    selector = parse_selector(text)
    await database.write(lambda conn: put_devices(conn, [subject]))
    found = await database.read(lambda conn: matching(conn, selector))
    assert bool(found) is predicate(selector)(subject)
