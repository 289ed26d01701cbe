"""New epochs for every channel: the step after a backup was restored (PROTOCOL §1.7).

A restored log ends earlier than devices have read, and new alerts take the offsets that lost ones had. Only
another epoch keeps the two apart. What the backup itself holds is as true as it was, so it moves along:
positions, dead letters and facts, and the alerts, whose signatures name the epoch and are therefore void.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, select

from gateway.errors import ConflictError
from gateway.ids import random_uint32
from gateway.storage.dialect import Columns, execute_rows, other_sessions
from gateway.storage.tables import channel

_PAGE_LEN: Final = 1_000  # channels in one statement

_EPOCHS: Final[Columns] = (("id", "bigint"), ("old", "bigint"), ("new", "bigint"))
_CHANNEL: Final = "UPDATE channel SET epoch = incoming.new FROM incoming WHERE channel.id = incoming.id"
_FOLLOW: Final = tuple(
    f"UPDATE {table} SET epoch = incoming.new FROM incoming "
    f"WHERE {table}.channel_id = incoming.id AND {table}.epoch = incoming.old"
    for table in ("subscription", "dead_letter", "live_interval", "delivery_fact")
)
# A kid of no bytes is nobody's: whoever reads the alert signs it anew, in its new place.
_VOID: Final = (
    "UPDATE message SET kid = substr(kid, 1, 0) FROM incoming WHERE message.channel_id = incoming.id"
)


def renew_epochs(connection: Connection) -> int:
    """Give every channel another epoch, and what stands in it; return how many there are.

    Devices that have been in a channel are told ``lost`` when they connect, and go on from the position that
    the backup has of them; what they read since, and what is in the backup all the same, they know by its id.

    Raises:
        ConflictError: A gateway is connected to the database.
    """
    if others := other_sessions(connection):
        raise ConflictError(
            f"{others} connections of gateways are open; stop them first", code="database_in_use"
        )
    count = after = 0
    query = select(channel.c.id, channel.c.epoch).order_by(channel.c.id).limit(_PAGE_LEN).with_for_update()
    while rows := connection.execute(query.where(channel.c.id > after)).all():
        changes = [(row.id, row.epoch, _other(row.epoch)) for row in rows]
        for statement in (_CHANNEL, *_FOLLOW, _VOID):
            execute_rows(connection, _EPOCHS, changes, statement)
        count += len(rows)
        after = rows[-1].id
    return count


def _other(epoch: int) -> int:
    while (found := random_uint32()) == epoch:
        continue
    return found
