"""Configuration: the model (``model``), reading it (``load``), printing it (``describe``).

``load_config`` is the only way in. The rest of the gateway gets values, never the file or the environment.
"""

from gateway.config.describe import effective, example, reference
from gateway.config.identity import ForwardAuth, Identity, Introspection, Jwt
from gateway.config.load import load_config
from gateway.config.model import Alerts, Config, Database, Device, Log, Metrics, Server, Updates
from gateway.config.section import Section
from gateway.config.supervisor import Supervisor, read_supervisor
from gateway.config.warnings import warnings_of

__all__ = [
    "Alerts",
    "Config",
    "Database",
    "Device",
    "ForwardAuth",
    "Identity",
    "Introspection",
    "Jwt",
    "Log",
    "Metrics",
    "Section",
    "Server",
    "Supervisor",
    "Updates",
    "effective",
    "example",
    "load_config",
    "read_supervisor",
    "reference",
    "warnings_of",
]
