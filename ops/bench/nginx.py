"""nginx in a folder of its own, on loopback: the origin that answers at once, and nchan's home."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rig import BenchError, found, is_listening, running, wait_until

START_TIMEOUT_S = 15
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextlib.contextmanager
def nginx(
    folder: Path, port: int, server: str, *, http: str = "", main: str = "", workers: int = 1
) -> Iterator[None]:
    """Run nginx with ``server`` for its one server block on ``port``, until the end of the block."""
    folder.mkdir()
    config, log = folder / "nginx.conf", folder / "error.log"
    temporary = "\n".join(f"  {kind}_temp_path {folder}/{kind};" for kind in _TEMPORARY)
    user = "user root;" if os.geteuid() == 0 else ""  # the folder is nobody else's
    config.write_text(f"""{main}
{user} daemon off; worker_processes {workers}; worker_rlimit_nofile 20000;
pid {folder}/nginx.pid; error_log {log};
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
{temporary}
{http}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
{server}
  }}
}}
""")
    with running([found("nginx"), "-c", config, "-e", log], stderr=subprocess.DEVNULL) as process:

        def is_up() -> bool:
            if process.poll() is not None:
                raise BenchError(f"nginx ended: {log.read_text().strip()[-500:]}")
            return is_listening(port)

        wait_until(is_up, START_TIMEOUT_S, "nginx does not listen")
        yield
