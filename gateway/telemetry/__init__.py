"""What a node tells its operators: logs (``logs``) and metrics (``metrics``). It knows no domain package."""

from gateway.telemetry.logs import configure_logs, logger
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics

__all__ = ["CONTENT_TYPE", "Metrics", "configure_logs", "logger"]
