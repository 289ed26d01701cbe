"""Logs: one line an event, as JSON or as text, on one stream.

structlog is configured here and nowhere else; the standard library's loggers (aiohttp, SQLAlchemy, asyncio)
come out as the same lines. Two nets catch secrets that a caller logs by mistake: fields whose name says that
they hold one are hidden, and bearer tokens are cut out of every text, tracebacks included. They are nets, not
permission: tokens, keys and payloads are not to be logged at all.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

HIDDEN: Final = "[hidden]"

_SECRET_FIELDS: Final = frozenset(
    {
        "authorization",
        "bearer",
        "body",
        "client_secret",
        "cookie",
        "credential",
        "data",
        "headers",
        "password",
        "payload",
        "pem",
        "private_key",
        "secret",
        "ticket",
        "token",
    }
)

# A bearer token in a header's text, an operator token, the three parts of a JWT.
_SECRET_TEXT: Final = re.compile(
    r"(?i:\bbearer\s+)[^\s'\",;]+|\bfct_[A-Za-z0-9_-]{16,}|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
)

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["json", "console"] = "console",
    stream: TextIO | None = None,
) -> None:
    """Set up every logger of the process. Call once, at the start.

    Args:
        level: The least severe level that is written.
        format: ``json``: one object a line, ``at`` in ISO 8601 UTC; ``console``: text for people.
        stream: Standard error, if not given.
    """
    output = stream or sys.stderr
    renderer: structlog.typing.Processor
    if format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at" if format == "json" else "timestamp"),
        structlog.processors.format_exc_info,
        hide_secrets,
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    # Libraries are only heard when something is wrong: SQLAlchemy's "info" holds parameters of statements.
    root.setLevel(max(_LEVELS[level], logging.WARNING))


def logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose lines carry ``area=name``; call it after or before ``configure_logs``."""
    bound: FilteringBoundLogger = structlog.get_logger(area=name)
    return bound


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hide fields that are secrets by name, and tokens inside any text. A structlog processor."""
    for name, value in event.items():
        if name.lower() in _SECRET_FIELDS:
            event[name] = HIDDEN
        elif isinstance(value, bytes | bytearray | memoryview):
            event[name] = f"[{len(value)} bytes]"
        elif isinstance(value, str):
            event[name] = _SECRET_TEXT.sub(HIDDEN, value)
        elif isinstance(value, BaseException):
            event[name] = _SECRET_TEXT.sub(HIDDEN, repr(value))
    return event


class _ToStructlog(logging.Handler):
    """Write the standard library's records as structlog's lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            fields: dict[str, Any] = {"area": record.name}
            if record.exc_info and record.exc_info[0] is not None:
                fields["exc_info"] = record.exc_info
            structlog.get_logger().log(record.levelno, text, **fields)
        except Exception:  # logging's own rule: a handler reports its fault and never raises into the caller
            self.handleError(record)


def _json(event: EventDict, **_options: object) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()
