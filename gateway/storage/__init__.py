"""The only SQLAlchemy: tables, the two engines, the batching writer, and the ports' implementations.

Each query is a plain function of a Core connection, written once for SQLite and PostgreSQL; what differs
between them is in ``dialect.py`` alone.
"""
