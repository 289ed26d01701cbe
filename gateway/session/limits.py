"""Bounds of a session. The configuration's ``[device]`` has keys of the same names."""

from __future__ import annotations

from dataclasses import dataclass

from device_sdk.wire.limits import WINDOW_MAX

IN_FLIGHT_MAX = 16  # answers under way for one device's messages; at the bound its socket is not read


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Flow control, liveness and redelivery.

    Attributes:
        hello_timeout_s: From the accepted connection to hello; then closed as ``hello_timeout``.
        heartbeat_s: Between two pings of a connection.
        pong_timeout_s: From a ping to the close of a connection that stays silent.
        drain_timeout_s: A socket that takes no byte for this long is closed as a slow consumer.
        close_timeout_s: From our close frame to the abort of a peer that does not answer it.
        window_max: Unacknowledged alerts that a device gets at most, whatever it asks for.
        window_size_bytes_max: Unacknowledged bytes; above it the device is sent nothing, never closed.
        page_len_max, page_size_bytes_max: Of one page of the log.
        redeliver_min_s, redeliver_max_s: First and longest wait before an unacknowledged alert is sent again.
        attempts_max: Attempts after which it becomes a dead letter.
        update_redeliver_min_s, update_redeliver_max_s: The same waits for updates.
        longpoll_idle_s: A session without a poll for this long is over.
    """

    hello_timeout_s: float = 10.0
    heartbeat_s: float = 25.0
    pong_timeout_s: float = 20.0
    drain_timeout_s: float = 60.0
    close_timeout_s: float = 5.0
    window_max: int = 1024
    window_size_bytes_max: int = 256 * 1024
    page_len_max: int = 300
    page_size_bytes_max: int = 1024 * 1024
    redeliver_min_s: float = 10.0
    redeliver_max_s: float = 300.0
    attempts_max: int = 20
    update_redeliver_min_s: float = 10.0
    update_redeliver_max_s: float = 300.0
    longpoll_idle_s: float = 120.0

    def __post_init__(self) -> None:
        assert 1 <= self.window_max <= WINDOW_MAX, "the contract's bound"
        assert self.page_len_max <= 300, "what one HTTP body holds"
        assert self.redeliver_min_s <= self.redeliver_max_s, "waits double from one to the other"
        assert self.update_redeliver_min_s <= self.update_redeliver_max_s, "the same"
        assert self.attempts_max >= 1, "nothing would ever be sent"
