"""The files that the configuration names: whether they can be read, and by whom else.

A secret that everybody on the machine can read is refused: it is found out at the start, not after a leak.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.config.model import Config
from gateway.config.relations import value_of

SECRETS: Final = (
    "server.tls_key",
    "database.password_file",
    "identity.introspection.client_secret_file",
    "uplink.token_file",
)
_FILES: Final = ("server.tls_cert", *SECRETS)


def problems_of_files(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong and how to put it right) of each file that cannot be used as it is."""
    for key in _FILES:
        path = value_of(config, key)
        if path is None:
            continue
        try:
            with path.open("rb"):
                what = exposure(path) if key in SECRETS else None
        except OSError as error:
            what = f"cannot read {path}: {error.strerror}; correct the path or its permissions"
        if what is not None:
            yield key, what


def exposure(path: Path) -> str | None:
    """Return what is wrong with the permissions of a secret, and the command that mends it; None: nothing.

    Raises:
        OSError: It is not there.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & stat.S_IRWXO:
        return None
    return f"everybody on this machine has access to {path} (mode {mode:04o}); run: chmod o= {path}"
