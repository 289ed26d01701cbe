"""What a node tells its operators: logs (``logs``, ``sparse``) and metrics. It knows no domain package."""

from gateway.telemetry.logs import configure_logs, logger
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics
from gateway.telemetry.sparse import SparseLog

__all__ = ["CONTENT_TYPE", "Metrics", "SparseLog", "configure_logs", "logger"]
