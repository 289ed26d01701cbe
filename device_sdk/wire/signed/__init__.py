"""Signed objects that are not SUIT: alert, directive, statement, root document (PROTOCOL §7.4).

Each is a COSE_Sign1 with tag 18 whose payload is a map with small integer keys, deterministic CBOR
(RFC 8949 §4.2.1), signed with external_aad ``fleetcast.v1/<role>/<fleet>``: an alert is never read as a
directive, nor one fleet's directive in another. docs/reference/signed-objects.md has the tables.
"""

from device_sdk.wire.signed.alert import (
    AlertPayload,
    alert_payload,
    assemble_alert,
    sign_alert,
    verify_alert,
)
from device_sdk.wire.signed.directive import Directive, sign_directive, verify_directive
from device_sdk.wire.signed.root import RootDocument, RootKey, sign_root, verify_root
from device_sdk.wire.signed.seal import external_aad
from device_sdk.wire.signed.statement import Statement, sign_statement, verify_statement

__all__ = [
    "AlertPayload",
    "Directive",
    "RootDocument",
    "RootKey",
    "Statement",
    "alert_payload",
    "assemble_alert",
    "external_aad",
    "sign_alert",
    "sign_directive",
    "sign_root",
    "sign_statement",
    "verify_alert",
    "verify_directive",
    "verify_root",
    "verify_statement",
]
