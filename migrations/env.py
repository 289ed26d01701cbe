"""Runs revisions on the connection that ``gateway.storage.schema`` opened, in its transaction.

The bounds below keep a migration from standing in front of a serving node's queries. A revision that needs
longer sets its own and says why.
"""

from __future__ import annotations

from alembic import context

from gateway.storage.dialect import limit_statements
from gateway.storage.tables import metadata

LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 5_000


def run() -> None:
    connection = context.config.attributes["connection"]
    limit_statements(connection, lock_timeout_ms=LOCK_TIMEOUT_MS, statement_timeout_ms=STATEMENT_TIMEOUT_MS)
    # SQLite's DDL is transactional too, once BEGIN is ours and not the driver's.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    context.run_migrations()


run()
