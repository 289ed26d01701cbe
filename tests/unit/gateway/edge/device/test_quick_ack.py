"""The short cut for acks reads exactly what the contract's decoder reads, or leaves it alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import INTEGER_MAX
from device_sdk.wire.messages import Ack, Position, decode_cbor, encode_cbor
from device_sdk.wire.names import ChannelName, FleetName
from gateway.edge.device.quick_ack import ack_prefix, quick_ack
from gateway.hub import Channel, device_channel
from gateway.session.lane import Lane

EPOCH = 3_000_000_000


def lane(name: str, epoch: int = EPOCH) -> Lane:
    channel = Channel(
        device_channel(1, ChannelName(name)),
        id=1,
        fleet=FleetName("acme"),
        name=ChannelName(name),
        epoch=epoch,
        head=0,
    )
    return Lane(None, channel, subscription_id=1, acked=0, attempts=0, dead=None, now=0.0)  # type: ignore[arg-type]


LANES = [lane("ops"), lane("ops2"), lane("other", 7)]


@given(st.integers(0, INTEGER_MAX) | st.sampled_from([23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32]))
def test_every_offset_is_read(offset: int) -> None:
    for one in LANES:
        payload = encode_cbor(Ack(positions={one.channel.name: Position(one.channel.epoch, offset)}))
        assert quick_ack(payload, LANES) == (one, offset)


@pytest.mark.parametrize(
    "ack",
    [
        Ack(positions={"ops": Position(EPOCH + 1, 5)}),
        Ack(positions={"nobody": Position(EPOCH, 5)}),
        Ack(positions={"ops": Position(EPOCH, 5), "other": Position(7, 1)}),
        Ack(positions={"ops": Position(EPOCH, 5)}, window=3),
        Ack(positions={"ops": Position(EPOCH, 5)}, deployment=b"d" * 16),
        Ack(window=3),
    ],
    ids=["epoch", "channel", "two", "window", "deployment", "only-window"],
)
def test_any_other_ack_is_left_alone(ack: Ack) -> None:
    assert quick_ack(encode_cbor(ack), LANES) is None


@given(st.binary(max_size=10))
def test_what_the_decoder_refuses_or_reads_otherwise_is_left_alone(rest: bytes) -> None:
    payload = ack_prefix("ops", EPOCH) + rest
    found = quick_ack(payload, LANES)
    try:
        message = decode_cbor(payload)
    except WireError:
        message = None
    expected = message.positions["ops"].offset if isinstance(message, Ack) else None
    assert (None if found is None else found[1]) == expected


def test_devices_of_many_channels_take_the_long_way() -> None:
    payload = encode_cbor(Ack(positions={"ops": Position(EPOCH, 5)}))
    assert quick_ack(payload, [*LANES, lane("a"), lane("b")]) is None
