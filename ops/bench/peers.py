"""Other servers that hold many WebSockets: what each needs to hand one message on to all of them.

They know no devices, positions or acknowledgements: what a publish brings is handed on, and lost where
nobody is connected.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from nginx import nginx
from rig import BenchError, Load, build, found, free_port, is_listening, running, wait_until

NCHAN_WORKERS = 2  # as many as it is commonly given on two cores
NCHAN_MODULES = ("/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/share/nginx/modules/ngx_nchan_module.so")
PUSHPIN_CONFIG = Path("/etc/pushpin/pushpin.conf")
PUSHPIN_INTERNAL = Path("/usr/lib/pushpin/internal.conf")
START_TIMEOUT_S = 20
SUBSCRIBED_S = 3  # from the upgrade until Pushpin's other process knows of the subscription
_CHANNEL = "bench"
_NCHAN = f"""
    location = /subscribe {{
      nchan_subscriber websocket;
      nchan_channel_id {_CHANNEL};
      nchan_subscriber_first_message newest;
    }}
    location = /publish {{
      nchan_publisher http;
      nchan_channel_id {_CHANNEL};
      nchan_message_buffer_length 2;
    }}
"""


@contextlib.contextmanager
def nchan(folder: Path, clients: int, payload: int) -> Iterator[Load]:
    """nginx with nchan, all clients on one channel."""
    module = next((path for path in NCHAN_MODULES if Path(path).exists()), None)
    if module is None:
        raise BenchError("libnginx-mod-nchan is not installed; as root: make bench-packages")
    port = free_port()
    with (
        nginx(
            folder / "nchan",
            port,
            _NCHAN,
            main=f"load_module {module};",
            http="  nchan_shared_memory_size 256M;",
            workers=NCHAN_WORKERS,
        ),
        Load.connected(
            build("load", folder),
            port=port,
            count=clients,
            path="/subscribe",
            publish_path="/publish",
            publish_body="x" * payload,
        ) as load,
    ):
        yield load


@contextlib.contextmanager
def pushpin(folder: Path, clients: int, payload: int) -> Iterator[Load]:
    """Pushpin with its own test route, which subscribes every WebSocket to one channel."""
    port, offset = free_port(), _free_offset()
    home = folder / "pushpin"
    (home / "run").mkdir(parents=True)
    ours = {
        "rundir": home / "run",
        "logdir": home,
        "include": PUSHPIN_INTERNAL,
        "http_port": port,
        "port_offset": offset,
        # As installed they hold delivery at 2,500 messages a second.
        "message_rate": 1_000_000,
        "message_hwm": 1_000_000,
    }
    if not PUSHPIN_CONFIG.exists():
        raise BenchError("pushpin is not installed; as root: make bench-packages")
    lines = []
    for line in PUSHPIN_CONFIG.read_text().splitlines():
        key = line.partition("=")[0].strip()
        lines.append(f"{key}={ours[key]}" if key in ours else line)
    (home / "pushpin.conf").write_text("\n".join(lines) + "\n")
    (home / "routes").write_text("* test\n")
    publish_port = _PUBLISH_PORT + offset
    item = {"channel": "test", "formats": {"ws-message": {"content": "x" * payload}}}
    command = [found("pushpin"), f"--config={home / 'pushpin.conf'}"]
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def is_up() -> bool:
            if process.poll() is not None:
                raise BenchError(f"pushpin ended; see its logs in {home}")
            return _is_delivering(port, publish_port)

        wait_until(is_up, START_TIMEOUT_S, "pushpin does not listen")
        with Load.connected(
            build("load", folder),
            port=port,
            count=clients,
            path="/ws",
            publish_port=publish_port,
            publish_path="/publish/",
            publish_body=json.dumps({"items": [item]}),
        ) as load:
            time.sleep(SUBSCRIBED_S)
            yield load


_PUBLISH_PORT = 5561
_UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _is_delivering(port: int, publish_port: int) -> bool:
    """Return whether a message reaches a subscriber: ports are open before what is behind them."""
    body = json.dumps({"items": [{"channel": "test", "formats": {"ws-message": {"content": "?"}}}]})
    publisher = http.client.HTTPConnection("127.0.0.1", publish_port, timeout=2)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as subscriber:
            subscriber.sendall(_UPGRADE)
            if not subscriber.recv(4096).startswith(b"HTTP/1.1 101 "):
                return False
            time.sleep(0.2)
            publisher.request("POST", "/publish/", body)
            return publisher.getresponse().status == 200 and subscriber.recv(4096).endswith(b"?")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        publisher.close()


def _free_offset() -> int:
    """Return by how much Pushpin's four ports are to be moved, so that they are free."""
    for offset in range(0, 20_000, 10):
        if not any(is_listening(port + offset) for port in range(_PUBLISH_PORT - 1, _PUBLISH_PORT + 3)):
            return offset
    raise BenchError("no ports for pushpin")
