"""Bounds of the update procedure, with units, and what happens at each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLimits:
    """Bounds of one ``UpdateAgent``.

    Attributes:
        image_size_max_bytes: Over it a manifest is refused as ``too_large``, whatever the slot holds.
        jobs_max: Deployments held at once, those that wait included. At the bound an update is not
            acknowledged, so that it comes again.
        reports_max: Reports that wait to be recorded. At the bound the oldest that is no outcome goes,
            else the oldest.
        ended_max: Deployments remembered after their end, so that none runs twice.
        chunk_timeout_s: Longest silence of a server before the attempt ends.
        rate_min_bytes_per_s, rate_window_s: Slower than this over the window ends the attempt as
            ``too_slow``.
        slow_attempts_max: Attempts that may end so; then the update fails as ``too_slow``.
        attempts_max: Attempts in a row without ``attempt_progress_bytes``; then the update fails as
            ``download_failed``. While there is no connection, nothing is counted: ``install_by`` ends that.
        backoff_s, backoff_max_s: Wait between attempts: doubling, with full jitter.
        busy_wait_s, busy_wait_max_s: Wait after 503 where the server names none, and the longest one that
            it may ask for.
        checkpoint_bytes: What is written between two points that a power loss cannot undo.
        progress_step_percent, progress_interval_s: A progress report comes after both.
        nonce_life_s: An older nonce is not answered: bounds how late a statement's time may be.
        clock_skew_s: A device's own clock that is further behind the time floor counts as none.
        statement_interval_s: A device with a clock asks for a statement this often.
        statement_wait_s: How long a device without a clock waits for a statement before it refuses an
            update as ``clock_unknown``.
        health_timeout_s: A trial that is not healthy by then is rolled back.
        reboots_max: Restarts asked for without one happening; then the trial is given up.
    """

    image_size_max_bytes: int = 16 * 1024**3
    jobs_max: int = 32
    reports_max: int = 256
    ended_max: int = 64
    chunk_timeout_s: float = 60.0
    rate_min_bytes_per_s: int = 64
    rate_window_s: float = 300.0
    slow_attempts_max: int = 3
    attempts_max: int = 12
    attempt_progress_bytes: int = 64 * 1024
    backoff_s: float = 1.0
    backoff_max_s: float = 300.0
    busy_wait_s: float = 30.0
    busy_wait_max_s: float = 3600.0
    checkpoint_bytes: int = 4 * 1024**2
    progress_step_percent: int = 5
    progress_interval_s: float = 5.0
    nonce_life_s: float = 120.0
    clock_skew_s: float = 300.0
    statement_interval_s: float = 86_400.0
    statement_wait_s: float = 900.0
    health_timeout_s: float = 300.0
    reboots_max: int = 5

    def __post_init__(self) -> None:
        """Raise ValueError where the bounds contradict each other."""
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is not positive")
        if self.reports_max < 8:
            raise ValueError("reports_max is below 8, what one update reports")
        if self.backoff_s > self.backoff_max_s:
            raise ValueError("backoff_s is over backoff_max_s")
        if self.busy_wait_s > self.busy_wait_max_s:
            raise ValueError("busy_wait_s is over busy_wait_max_s")
        if self.progress_step_percent > 100:
            raise ValueError("progress_step_percent is over 100")
