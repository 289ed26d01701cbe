"""Tokens, revocations, the audit, facts, explanations, lists: what an operator sees and what comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Ack, Alert, Position, Recorded, Report, Update
from gateway.clock import FakeClock, SystemClock
from tests.harness.devices import PollDevice, Refused, SocketDevice
from tests.harness.operator_api import Api, opened_api, publish_release


@asynccontextmanager
async def origin() -> AsyncIterator[str]:
    """Yield the url of a backend that takes any token for the device of that name, in ``ops`` and ``fw``."""

    async def auth(request: web.Request) -> web.Response:
        name = request.headers["Authorization"].removeprefix("Bearer ").partition(".")[0]
        channels = [{"name": "ops", "kind": "alert"}, {"name": "fw", "kind": "update"}]
        return web.json_response({"device_id": name, "fleet": "acme", "channels": channels})

    application = web.Application()
    application.add_routes([web.get("/auth", auth)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/auth"
    finally:
        await runner.cleanup()


@pytest.fixture
async def live(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    """A node whose devices are admitted by a backend."""
    async with (
        origin() as url,
        opened_api(
            sqlite_url,
            tmp_path / "data",
            SystemClock(),
            identity={"mode": "forward_auth", "forward_auth": {"url": url}},
        ) as api,
    ):
        yield api


def socket(api: Api, name: str, token: str | None = None) -> SocketDevice:
    return SocketDevice(api.gateway.url, fleet="acme", device=name, token=token)


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


async def audit(api: Api, query: str = "") -> list[Any]:
    items: list[Any] = (await api.seen(f"/api/v1/audit{query}"))["items"]
    return items


class TestRevocations:
    async def test_a_revoked_token_s_session_ends_at_once_and_it_stays_out(self, live: Api) -> None:
        async with socket(live, "pump", "pump.1") as device, socket(live, "valve") as other:
            await device.begin()
            await other.begin()
            body = {"fleet": "acme", "token_sha256": sha256("pump.1"), "reason": "stolen"}
            made = await live.ask("POST", "/api/v1/revocations", body, token="acme-devices")
            assert made.document == made.document | body | {"sequence": 1, "operator": "acme-devices"}
            assert await device.ended() == CloseCode.CREDENTIAL_REVOKED
            with pytest.raises(Refused) as refused:
                async with socket(live, "pump", "pump.1"):
                    pass
            assert (refused.value.status, refused.value.code) == (401, "credential_revoked")
            async with socket(live, "pump", "pump.2") as again:
                await again.begin()
            assert (await live.seen("devices/valve"))["is_connected"]

    async def test_a_revoked_device_s_session_ends_and_its_backend_is_asked_anew(self, live: Api) -> None:
        async with socket(live, "pump") as device:
            await device.begin()
            await live.ask("POST", "/api/v1/revocations", {"fleet": "acme", "device_id": "pump"})
            assert await device.ended() == CloseCode.CREDENTIAL_REVOKED
        async with socket(live, "pump") as back:
            await back.begin()

    async def test_one_of_another_fleet_s_device_ends_nothing_here(self, live: Api) -> None:
        async with socket(live, "pump") as device:
            await device.begin()
            for what in ({"device_id": "pump"}, {"token_sha256": sha256("pump")}):
                body = {"fleet": "other", **what}
                answer = await live.ask("POST", "/api/v1/revocations", body, token="other-devices")
                assert answer.status == 200
            await live.made("channels", {"name": "ops2", "kind": "alert"})
            await live.made("channels/ops/alerts", {"text": "x"})
            assert (await device.next(Alert)).channel == "ops"

    async def test_they_are_listed_by_fleet_and_a_repeat_is_one(self, live: Api) -> None:
        for _ in range(2):
            body = {"fleet": "acme", "device_id": "pump"}
            answer = await live.ask("POST", "/api/v1/revocations", body, Idempotency_Key="k")
        assert answer.headers["Idempotency-Replayed"] == "true"
        await live.ask("POST", "/api/v1/revocations", {"fleet": "other", "device_id": "x"}, token="all-admin")
        seen = await live.seen("/api/v1/revocations")
        assert [(item["fleet"], item["device_id"]) for item in seen["items"]] == [("acme", "pump")]
        every = await live.ask("GET", "/api/v1/revocations?limit=1", token="all-read")
        rest = await live.ask(
            "GET", f"/api/v1/revocations?cursor={every.document['next_cursor']}", token="all-read"
        )
        items = every.document["items"] + rest.document["items"]
        assert [item["sequence"] for item in items] == [1, 2]


class TestTokens:
    async def test_a_token_is_made_shown_once_used_and_revoked_at_once(self, api: Api) -> None:
        made = await api.ask(
            "POST", "/api/v1/tokens", {"name": "ci", "scopes": ["releases"], "expires_in_s": 60}
        )
        assert made.status == 201
        token = made.document
        assert made.headers["Location"] == f"/api/v1/tokens/{token['id']}"
        assert (token["fleet"], token["scopes"]) == ("acme", ["releases"])
        assert token["expires_at"] == token["created_at"] + 60_000
        api.tokens["ci"] = token.pop("secret")
        assert await api.seen(f"/api/v1/tokens/{token['id']}") == token
        assert (await api.ask("GET", "devices", token="ci")).status == 200
        revoked = await api.ask("POST", f"/api/v1/tokens/{token['id']}/revoke")
        assert revoked.document["revoked_at"] is not None
        out = await api.ask("GET", "devices", token="ci")
        assert (out.status, out.code) == (401, "credential_revoked")

    async def test_it_expires(self, api: Api, clock: FakeClock) -> None:
        made = await api.made("/api/v1/tokens", {"name": "ci", "scopes": ["read"], "expires_in_s": 1})
        api.tokens["ci"] = made["secret"]
        clock.advance(1)
        assert (await api.ask("GET", "devices", token="ci")).code == "credential_expired"

    async def test_a_repeated_request_makes_none_and_tells_no_secret_again(self, api: Api) -> None:
        body = {"name": "ci", "scopes": ["read"]}
        first = await api.ask("POST", "/api/v1/tokens", body, Idempotency_Key="k")
        again = await api.ask("POST", "/api/v1/tokens", body, Idempotency_Key="k")
        assert again.status == 201
        assert again.document == first.document | {"secret": None}
        stored = await api.database.read(
            lambda conn: conn.exec_driver_sql("SELECT response FROM idempotency").scalars().all()
        )
        assert all(first.document["secret"].encode() not in bytes(row) for row in stored)
        named = [item["name"] for item in (await api.seen("/api/v1/tokens"))["items"]]
        assert named.count("ci") == 1

    async def test_none_revokes_itself(self, api: Api) -> None:
        own = next(
            item for item in (await api.seen("/api/v1/tokens"))["items"] if item["name"] == "acme-admin"
        )
        refused = await api.ask("POST", f"/api/v1/tokens/{own['id']}/revoke")
        assert (refused.status, refused.code) == (409, "own_token")
        assert (await api.ask("GET", "devices")).status == 200


class TestAudit:
    async def test_every_change_says_who_what_and_when(self, api: Api, clock: FakeClock) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        await api.made("devices", {"device_id": "pump", "tags": ["eu"]})
        await api.ask("PUT", "devices/pump/subscriptions/ops", token="acme-devices")
        alert = await api.made("channels/ops/alerts", {"text": "secret payload", "key": "k"})
        await api.ask("DELETE", "devices/pump")
        rows = await audit(api)
        assert [(row["operation"], row["target"]) for row in rows] == [
            ("devices.delete", "fleets/acme/devices/pump"),
            ("alerts.publish", f"fleets/acme/alerts/{alert['id']}"),
            ("subscriptions.put", "fleets/acme/devices/pump/subscriptions/ops"),
            ("devices.create", "fleets/acme/devices/pump"),
            ("channels.create", "fleets/acme/channels/ops"),
        ]
        assert rows[3]["details"] == {"device_id": "pump", "tags": ["eu"]}
        assert rows[1]["details"] == {"key": "k"}, "what an alert says is not in it"
        assert rows[2]["operator"] == "acme-devices"
        assert {(row["fleet"], row["at"]) for row in rows} == {("acme", clock.now_ms())}

    async def test_what_is_refused_repeated_or_only_read_leaves_none(self, api: Api) -> None:
        body = {"name": "ops", "kind": "alert"}
        await api.ask("POST", "channels", body, Idempotency_Key="k")
        await api.ask("POST", "channels", body, Idempotency_Key="k")
        await api.ask("POST", "channels", body)
        await api.ask("GET", "channels/ops")
        await api.ask("PATCH", "channels/ops", {"retention_count": 5}, If_Match='"99"')
        await api.ask("DELETE", "channels/nobody")
        assert [row["operation"] for row in await audit(api)] == ["channels.create"]

    async def test_no_secret_is_in_it(self, api: Api) -> None:
        made = await api.made("/api/v1/tokens", {"name": "ci", "scopes": ["read"]})
        (row,) = await audit(api, "?operation=tokens.create")
        assert row["target"] == f"tokens/{made['id']}"
        assert made["secret"] not in str(row)

    async def test_every_operation_that_changes_something_is_in_it(self, live: Api) -> None:
        await publish_release(live)  # a key, an image, a release
        release = (await live.seen("releases"))["items"][0]
        await live.made("channels", {"name": "fw", "kind": "update"})
        body = {"release_id": release["id"], "channel": "fw", "percent": 1}
        rollout = await live.made("rollouts", body)
        path = f"rollouts/{rollout['id']}"
        await live.ask("PATCH", path, {"percent": 2})
        for action in ("pause", "resume", "finish", "abort"):
            await live.ask("POST", f"{path}/{action}")
        rows = await audit(live)
        assert [row["operation"] for row in rows][::-1] == [
            "release-keys.put",
            "artifacts.put",
            "releases.publish",
            "channels.create",
            "rollouts.start",
            "rollouts.widen",
            "rollouts.pause",
            "rollouts.resume",
            "rollouts.finish",
            "rollouts.abort",
        ]
        assert (rows[5]["target"], rows[4]["details"]) == (f"fleets/acme/{path}", {"percent": 2})

    async def test_it_is_read_in_pages_by_who_and_when(self, api: Api, clock: FakeClock) -> None:
        for name, scope in (("a", "admin"), ("b", "devices"), ("c", "admin")):
            await api.made("channels", {"name": name, "kind": "alert"}, token=f"acme-{scope}")
            clock.advance(1)
        (newest, *_) = rows = await audit(api)
        assert len(await audit(api, f"?token_id={rows[1]['token_id']}")) == 1
        assert [row["id"] for row in await audit(api, f"?since={newest['at']}")] == [newest["id"]]
        assert len(await audit(api, f"?before={newest['at']}")) == 2
        assert len(await audit(api, "?target=fleets/acme/channels/a")) == 1
        first = await api.seen("/api/v1/audit?limit=2")
        rest = await api.seen(f"/api/v1/audit?limit=2&cursor={first['next_cursor']}")
        assert [row["id"] for row in first["items"] + rest["items"]] == [row["id"] for row in rows]
        other = await api.ask("GET", f"/api/v1/audit?operation=x.y&cursor={first['next_cursor']}")
        assert (other.status, other.code) == (400, "bad_cursor")


class TestIdempotency:
    async def test_every_post_is_done_once(self, live: Api) -> None:
        release = await publish_release(live)
        rollout_body = {"release_id": release["id"], "channel": "fw", "percent": 1}
        posts: list[tuple[str, Any, str]] = [
            ("/api/v1/fleets", {"name": "zeta"}, "all-admin"),
            ("channels", {"name": "fw", "kind": "update"}, "acme-admin"),
            ("channels", {"name": "ops", "kind": "alert"}, "acme-admin"),
            ("devices", {"device_id": "pump"}, "acme-admin"),
            ("channels/ops/alerts", {"text": "x"}, "acme-admin"),
            ("rollouts", rollout_body, "acme-admin"),
        ]
        for number, (path, body, token) in enumerate(posts):
            key = f"k{number}"
            first = await live.ask("POST", path, body, token=token, Idempotency_Key=key)
            again = await live.ask("POST", path, body, token=token, Idempotency_Key=key)
            assert (first.status, again.status, again.body) == (201, 201, first.body), path
            assert again.headers["Location"] == first.headers["Location"], path
            other = await live.ask("POST", path, {**body, "x": 1}, token=token, Idempotency_Key=key)
            assert other.status == 422, "what is no request is refused before"
        rollout = (await live.seen("rollouts"))["items"][0]
        for action in ("pause", "resume", "finish", "abort"):
            path = f"rollouts/{rollout['id']}/{action}"
            first = await live.ask("POST", path, Idempotency_Key=action)
            again = await live.ask("POST", path, Idempotency_Key=action)
            assert (again.status, again.body) == (200, first.body), action
            reused = await live.ask("POST", f"rollouts/{rollout['id']}/abort", Idempotency_Key="pause")
            assert (reused.status, reused.code) == (409, "idempotency_key_reused")
        late = await live.ask("POST", f"rollouts/{rollout['id']}/resume", Idempotency_Key="resume")
        assert late.document["state"] == "running", "the answer of that time, and nothing is done"
        assert (await live.seen(f"rollouts/{rollout['id']}"))["state"] == "aborted"


class TestVersions:
    async def test_a_delete_and_a_root_document_take_if_match_too(self, api: Api) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        await api.made("devices", {"device_id": "pump"})
        for path in ("channels/ops", "devices/pump"):
            etag = (await api.ask("GET", path)).headers["ETag"]
            stale = await api.ask("DELETE", path, If_Match='"99"')
            assert (stale.status, stale.code) == (412, "stale_version")
            assert (await api.ask("DELETE", path, If_Match=etag)).status == 204


class TestLists:
    async def test_devices_by_tag_attribute_connection_and_time(self, live: Api) -> None:
        await live.made("devices", {"device_id": "never", "tags": ["eu"]})
        async with socket(live, "pump") as pump:
            await pump.begin(attributes={"firmware": "1.3"})
            async with socket(live, "valve") as valve:
                await valve.begin()
            await live.ask("PATCH", "devices/valve", {"tags": ["eu"]})

            async def names(query: str) -> list[str]:
                return [item["device_id"] for item in (await live.seen(f"devices?{query}"))["items"]]

            assert await names("") == ["never", "pump", "valve"]
            assert await names("order=desc") == ["valve", "pump", "never"]
            assert await names("tag=eu") == ["never", "valve"]
            assert await names("selector=reported.firmware%20==%20%221.3%22") == ["pump"]
            assert await names("is_connected=true") == ["pump"]
            assert await names("is_connected=false&tag=eu") == ["never", "valve"]
            assert await names("sort=last_seen_at") == ["never", "pump", "valve"]
            assert await names("seen_since=1") == ["pump", "valve"]
            assert await names("seen_before=1") == ["never"]
            assert (await live.seen("devices/pump"))["is_connected"]
            assert not (await live.seen("devices/valve"))["is_connected"]
            shown: list[str] = []
            cursor = ""
            while True:
                page = await live.seen(f"devices?sort=last_seen_at&order=desc&limit=1{cursor}")
                shown += [item["device_id"] for item in page["items"]]
                if page["next_cursor"] is None:
                    break
                cursor = f"&cursor={page['next_cursor']}"
            assert shown == ["valve", "pump", "never"]

    async def test_alerts_by_time_and_key_from_either_end(self, api: Api, clock: FakeClock) -> None:
        await api.made("channels", {"name": "ops", "kind": "alert"})
        times = []
        for key in ("a", "b", "a"):
            times.append(clock.now_ms())
            await api.made("channels/ops/alerts", {"text": "x", "key": key})
            clock.advance(1)

        async def offsets(query: str) -> list[int]:
            return [item["offset"] for item in (await api.seen(f"channels/ops/alerts?{query}"))["items"]]

        assert await offsets("") == [3, 2, 1]
        assert await offsets("order=asc") == [1, 2, 3]
        assert await offsets(f"accepted_since={times[1]}") == [3, 2]
        assert await offsets(f"accepted_before={times[1]}") == [1]
        assert await offsets("key=a&order=asc") == [1, 3]
        first = await api.seen("channels/ops/alerts?order=asc&limit=2")
        assert await offsets(f"order=asc&limit=2&cursor={first['next_cursor']}") == [3]
        turned = await api.ask("GET", f"channels/ops/alerts?limit=2&cursor={first['next_cursor']}")
        assert turned.code == "bad_cursor"


class TestExplain:
    async def test_a_device_s_way_to_a_release(self, live: Api) -> None:
        release = await publish_release(live)
        await live.made("devices", {"device_id": "pump"})
        path = f"devices/pump/explain?release={release['id']}"

        async def codes(path: str) -> list[str]:
            shown = await live.seen(path)
            assert shown["is_running"] is False
            return [reason["code"] for reason in shown["reasons"]]

        assert await codes(path) == ["never_seen", "no_rollout"]
        async with socket(live, "pump") as pump:
            await pump.begin()
            assert await codes(path) == ["no_rollout"]
            rollout = await live.made(
                "rollouts",
                {"release_id": release["id"], "channel": "fw", "percent": 100, "selector": 'tag == "eu"'},
            )
            assert await codes(path) == ["selector_mismatch"]
            await live.ask("PATCH", "devices/pump", {"tags": ["eu"]})
            update = await pump.next(Update)
            own = f"rollouts/{rollout['id']}/explain?device=pump"
            assert await codes(path) == await codes(own) == ["awaiting_acknowledgement"]
            (reason,) = (await live.seen(own))["reasons"]
            assert reason["facts"] == reason["facts"] | {"attempt": 1, "attempts_max": 20}
            assert reason["at"] > reason["facts"]["sent_at"], "when it is sent again"
            report = Report(bytes(16), update.deployment, 0, "downloading", progress=40)
            await pump.send(report)
            await pump.next(Recorded)
            assert await codes(path) == ["in_progress"]
        facts = await live.seen(f"deployments/{reason['deployment_id']}/facts")
        assert [item["fact"] for item in facts["items"]][:2] == ["accepted", "sent"]
        assert ("report", "downloading") in [(item["fact"], item["state"]) for item in facts["items"]]
        for wrong in (f"rollouts/{rollout['id']}/explain?device=no", path.replace("pump", "no")):
            assert (await live.ask("GET", wrong)).status == 404

    async def test_facts_of_an_alert_on_a_device(self, live: Api) -> None:
        async with PollDevice(live.gateway.url, fleet="acme", device="pump") as pump:
            await pump.begin()
            alert = await live.made("channels/ops/alerts", {"text": "x"})
            polled = await pump.poll(wait_s=5)
            (got,) = polled.of(Alert)
            await pump.acknowledge(Ack(positions={"ops": Position(alert["epoch"], got.offset)}))
            facts = (await live.seen(f"alerts/{alert['id']}/facts?device_id=pump"))["items"]
        assert [fact["fact"] for fact in facts] == ["accepted", "sent", "received"]
        assert facts[0]["at"] == alert["accepted_at"]
        assert (await live.ask("GET", f"alerts/{alert['id']}/facts?device_id=no")).status == 404
