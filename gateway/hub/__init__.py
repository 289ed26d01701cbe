"""Fan-out on one node: channels, who is live in them, and delivery in order. It knows no database.

``Channel.fan_out`` is the hot loop. Which session gets what when it is behind is ``gateway.session``.
"""

from gateway.hub.channel import WINDOW_LEN_MAX, Channel, Deliverable, HubLane, LiveSession, Writer
from gateway.hub.hub import Hub, HubLimits, Reader
from gateway.hub.keys import HubKey, device_channel

__all__ = [
    "WINDOW_LEN_MAX",
    "Channel",
    "Deliverable",
    "Hub",
    "HubKey",
    "HubLane",
    "HubLimits",
    "LiveSession",
    "Reader",
    "Writer",
    "device_channel",
]
