"""``fleetcast`` that writes every SQL statement it executes to a file, one a line: counted.py FILE WORD ...

BEGIN and COMMIT are not statements here; a statement with many rows is one.
"""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import Engine, event

from gateway.cli import main

if __name__ == "__main__":
    log = open(sys.argv.pop(1), "a", buffering=1)  # noqa: SIM115 - as long as the process

    @event.listens_for(Engine, "before_cursor_execute")
    def write_down(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        log.write(" ".join(statement.split()) + "\n")

    main()
