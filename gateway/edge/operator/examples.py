"""An example of every body and every answer, by the name of its component, and of the parameters.

They are one small world: the fleet ``acme``, its pump ``pump-7``, and the release that it is to get. A test
holds each against the model it is an example of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_NOW: Final = 1_800_000_000_000
_ALERT: Final = "0192e1a0-7c00-7a10-8b21-3f5d0e6c9a01"
_RELEASE: Final = "0192e1a0-7c00-7a10-8b21-3f5d0e6c9a02"
_ROLLOUT: Final = "0192e1a0-7c00-7a10-8b21-3f5d0e6c9a03"
_DEPLOYMENT: Final = "0192e1a0-7c00-7a10-8b21-3f5d0e6c9a04"
_ALICE_ID: Final = "0192e1a0-7c00-7a10-8b21-3f5d0e6c9a05"
_KID: Final = "a1b2c3d4e5f60718"
_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_PEM: Final = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
    "-----END PUBLIC KEY-----\n"
)

PARAMETERS: Final[Mapping[str, str]] = {
    "fleet": "acme",
    "channel": "alarms",
    "device_id": "pump-7",
    "kid": _KID,
    "sha256": _SHA256,
    "release": _RELEASE,
    "device": "pump-7",
}
IDS: Final[Mapping[str, str]] = {
    "alerts": _ALERT,
    "dead-letters": "7",
    "deployments": _DEPLOYMENT,
    "releases": _RELEASE,
    "rollouts": _ROLLOUT,
    "tokens": _ALICE_ID,
}
"""The path's ``id``, by what it is the id of."""

_PLACE: Final = {
    "by_origin": True,
    "by_operator": False,
    "epoch": 3_405_691_582,
    "offset": 17,
    "attempts": 0,
    "created_at": _NOW,
}
_ACCEPTED: Final = {
    "id": _ALERT,
    "channel": "alarms",
    "epoch": 3_405_691_582,
    "offset": 18,
    "accepted_at": _NOW,
    "expires_at": _NOW + 3_600_000,
}
_LISTED: Final = _ACCEPTED | {
    "content_type": "application/json",
    "size_bytes": 11,
    "key": "valve-3",
    "superseded_by": None,
    "original_id": None,
}
_ALICE: Final = {
    "id": _ALICE_ID,
    "name": "alice",
    "fleet": "acme",
    "scopes": ["publish", "read"],
    "created_at": _NOW,
    "expires_at": None,
    "revoked_at": None,
}
_ONE: Final[Mapping[str, Mapping[str, Any]]] = {
    "Alert": _ACCEPTED,
    "AlertBody": {"json": {"valve": 3}, "ttl_s": 3600, "key": "valve-3"},
    "Artifact": {"sha256": _SHA256, "size_bytes": 1_048_576},
    "Change": {
        "id": 4711,
        "at": _NOW,
        "fleet": "acme",
        "token_id": _ALICE_ID,
        "operator": "alice",
        "operation": "devices.change",
        "target": "fleets/acme/devices/pump-7",
        "details": {"tags": ["eu"]},
    },
    "Channel": {
        "name": "alarms",
        "kind": "alert",
        "epoch": 3_405_691_582,
        "head": 18,
        "floor": 0,
        "starts_at_earliest": False,
        "retention_age_s": None,
        "retention_count": 10_000,
        "version": 1,
        "created_at": _NOW,
    },
    "ChannelBody": {"name": "alarms", "kind": "alert", "retention_count": 10_000},
    "ChannelChangeBody": {"retention_age_s": 86_400},
    "DeadLetter": {
        "id": "7",
        "device_id": "pump-7",
        "channel": "alarms",
        "epoch": 3_405_691_582,
        "offset": 18,
        "alert_id": _ALERT,
        "reason": "nacked",
        "code": "no_valve",
        "attempts": 1,
        "at": _NOW,
        "requeued_as": None,
    },
    "Delivery": {
        "device_id": "pump-7",
        "accepted_at": _NOW,
        "sent_at": _NOW,
        "attempts": 1,
        "received_at": _NOW + 40,
        "dead_letter": None,
    },
    "Deployment": {
        "id": _DEPLOYMENT,
        "rollout_id": _ROLLOUT,
        "release_id": _RELEASE,
        "device_id": "pump-7",
        "component": "main",
        "attempt": 1,
        "state": "downloading",
        "progress": 40,
        "code": None,
        "detail": None,
        "is_cancelling": False,
        "is_inferred": False,
        "sends": 1,
        "notified_at": _NOW,
        "sent_at": _NOW,
        "received_at": _NOW + 40,
        "verified_at": _NOW + 90,
        "ended_at": None,
        "updated_at": _NOW + 60_000,
    },
    "Device": {
        "device_id": "pump-7",
        "enrolment_id": "5e0f9c52-3f0a-4b6e-9d42-0f6c2f7f3a10",
        "is_enabled": True,
        "tags": ["eu"],
        "origin": {"model": "tc3"},
        "reported": {"firmware": "1.3.2"},
        "installed": {"main": {"sequence": 6, "version": "1.3.2", "digest": _SHA256, "is_confirmed": True}},
        "bucket": 2_147_483_648,
        "root_version": 1,
        "enrolled_at": _NOW - 86_400_000,
        "last_seen_at": _NOW,
        "is_connected": True,
        "version": 2,
    },
    "DeviceBody": {"device_id": "pump-7", "tags": ["eu"]},
    "DeviceChangeBody": {"tags": ["eu", "canary"]},
    "Explanation": {
        "device_id": "pump-7",
        "release_id": _RELEASE,
        "rollout_id": None,
        "is_running": False,
        "reasons": [
            {
                "code": "not_admitted",
                "detail": "the rollout is at 10 percent: its boundary is 429496729, and the device's place "
                "in it is 2147483648",
                "rollout_id": _ROLLOUT,
                "deployment_id": None,
                "at": None,
                "facts": {"place": 2_147_483_648, "boundary": 429_496_729, "percent": 10},
            }
        ],
    },
    "Fact": {
        "fact": "sent",
        "at": _NOW,
        "attempt": 1,
        "state": None,
        "progress": None,
        "code": None,
        "detail": None,
    },
    "Fleet": {"name": "acme", "root_version": 1, "created_at": _NOW},
    "FleetBody": {"name": "acme"},
    "Keys": {
        "online": [{"role": "alert", "kid": _KID, "algorithm": "Ed25519", "public_pem": _PEM}],
        "root_version": 1,
        "release_keys": [{"kid": _KID, "public_pem": _PEM}],
    },
    "ListedAlert": _LISTED,
    "NewToken": _ALICE | {"secret": "fct_…"},
    "Nothing": {},
    "Release": {
        "id": _RELEASE,
        "name": "main 1.4.0",
        "version": "1.4.0",
        "component": "main",
        "sequence": 7,
        "vendor_id": "7f6f7dc1-6f0e-5a0f-9d8f-0b8b0a2d9c11",
        "class_id": "7f6f7dc1-6f0e-5a0f-9d8f-0b8b0a2d9c12",
        "manifest_digest": _SHA256,
        "image_digest": _SHA256,
        "image_size": 1_048_576,
        "uri": f"/v1/device/artifacts/{_SHA256}",
        "kid": _KID,
        "created_at": _NOW,
    },
    "ReleaseKey": {"kid": _KID, "public_pem": _PEM},
    "ReleaseKeyBody": {"public_pem": _PEM},
    "Revocation": {
        "sequence": 12,
        "fleet": "acme",
        "token_sha256": None,
        "device_id": "pump-7",
        "reason": "stolen",
        "at": _NOW,
        "operator": "alice",
    },
    "RevocationBody": {"fleet": "acme", "device_id": "pump-7", "reason": "stolen"},
    "Rollout": {
        "id": _ROLLOUT,
        "name": "main 1.4.0",
        "state": "running",
        "channel": "firmware",
        "release_id": _RELEASE,
        "percent": 10,
        "selector": 'tag == "eu"',
        "priority": 0,
        "component": "main",
        "sequence": 7,
        "target_count": 40,
        "counts": {"committed": 3, "downloading": 1},
        "created_at": _NOW,
        "updated_at": _NOW,
        "version": 1,
    },
    "RolloutBody": {
        "release_id": _RELEASE,
        "channel": "firmware",
        "percent": 10,
        "selector": 'tag == "eu"',
    },
    "RolloutChangeBody": {"percent": 50},
    "Root": {"version": 1, "expires_at": _NOW + 86_400_000},
    "Subscriber": _PLACE | {"device_id": "pump-7"},
    "Subscription": _PLACE | {"channel": "alarms", "kind": "alert"},
    "Token": _ALICE,
    "TokenBody": {"name": "alice", "scopes": ["publish"], "fleet": "acme"},
    "WholeAlert": _LISTED | {"data": "eyJ2YWx2ZSI6M30", "text": None, "json": {"valve": 3}},
}
_LISTS: Final = (
    "Change",
    "Channel",
    "DeadLetter",
    "Delivery",
    "Deployment",
    "Device",
    "Fact",
    "Fleet",
    "ListedAlert",
    "Release",
    "Revocation",
    "Rollout",
    "Subscriber",
    "Subscription",
    "Token",
)
EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = dict(_ONE) | {
    f"{name}List": {"items": [_ONE[name]], "next_cursor": None} for name in _LISTS
}
