"""What the database knows of the devices: where an alert is not accounted for, nothing was measured."""

from __future__ import annotations

from database import rows
from rig import BenchError, wait_until

COMMIT_TIMEOUT_S = 120
_CHANNEL = "SELECT id, head FROM channel WHERE name = :name"
_AT_HEAD = """
SELECT count(*) FROM subscription WHERE channel_id = :channel AND "offset" = :head
"""
_RECEIVED = """
SELECT device_key, first, last FROM delivery_fact WHERE channel_id = :channel AND fact = 2 ORDER BY 1, 2
"""
# Live intervals say that a message was sent when it was accepted; pages and redeliveries are facts.
_SENT = """
SELECT device_key, first, last FROM delivery_fact WHERE channel_id = :channel AND fact = 1
UNION ALL
SELECT device_key, first, coalesce(last, :head) FROM live_interval WHERE channel_id = :channel
ORDER BY 1, 2
"""


def wait_for_positions(url: str, channel: str, devices: int, head: int) -> None:
    """Wait until ``head`` is what the log ends with and the committed position of every device.

    Raises:
        BenchError: It is not.
    """
    ((channel_id, stored_head),) = rows(url, _CHANNEL, name=channel)
    if stored_head != head:
        raise BenchError(f"the channel's head is {stored_head}, the devices are at {head}")
    wait_until(
        lambda: rows(url, _AT_HEAD, channel=channel_id, head=head)[0][0] == devices,
        COMMIT_TIMEOUT_S,
        f"not every one of {devices} positions is {head}",
        interval_s=0.02,
    )


def check_facts(url: str, channel: str, devices: int, head: int, *, first: int = 1) -> None:
    """Raise BenchError unless each device's position is ``head`` and its facts cover ``first``..``head``."""
    wait_for_positions(url, channel, devices, head)
    ((channel_id, _),) = rows(url, _CHANNEL, name=channel)
    for what, found in (
        ("received", rows(url, _RECEIVED, channel=channel_id)),
        ("sent", rows(url, _SENT, channel=channel_id, head=head)),
    ):
        covered: dict[int, int] = {}
        for device, begin, end in found:
            upto = covered.setdefault(device, first - 1)
            if begin > upto + 1:
                raise BenchError(f"device {device} has no fact '{what}' before offset {begin}")
            covered[device] = max(end, upto)
        if sorted(covered.values()) != [head] * devices:
            raise BenchError(f"the facts '{what}' of {len(covered)} devices do not reach {head}")
