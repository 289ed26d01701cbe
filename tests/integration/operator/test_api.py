"""The operator API over HTTP, on a whole node and a real database: every route, good and bad input."""

from __future__ import annotations

import io
import uuid
from dataclasses import replace
from typing import Any

import pytest

from device_sdk.wire.keys import PrivateKey, PublicKey, Role
from device_sdk.wire.signed.root import RootDocument, RootKey, sign_root
from gateway.clock import FakeClock
from gateway.edge.operator.table import TABLE
from gateway.ids import parse_id
from gateway.release import author_envelope, sign_envelope
from gateway.rollout import UpdateLimits
from gateway.storage.fleet_store import SQLFleetStore
from gateway.storage.rollouts import SQLRolloutStore
from gateway.storage.tables import dead_letter
from tests.harness.operator_api import (
    DIGEST,
    ENVELOPE,
    ENVELOPE_TYPE,
    IMAGE,
    RELEASE,
    RELEASE_KEY,
    STRANGER,
    VENDOR,
    Answered,
    Api,
    path_of,
    publish_release,
)


class TestProblems:
    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/nowhere", 404, "no_such_route"),
            ("GET", "/api/v1/fleets/acme/", 404, "no_such_route"),
            ("PATCH", "/api/v1/fleets", 405, "method_not_allowed"),
            ("HEAD", "/api/v1/fleets", 405, "method_not_allowed"),
            ("GET", "devices?limit=0", 400, "invalid_query"),
            ("GET", "devices?offset=1", 400, "invalid_query"),
            ("GET", "devices?cursor=x", 400, "bad_cursor"),
            ("GET", "devices/nobody", 404, "not_found"),
            ("GET", "devices/~x", 404, "not_found"),
            ("GET", "alerts/7", 404, "not_found"),
            ("GET", f"alerts/{STRANGER}", 404, "not_found"),
            ("GET", "artifacts/..%2f..%2fkeys", 404, "not_found"),
            ("GET", "root", 404, "not_found"),
        ],
    )
    async def test_by_code(self, api: Api, method: str, path: str, status: int, code: str) -> None:
        answer = await api.ask(method, path)
        assert answer.status == status
        if method != "HEAD":
            assert answer.code == code
            assert answer.headers["Content-Type"] == "application/problem+json"
        if status == 405:
            assert answer.headers["Allow"]

    @pytest.mark.parametrize("route", [route for route in TABLE if route.body.content_type])
    async def test_every_body_has_its_type_and_its_bound(self, api: Api, route: Any) -> None:
        path = path_of(route)
        wrong = await api.ask(route.method, path, data=b"x", token="all-admin", Content_Type="text/plain")
        assert (wrong.status, wrong.code) == (415, "unsupported_media_type")
        packed = await api.ask(
            route.method,
            path,
            data=b"x",
            token="all-admin",
            Content_Type=route.body.content_type,
            Content_Encoding="gzip",
        )
        assert (packed.status, packed.code) == (415, "unsupported_media_type")
        large = await api.ask(
            route.method,
            path,
            data=io.BytesIO(b"x" * (3 << 20)),
            token="all-admin",
            Content_Type=route.body.content_type,
        )
        assert (large.status, large.code) == (413, "too_large")


class TestFleets:
    async def test_made_once_shown_and_listed(self, api: Api) -> None:
        answer = await api.ask("POST", "/api/v1/fleets", {"name": "zeta"}, token="all-admin")
        assert answer.status == 201
        assert answer.headers["Location"] == "/api/v1/fleets/zeta"
        shown = await api.ask("GET", "/api/v1/fleets/zeta", token="all-read")
        assert shown.document == answer.document | {"name": "zeta", "root_version": 0}
        again = await api.ask("POST", "/api/v1/fleets", {"name": "zeta"}, token="all-admin")
        assert (again.status, again.code) == (409, "fleet_exists")
        names: list[str] = []
        cursor = ""
        while True:
            page = (await api.ask("GET", f"/api/v1/fleets?limit=2{cursor}", token="all-read")).document
            names += [item["name"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert names == ["acme", "other", "zeta"]

    async def test_a_name_that_is_none(self, api: Api) -> None:
        answer = await api.ask("POST", "/api/v1/fleets", {"name": "~x"}, token="all-admin")
        assert (answer.status, answer.code) == (422, "invalid_body")


class TestTrust:
    async def _keys(self, api: Api) -> Any:
        return await api.seen("keys")

    async def _root(self, api: Api, *, version: int = 1, leave_out: str = "", now_ms: int) -> bytes:
        online = [
            RootKey(Role(item["role"]), PublicKey.from_pem(item["public_pem"].encode()))
            for item in (await self._keys(api))["online"]
            if item["role"] != leave_out
        ]
        document = RootDocument(
            fleet="acme",
            version=version,
            issued_at=now_ms - 1000,
            expires_at=now_ms + 1000,
            keys=(*online, RootKey(Role.RELEASE, RELEASE_KEY.public)),
        )
        return sign_root(document, RELEASE_KEY)

    async def _register(self, api: Api) -> None:
        pem = RELEASE_KEY.public.to_pem().decode()
        answer = await api.ask("PUT", f"release-keys/{RELEASE_KEY.kid.hex()}", {"public_pem": pem})
        assert answer.status == 201

    async def _put(self, api: Api, document: bytes) -> Answered:
        return await api.ask("PUT", "root", data=document, Content_Type="application/cose")

    async def test_release_keys_come_and_go(self, api: Api) -> None:
        await self._register(api)
        keys = await self._keys(api)
        assert [key["kid"] for key in keys["release_keys"]] == [RELEASE_KEY.kid.hex()]
        assert {key["role"] for key in keys["online"]} == {"alert", "directive", "statement"}
        again = await api.ask(
            "PUT",
            f"release-keys/{RELEASE_KEY.kid.hex()}",
            {"public_pem": RELEASE_KEY.public.to_pem().decode()},
        )
        assert again.status == 200
        assert (await api.ask("DELETE", f"release-keys/{RELEASE_KEY.kid.hex()}")).status == 204
        assert (await self._keys(api))["release_keys"] == []

    async def test_a_key_under_another_name_or_role_is_refused(self, api: Api) -> None:
        pem = RELEASE_KEY.public.to_pem().decode()
        mismatch = await api.ask("PUT", f"release-keys/{'0' * 16}", {"public_pem": pem})
        assert (mismatch.status, mismatch.code) == (422, "kid_mismatch")
        online = (await self._keys(api))["online"][0]
        own = await api.ask("PUT", f"release-keys/{online['kid']}", {"public_pem": online["public_pem"]})
        assert (own.status, own.code) == (409, "online_key")
        junk = await api.ask("PUT", f"release-keys/{'0' * 16}", {"public_pem": "x"})
        assert (junk.status, junk.code) == (422, "invalid_body")
        assert (await api.ask("DELETE", "release-keys/x")).status == 404
        assert (await self._keys(api))["release_keys"] == []

    async def test_a_root_document_is_taken_and_given_as_it_is(self, api: Api, clock: FakeClock) -> None:
        await self._register(api)
        document = await self._root(api, now_ms=clock.now_ms())
        answer = await self._put(api, document)
        assert answer.document == {"version": 1, "expires_at": clock.now_ms() + 1000}
        shown = await api.ask("GET", "root")
        assert shown.body == document
        assert shown.headers["Content-Type"] == "application/cose"
        assert shown.headers["ETag"] == '"1"'
        assert (await self._keys(api))["root_version"] == 1
        assert (await api.seen(""))["root_version"] == 1

    async def test_rollback_of_the_root_is_refused_and_the_stored_one_stays(
        self, api: Api, clock: FakeClock
    ) -> None:
        await self._register(api)
        second = await self._root(api, version=2, now_ms=clock.now_ms())
        assert (await self._put(api, second)).status == 200
        for version in (1, 2):
            refused = await self._put(api, await self._root(api, version=version, now_ms=clock.now_ms()))
            assert (refused.status, refused.code) == (409, "root_version")
        assert (await api.ask("GET", "root")).body == second

    async def test_a_root_that_devices_could_not_use_is_refused(self, api: Api, clock: FakeClock) -> None:
        now_ms = clock.now_ms()
        unknown = await self._put(api, await self._root(api, now_ms=now_ms))
        assert (unknown.status, unknown.code) == (400, "unknown_key")
        await self._register(api)
        missing = await self._put(api, await self._root(api, leave_out="alert", now_ms=now_ms))
        assert (missing.status, missing.code) == (409, "root_keys")
        assert "alert" in missing.document["detail"]
        expired = await self._put(api, await self._root(api, now_ms=now_ms - 2000))
        assert (expired.status, expired.code) == (409, "root_expired")
        good = bytearray(await self._root(api, now_ms=now_ms))
        good[-1] ^= 1
        forged = await self._put(api, bytes(good))
        assert (forged.status, forged.code) == (400, "bad_signature")
        assert (await self._put(api, b"junk")).code == "malformed"
        assert (await api.seen(""))["root_version"] == 0


class TestChannels:
    async def test_life_of_a_channel(self, api: Api) -> None:
        body = {"name": "ops", "kind": "alert", "retention_count": 10}
        made = await api.ask("POST", "channels", body, token="acme-devices")
        assert made.status == 201
        assert made.headers["Location"] == "/api/v1/fleets/acme/channels/ops"
        assert made.document | body | {"head": 0, "floor": 0, "starts_at_earliest": False} == made.document
        assert (await api.ask("POST", "channels", body)).code == "channel_exists"
        shown = await api.ask("GET", "channels/ops")
        assert shown.document == made.document
        changed = await api.ask(
            "PATCH",
            "channels/ops",
            {"retention_count": None, "retention_age_s": 60},
            If_Match=shown.headers["ETag"],
        )
        assert changed.document["retention_count"] is None
        assert changed.document["retention_age_s"] == 60
        assert changed.headers["ETag"] != shown.headers["ETag"]
        assert (await api.ask("DELETE", "channels/ops")).status == 204
        assert (await api.ask("GET", "channels/ops")).status == 404

    async def test_a_change_of_an_older_version_is_refused_and_changes_nothing(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        seen = await api.ask("GET", "channels/ops")
        await api.ask("PATCH", "channels/ops", {"retention_age_s": 60})
        before = await api.seen("channels/ops")
        stale = await api.ask("PATCH", "channels/ops", {"retention_age_s": 90}, If_Match=seen.headers["ETag"])
        assert (stale.status, stale.code) == (412, "stale_version")
        assert await api.seen("channels/ops") == before

    async def test_lists_leave_out_the_devices_own_and_go_on(self, api: Api) -> None:
        await api.made("devices", {"device_id": "pump"})
        for name in ("c", "a", "b"):
            await api.made("channels", {"name": name, "kind": "alert"})
        first = await api.seen("channels?limit=2")
        assert [item["name"] for item in first["items"]] == ["a", "b"]
        last = await api.seen(f"channels?limit=2&cursor={first['next_cursor']}")
        assert ([item["name"] for item in last["items"]], last["next_cursor"]) == (["c"], None)
        elsewhere = await api.ask("GET", f"devices?cursor={first['next_cursor']}")
        assert (elsewhere.status, elsewhere.code) == (400, "bad_cursor")

    async def test_a_device_s_own_channel_is_made_and_deleted_with_it_alone(self, api: Api) -> None:
        await api.made("devices", {"device_id": "pump"})
        assert (await api.ask("POST", "channels", {"name": "~pump", "kind": "alert"})).status == 422
        refused = await api.ask("DELETE", "channels/~pump")
        assert (refused.status, refused.code) == (409, "own_channel")
        assert (await api.seen("channels/~pump"))["kind"] == "alert"


class TestDevices:
    async def test_life_of_a_device(self, api: Api) -> None:
        made = await api.ask("POST", "devices", {"device_id": "pump", "tags": ["eu", "lab"]})
        assert made.status == 201
        assert made.headers["Location"] == "/api/v1/fleets/acme/devices/pump"
        assert sorted(made.document["tags"]) == ["eu", "lab"]
        assert (made.document["is_enabled"], made.document["last_seen_at"]) == (True, None)
        assert (await api.ask("POST", "devices", {"device_id": "pump"})).code == "device_exists"
        shown = await api.ask("GET", "devices/pump")
        assert shown.document == made.document
        changed = await api.ask(
            "PATCH", "devices/pump", {"is_enabled": False}, If_Match=shown.headers["ETag"]
        )
        assert (changed.document["is_enabled"], sorted(changed.document["tags"])) == (False, ["eu", "lab"])
        stale = await api.ask("PATCH", "devices/pump", {"tags": []}, If_Match=shown.headers["ETag"])
        assert (stale.status, stale.code) == (412, "stale_version")
        assert (await api.ask("DELETE", "devices/pump")).status == 204
        assert (await api.ask("DELETE", "devices/pump")).status == 404
        assert (await api.seen("devices"))["items"] == []

    async def test_a_thousand_devices_are_listed_once_each(self, api: Api, clock: FakeClock) -> None:
        store = SQLFleetStore(api.database)
        fleet = await store.fleet("acme")
        for number in range(25):
            await store.create_device(fleet.key, f"d{number:02}", now_ms=clock.now_ms())
        for limit in (1, 7, 25, 1000):
            found: list[str] = []
            cursor = ""
            while cursor is not None:
                page = await api.seen(f"devices?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
                assert len(page["items"]) <= limit
                found += [item["device_id"] for item in page["items"]]
                cursor = page["next_cursor"]
            assert found == [f"d{number:02}" for number in range(25)]

    async def test_subscriptions_by_the_operator(self, api: Api) -> None:
        await api.made("devices", {"device_id": "pump"})
        await api.made("channels", {"name": "ops", "kind": "alert"})
        path = "devices/pump/subscriptions"
        put = await api.ask("PUT", f"{path}/ops")
        assert put.status == 200
        assert (put.document["by_operator"], put.document["by_origin"]) == (True, False)
        assert (await api.ask("PUT", f"{path}/ops", {})).status == 200
        assert (await api.ask("PUT", f"{path}/ops", {"x": 1})).status == 422
        listed = await api.seen(path)
        assert [item["channel"] for item in listed["items"]] == ["ops", "~pump"]
        subscribers = await api.seen("channels/ops/subscribers")
        assert [item["device_id"] for item in subscribers["items"]] == ["pump"]
        assert (await api.ask("DELETE", f"{path}/ops")).status == 204
        assert (await api.ask("DELETE", f"{path}/ops")).status == 404
        assert (await api.seen("channels/ops/subscribers"))["items"] == []

    async def test_nobody_is_put_into_another_device_s_own_channel(self, api: Api) -> None:
        await api.made("devices", {"device_id": "pump"})
        await api.made("devices", {"device_id": "valve"})
        for method in ("PUT", "DELETE"):
            for name in ("~valve", "~pump"):
                answer = await api.ask(method, f"devices/pump/subscriptions/{name}")
                assert (answer.status, answer.code) == (409, "own_channel")
        listed = await api.seen("devices/pump/subscriptions")
        assert [item["channel"] for item in listed["items"]] == ["~pump"]


class TestAlerts:
    @pytest.mark.parametrize(
        ("body", "content_type", "shown"),
        [
            ({"text": "grüß"}, "text/plain; charset=utf-8", {"text": "grüß", "json": None}),
            ({"json": {"a": [1, "ü"]}}, "application/json", {"text": None, "json": {"a": [1, "ü"]}}),
            ({"data": "_-8"}, "application/octet-stream", {"data": "_-8", "text": None, "json": None}),
            (
                {"data": "AA", "content_type": "application/json"},
                "application/json",
                {"data": "AA", "json": None},
            ),
        ],
    )
    async def test_what_was_published_is_shown(
        self, api: Api, clock: FakeClock, body: Any, content_type: str, shown: Any
    ) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        answer = await api.ask(
            "POST", "channels/ops/alerts", body | {"ttl_s": 60, "key": "k"}, token="acme-publish"
        )
        assert answer.status == 201
        alert = answer.document
        assert set(alert) == {"id", "channel", "epoch", "offset", "accepted_at", "expires_at"}
        assert (alert["channel"], alert["offset"]) == ("ops", 1)
        assert (alert["accepted_at"], alert["expires_at"]) == (clock.now_ms(), clock.now_ms() + 60_000)
        assert answer.headers["Location"] == f"/api/v1/fleets/acme/alerts/{alert['id']}"
        document = await api.seen(f"alerts/{alert['id']}")
        assert document == document | alert | shown | {"content_type": content_type, "key": "k"}
        assert (await api.seen("channels/ops"))["head"] == 1

    async def test_the_newest_comes_first_in_pages(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        for number in range(5):
            await api.made("channels/ops/alerts", {"text": str(number)})
        first = await api.seen("channels/ops/alerts?limit=3")
        assert [item["offset"] for item in first["items"]] == [5, 4, 3]
        assert "data" not in first["items"][0]
        last = await api.seen(f"channels/ops/alerts?limit=3&cursor={first['next_cursor']}")
        assert ([item["offset"] for item in last["items"]], last["next_cursor"]) == ([2, 1], None)

    async def test_lists_longer_than_one_read_are_whole(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.edge.operator.alerts.PAYLOADS_MAX", 2)
        await api.made("channels", {"name": "ops", "kind": "alert"})
        for number in range(7):
            await api.made("channels/ops/alerts", {"text": str(number)})
        page = await api.seen("channels/ops/alerts?limit=5")
        assert [item["offset"] for item in page["items"]] == [7, 6, 5, 4, 3]
        page = await api.seen(f"channels/ops/alerts?limit=5&cursor={page['next_cursor']}")
        assert ([item["offset"] for item in page["items"]], page["next_cursor"]) == ([2, 1], None)

    async def test_a_repeat_with_its_key_is_one_alert_and_the_same_answer(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        path = "channels/ops/alerts"
        first = await api.ask("POST", path, {"text": "x"}, Idempotency_Key="k-1")
        again = await api.ask("POST", path, {"text": "x"}, Idempotency_Key="k-1")
        assert (again.status, again.body) == (201, first.body)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Location"] == first.headers["Location"]
        other = await api.ask("POST", path, {"text": "y"}, Idempotency_Key="k-1")
        assert (other.status, other.code) == (409, "idempotency_key_reused")
        await api.made("channels", {"name": "two", "kind": "alert"})
        elsewhere = await api.ask("POST", "channels/two/alerts", {"text": "x"}, Idempotency_Key="k-1")
        assert elsewhere.code == "idempotency_key_reused"
        assert (await api.seen("channels/ops"))["head"] == 1
        assert (await api.seen("channels/two"))["head"] == 0

    async def test_refused_alerts_leave_the_log_as_it_is(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        await api.made("channels", {"name": "fw", "kind": "update"})
        for channel, body, status, code in (
            ("fw", {"text": "x"}, 409, "wrong_kind"),
            ("no", {"text": "x"}, 404, "not_found"),
            ("ops", {"text": "x", "ttl_s": 1001}, 422, "invalid_body"),
            ("ops", {"text": "x" * 65_537}, 413, "too_large"),
            ("ops", {}, 422, "invalid_body"),
            ("ops", [], 422, "invalid_body"),
        ):
            answer = await api.ask("POST", f"channels/{channel}/alerts", body)
            assert (answer.status, answer.code) == (status, code), body
        twice = await api.ask(
            "POST", "channels/ops/alerts", data=b'{"text":"a","text":"b"}', Content_Type="application/json"
        )
        assert (twice.status, twice.code) == (400, "malformed_json")
        assert (await api.seen("channels/ops"))["head"] == 0

    async def test_a_newer_alert_with_the_same_key_supersedes(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        old = await api.made("channels/ops/alerts", {"text": "1", "key": "k"})
        await api.made("channels/ops/alerts", {"text": "2", "key": "k"})
        assert (await api.seen(f"alerts/{old['id']}"))["superseded_by"] == 2

    async def test_deliveries_name_each_device_of_the_channel(self, api: Api, clock: FakeClock) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        for name in ("b", "a", "c"):
            await api.made("devices", {"device_id": name})
            await api.ask("PUT", f"devices/{name}/subscriptions/ops")
        alert = await api.made("channels/ops/alerts", {"text": "x"})
        first = await api.seen(f"alerts/{alert['id']}/deliveries?limit=2")
        assert [item["device_id"] for item in first["items"]] == ["a", "b"]
        assert first["items"][0] == {
            "device_id": "a",
            "accepted_at": clock.now_ms(),
            "sent_at": None,
            "attempts": 0,
            "received_at": None,
            "dead_letter": None,
        }
        last = await api.seen(f"alerts/{alert['id']}/deliveries?limit=2&cursor={first['next_cursor']}")
        assert [item["device_id"] for item in last["items"]] == ["c"]


class TestDeadLetters:
    async def _dead(self, api: Api, clock: FakeClock) -> tuple[str, Any]:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        await api.made("devices", {"device_id": "pump"})
        alert = await api.made("channels/ops/alerts", {"json": {"valve": 3}})
        store = SQLFleetStore(api.database)
        fleet = await store.fleet("acme")
        device, channel = await store.device(fleet.key, "pump"), await store.channel(fleet.key, "ops")
        row = {
            "device_key": device.key,
            "channel_id": channel.id,
            "epoch": channel.epoch,
            "offset": 1,
            "message_id": parse_id(alert["id"]),
            "reason": "nacked",
            "code": "no_valve",
            "attempts": 1,
            "at": clock.now_ms(),
        }
        await api.database.write(lambda conn: conn.execute(dead_letter.insert().values(row)))
        listed = await api.seen("dead-letters")
        return listed["items"][0]["id"], alert

    async def test_a_dead_letter_is_listed_and_sent_again_once(self, api: Api, clock: FakeClock) -> None:
        dead_id, alert = await self._dead(api, clock)
        listed = (await api.seen("dead-letters"))["items"][0]
        assert (listed["device_id"], listed["channel"], listed["alert_id"]) == ("pump", "ops", alert["id"])
        assert (listed["reason"], listed["code"], listed["requeued_as"]) == ("nacked", "no_valve", None)
        requeued = await api.ask("POST", f"dead-letters/{dead_id}/requeue", token="acme-publish")
        assert requeued.status == 200
        again = await api.seen(f"alerts/{requeued.document['requeued_as']}")
        assert (again["channel"], again["json"], again["original_id"]) == ("~pump", {"valve": 3}, alert["id"])
        twice = await api.ask("POST", f"dead-letters/{dead_id}/requeue")
        assert (twice.status, twice.code) == (409, "already_requeued")
        assert (await api.seen("channels/~pump"))["head"] == 1

    async def test_a_requeue_with_its_key_is_answered_the_same_and_appends_once(
        self, api: Api, clock: FakeClock
    ) -> None:
        dead_id, _ = await self._dead(api, clock)
        path = f"dead-letters/{dead_id}/requeue"
        first = await api.ask("POST", path, Idempotency_Key="k")
        again = await api.ask("POST", path, Idempotency_Key="k")
        assert (again.status, again.document) == (200, first.document)
        assert again.headers["Idempotency-Replayed"] == "true"
        other = await api.ask("POST", path, Idempotency_Key="l")
        assert (other.status, other.code) == (409, "already_requeued")
        assert (await api.seen("channels/~pump"))["head"] == 1
        assert (await api.seen(f"dead-letters/{dead_id}")) == first.document

    @pytest.mark.parametrize("dead_id", ["0", "x", "-1", "9" * 30])
    async def test_what_is_no_dead_letter(self, api: Api, dead_id: str) -> None:
        answer = await api.ask("POST", f"dead-letters/{dead_id}/requeue")
        assert (answer.status, answer.code) == (404, "not_found")


class TestReleases:
    async def test_a_signed_release_is_kept_as_it_came(self, api: Api, clock: FakeClock) -> None:
        release = await publish_release(api)
        assert release == release | {
            "name": "main 1.4.0",
            "version": "1.4.0",
            "component": "main",
            "sequence": 7,
            "vendor_id": str(uuid.UUID(bytes=VENDOR)),
            "image_digest": DIGEST,
            "image_size": len(IMAGE),
            "kid": RELEASE_KEY.kid.hex(),
        }
        assert await api.seen(f"releases/{release['id']}") == release
        envelope = await api.ask("GET", f"releases/{release['id']}/envelope")
        assert envelope.headers["Content-Type"] == ENVELOPE_TYPE
        assert envelope.body == ENVELOPE
        assert (await publish_release(api))["id"] == release["id"]
        clock.advance(1)
        second = await publish_release(api, sequence=8)
        page = await api.seen("releases?limit=1")
        assert [item["id"] for item in page["items"]] == [release["id"]]
        page = await api.seen(f"releases?limit=1&cursor={page['next_cursor']}")
        assert ([item["id"] for item in page["items"]], page["next_cursor"]) == ([second["id"]], None)

    async def test_a_name_is_the_operator_s_choice(self, api: Api) -> None:
        await publish_release(api)
        envelope = sign_envelope(author_envelope(replace(RELEASE, sequence_number=9)), [RELEASE_KEY])
        named = await api.ask(
            "POST", "releases?name=spring%20cleaning", data=envelope, Content_Type=ENVELOPE_TYPE
        )
        assert named.document["name"] == "spring cleaning"
        long = await api.ask("POST", f"releases?name={'n' * 129}", data=envelope, Content_Type=ENVELOPE_TYPE)
        assert (long.status, long.code) == (400, "invalid_query")

    async def test_a_repeat_with_its_key_is_answered_the_same(self, api: Api) -> None:
        await publish_release(api)
        for _ in range(2):
            answer = await api.ask(
                "POST", "releases", data=ENVELOPE, Content_Type=ENVELOPE_TYPE, Idempotency_Key="k"
            )
            assert answer.status == 201
        assert answer.headers["Idempotency-Replayed"] == "true"

    async def test_unsigned_ill_signed_or_malformed_is_refused_with_the_reason(self, api: Api) -> None:
        no_key = await api.ask("POST", "releases", data=ENVELOPE, Content_Type=ENVELOPE_TYPE)
        assert (no_key.status, no_key.code) == (409, "no_release_key")
        pem = RELEASE_KEY.public.to_pem().decode()
        await api.ask("PUT", f"release-keys/{RELEASE_KEY.kid.hex()}", {"public_pem": pem})
        stranger = sign_envelope(author_envelope(RELEASE), [PrivateKey.from_seed(bytes(32))])
        elsewhere = replace(RELEASE, uri="/other/path")
        for envelope, code in (
            (author_envelope(RELEASE), "unknown_key"),
            (stranger, "unknown_key"),
            (b"junk", "malformed"),
            (b"", "malformed"),
            (sign_envelope(author_envelope(elsewhere), [RELEASE_KEY]), "bad_uri"),
        ):
            answer = await api.ask("POST", "releases", data=envelope, Content_Type=ENVELOPE_TYPE)
            assert answer.status == 400, code
            assert answer.code == code
            assert answer.document["detail"]
        assert (await api.seen("releases"))["items"] == []


class TestRollouts:
    async def _rollout(self, api: Api, **fields: Any) -> Any:
        release = await publish_release(api)
        await api.made("channels", {"name": "fw", "kind": "update"})
        body = {"release_id": release["id"], "channel": "fw", "percent": 10}
        return await api.made("rollouts", body | fields)

    async def test_life_of_a_rollout(self, api: Api) -> None:
        rollout = await self._rollout(api, selector='tag == "eu"', name="spring", priority=2)
        assert rollout == rollout | {
            "name": "spring",
            "state": "running",
            "channel": "fw",
            "percent": 10,
            "selector": 'tag == "eu"',
            "priority": 2,
            "component": "main",
            "sequence": 7,
            "counts": {},
        }
        path = f"rollouts/{rollout['id']}"
        shown = await api.ask("GET", path)
        assert shown.document == shown.document | {"id": rollout["id"], "target_count": 0}
        widened = await api.ask("PATCH", path, {"percent": 50}, If_Match=shown.headers["ETag"])
        assert (widened.status, widened.document["percent"]) == (200, 50)
        stale = await api.ask("PATCH", path, {"percent": 60}, If_Match=shown.headers["ETag"])
        assert (stale.status, stale.code) == (412, "stale_version")
        lower = await api.ask("PATCH", path, {"percent": 20})
        assert (lower.status, lower.code) == (409, "boundary_moves_up")
        assert (await api.seen(path))["percent"] == 50
        for action, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
            answer = await api.ask("POST", f"{path}/{action}", {}, token="acme-rollouts")
            assert (answer.status, answer.document["state"]) == (200, state)
        over = await api.ask("POST", f"{path}/resume")
        assert (over.status, over.code) == (409, "rollout_state")
        assert [item["id"] for item in (await api.seen("rollouts"))["items"]] == [rollout["id"]]

    async def test_a_finished_rollout(self, api: Api) -> None:
        rollout = await self._rollout(api)
        answer = await api.ask("POST", f"rollouts/{rollout['id']}/finish")
        assert answer.document["state"] == "finished"

    async def test_a_rollout_that_cannot_be_is_not_started(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        await api.made("channels", {"name": "fw", "kind": "update"})
        release = await publish_release(api)
        body = {"release_id": release["id"], "channel": "fw", "percent": 10}
        for fields, status, code in (
            ({"channel": "ops"}, 409, "wrong_kind"),
            ({"channel": "no"}, 404, "not_found"),
            ({"release_id": STRANGER}, 404, "not_found"),
            ({"release_id": "x"}, 422, "invalid_body"),
            ({"percent": 0}, 422, "invalid_body"),
            ({"percent": 101}, 422, "invalid_body"),
            ({"percent": "10"}, 422, "invalid_body"),
            ({"selector": "tag ="}, 422, "bad_selector"),
            ({"priority": 1001}, 422, "invalid_body"),
            ({"name": ""}, 422, "invalid_body"),
        ):
            answer = await api.ask("POST", "rollouts", body | fields)
            assert (answer.status, answer.code) == (status, code), fields
        assert (await api.seen("rollouts"))["items"] == []

    async def test_a_channel_that_a_rollout_names_stays(self, api: Api) -> None:
        await self._rollout(api)
        answer = await api.ask("DELETE", "channels/fw")
        assert (answer.status, answer.code) == (409, "channel_in_use")
        assert (await api.ask("GET", "channels/fw")).status == 200

    async def test_a_repeat_with_its_key_is_one_rollout(self, api: Api) -> None:
        release = await publish_release(api)
        await api.made("channels", {"name": "fw", "kind": "update"})
        body = {"release_id": release["id"], "channel": "fw", "percent": 10}
        first = await api.ask("POST", "rollouts", body, Idempotency_Key="k")
        again = await api.ask("POST", "rollouts", body, Idempotency_Key="k")
        assert (again.status, again.body) == (first.status, first.body) == (201, first.body)
        assert len((await api.seen("rollouts"))["items"]) == 1

    async def test_deployments_are_listed_by_rollout_and_by_device(self, api: Api, clock: FakeClock) -> None:
        rollout = await self._rollout(api, percent=100)
        store = SQLFleetStore(api.database)
        fleet = await store.fleet("acme")
        keys = []
        for name in ("pump", "valve"):
            await api.made("devices", {"device_id": name})
            await api.ask("PUT", f"devices/{name}/subscriptions/fw")
            keys.append((await store.device(fleet.key, name)).key)
        await SQLRolloutStore(api.database).offer(keys, now_ms=clock.now_ms(), limits=UpdateLimits())
        listed = await api.seen(f"rollouts/{rollout['id']}/deployments?limit=1")
        rest = await api.seen(f"rollouts/{rollout['id']}/deployments?limit=1&cursor={listed['next_cursor']}")
        found = listed["items"] + rest["items"]
        assert sorted(item["device_id"] for item in found) == ["pump", "valve"]
        deployment = next(item for item in found if item["device_id"] == "pump")
        assert deployment == deployment | {
            "rollout_id": rollout["id"],
            "release_id": rollout["release_id"],
            "component": "main",
            "state": "notified",
            "attempt": 1,
            "is_inferred": False,
            "notified_at": clock.now_ms(),
            "received_at": None,
        }
        assert (await api.seen("devices/pump/deployments"))["items"] == [deployment]
        assert await api.seen(f"deployments/{deployment['id']}") == deployment
        shown = await api.seen(f"rollouts/{rollout['id']}")
        assert (shown["counts"], shown["target_count"]) == ({"notified": 2}, 2)
        for path in (f"rollouts/{STRANGER}/deployments", "devices/no/deployments", f"deployments/{STRANGER}"):
            assert (await api.ask("GET", path)).status == 404


class TestTokens:
    async def test_a_token_revoked_by_another_process_is_out_within_5_s(
        self, api: Api, clock: FakeClock
    ) -> None:
        assert (await api.ask("GET", "devices", token="acme-read")).status == 200
        await api.database.write(
            lambda conn: conn.exec_driver_sql("UPDATE operator_token SET revoked_at = 1")
        )
        clock.advance(5)
        answer = await api.ask("GET", "devices", token="acme-read")
        assert (answer.status, answer.code) == (401, "credential_revoked")


async def test_health_asks_for_no_token(api: Api) -> None:
    assert (await api.ask("GET", "/healthz", token=None)).document == {"status": "alive"}
    ready = await api.ask("GET", "/readyz", token=None)
    assert (ready.status, ready.document["status"]) == (200, "ready")
    metrics = await api.ask("GET", "/metrics", token=None)
    assert b"fleetcast_http_request_seconds" in metrics.body
