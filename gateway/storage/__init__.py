"""The only SQLAlchemy: tables, the two engines, the batching writer, and the ports' implementations.

Each query is a plain function of a Core connection, written once for SQLite and PostgreSQL; what differs
between them is in ``dialect.py`` alone.
"""

from gateway.storage.engine import CommitUnknownError, Database, DatabaseLimits, open_database
from gateway.storage.fleet_store import SQLFleetStore
from gateway.storage.hot import hot_handlers
from gateway.storage.releases import SQLReleaseStore
from gateway.storage.schema import SchemaState, migrate, schema_state
from gateway.storage.writer import BatchWriter, Handler

__all__ = [
    "BatchWriter",
    "CommitUnknownError",
    "Database",
    "DatabaseLimits",
    "Handler",
    "SQLFleetStore",
    "SQLReleaseStore",
    "SchemaState",
    "hot_handlers",
    "migrate",
    "open_database",
    "schema_state",
]
