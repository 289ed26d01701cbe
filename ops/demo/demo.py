"""The main job from end to end, on this machine: an alert and a signed update reach a fleet and come back.

    make demo                                       live, and the gateway stays up until Ctrl-C
    make demo DEMO_ARGS="--once --json"             unattended; the last line of standard output is JSON
    make demo DEMO_ARGS="--once --json --keep"      and the gateway stays up, in the background
    make demo DEMO_ARGS="--database postgresql://fleetcast@localhost/fleetcast"

Everything listens on loopback, on free ports, and lives in one temporary folder. Exit status 0: every device
ended as it should; 1: one did not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stage import BIN, DemoError, Interrupted, Stage, free_port, stop_kept
from view import ENDS, View, print_summary

from device_sdk import SlotInstaller

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
VERSION = "1.4.0"
COMPONENT = "main"
ALERTS, UPDATES = "ops", "firmware"
CANARY_PERCENT = 10
REFUSED = {"bad_signature": 1, "rollback": 1}
ROLLOUT_TIMEOUT_S = 180
ALERT_TIMEOUT_S = 120


class Demo:
    """One run: the steps of the story, and what they left to read back."""

    def __init__(self, arguments: argparse.Namespace, stage: Stage, view: View) -> None:
        self._devices: int = arguments.devices
        self._database: str | None = arguments.database
        self._stage = stage
        self._view = view
        # A database of your own may have seen a demo before.
        self.fleet = "demo" if self._database is None else f"demo-{secrets.token_hex(4)}"
        self.origin = ""
        self.url = ""
        self._image = stage.folder / "firmware.tar"
        self._rollout = ""
        self._alert = ""
        self._started_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Tell the story; return the summary."""
        self._start_gateway()
        self._set_up_fleet()
        self._start_devices()
        self._release()
        self._roll_out()
        self._send_alert()
        with self._view.step("Read back what happened, and look into the slots"):
            return self._summary()

    # --- the steps ----------------------------------------------------------------------------------------

    def _start_gateway(self) -> None:
        stage = self._stage
        with self._view.step(
            "Start your backend (the origin), which knows the devices' tokens, and the gateway"
        ):
            stage.run(
                *("fleetcast-sim", "tokens", HERE / "fleet.toml", "--devices", self._devices),
                *("--output", "tokens.txt"),
            )
            stage.start(
                *("origin", sys.executable, HERE / "origin.py", "--tokens", "tokens.txt"),
                *("--fleet", self.fleet, "--channel", f"alert:{ALERTS}", "--channel", f"update:{UPDATES}"),
            )
            self.origin = stage.await_output("origin")
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            self._write_config(port)
            config = ("--config", "fleetcast.toml")
            if self._database is not None:
                stage.run("fleetcast", "db", "upgrade", *config)
            stage.run(
                *("fleetcast", "token", "create", "--name", "demo", "--scope", "admin"),
                *("--fleet", self.fleet, "--create-fleet", "--output", "operator.token", *config),
            )
            stage.start("gateway", BIN / "fleetcast", "serve", *config)
            stage.until(lambda: stage.is_ready(self.url), "the gateway is not ready")
            stage.export(
                FLEETCAST_URL=self.url, FLEETCAST_TOKEN_FILE="operator.token", FLEETCAST_FLEET=self.fleet
            )

    def _set_up_fleet(self) -> None:
        run = self._stage.run
        with self._view.step("Make a release key, which no gateway ever sees, and the channels"):
            run("fleetcast", "key", "generate", "--output", "release")
            run("fleetcast", "fleet", "trust", "--key", "release.pem", "--yes")
            run("fleetcast", "channel", "create", ALERTS, "--kind", "alert")
            run("fleetcast", "channel", "create", UPDATES, "--kind", "update")

    def _start_devices(self) -> None:
        stage = self._stage
        with self._view.step(f"Switch on {self._devices} devices, in a process of their own"):
            stage.start(
                *("devices", BIN / "fleetcast-sim", "run", HERE / "fleet.toml", "--devices", self._devices),
                *("--url", self.url, "--fleet", self.fleet, "--tokens", "tokens.txt"),
                *("--release-key", "release.pub.pem", "--stay", "--keep-flash", "flash", "--json"),
            )
            stage.until(lambda: self._connected() == self._devices, "some devices do not come")
            self._view.note(f"{self._devices} have connected; the origin said who they are")

    def _release(self) -> None:
        run = self._stage.run
        with self._view.step("Release a real file: sign it offline, publish it"):
            with tarfile.open(self._image, "w") as archive:
                archive.add(REPOSITORY / "device_sdk", "device_sdk", filter=_plain)
            run(
                *("fleetcast", "release", "create", "--image", self._image.name, "--version", VERSION),
                *("--vendor", "acme.example", "--class", "tc3", "--component", COMPONENT, "-o", "app.suit"),
            )
            run("fleetcast", "release", "sign", "app.suit", "--key", "release.pem", "-o", "app.suit")
            run("fleetcast", "release", "inspect", "app.suit", "--key", "release.pub.pem")
            self._published = self._stage.reads(
                *("fleetcast", "release", "publish", "app.suit", "--image", self._image.name, "--json")
            )

    def _roll_out(self) -> None:
        stage = self._stage
        with self._view.step(f"Roll it out to {CANARY_PERCENT} % of the fleet, and look"):
            rollout = stage.reads(
                *("fleetcast", "rollout", "start", "--release", self._published["id"]),
                *("--channel", UPDATES, "--percent", CANARY_PERCENT, "--json"),
            )
            self._rollout = rollout["id"]
            canaries = max(1, self._devices * CANARY_PERCENT // 100)
            stage.until(lambda: self._ended() >= canaries, "the canaries do not end", ROLLOUT_TIMEOUT_S)
        with self._view.step("Good: 100 %"):
            stage.run("fleetcast", "rollout", "widen", self._rollout, "--percent", 100, "--json")
            stage.until(lambda: self._ended() >= self._devices, "the rollout does not end", ROLLOUT_TIMEOUT_S)

    def _send_alert(self) -> None:
        stage = self._stage
        with self._view.step("Send an alert to all of them"):
            sent = stage.reads(
                *("fleetcast", "alert", "send", "--channel", ALERTS, "--print-json"),
                *("--text", "Pressure in line 4 is above 8 bar. Close valve V-17."),
            )
            self._alert = sent["id"]
            stage.until(
                lambda: len(self._received()) >= self._devices, "some did not get the alert", ALERT_TIMEOUT_S
            )

    # --- looking on ---------------------------------------------------------------------------------------

    def _connected(self) -> int:
        devices = self._stage.api_list("/devices")
        return sum(device["last_seen_at"] is not None for device in devices)

    def _ended(self) -> int:
        counts = self._stage.api(f"/rollouts/{self._rollout}")["counts"]
        self._view.rollout(counts)
        return sum(counts.get(state, 0) for state in ENDS)

    def _received(self) -> list[int]:
        """Return how long the alert took to each device that has it: accepted to ack committed, in ms."""
        deliveries = self._stage.api_list(f"/alerts/{self._alert}/deliveries")
        times = [
            one["received_at"] - one["accepted_at"] for one in deliveries if one["received_at"] is not None
        ]
        self._view.alerts(len(times))
        return sorted(times)

    def _summary(self) -> dict[str, Any]:
        deployments = list(self._stage.api_list(f"/rollouts/{self._rollout}/deployments"))
        received = self._received()
        committed = [one["device_id"] for one in deployments if one["state"] == "committed"]
        refused = Counter(one["code"] or one["state"] for one in deployments if one["state"] != "committed")
        unexpected = self._slots_with_other_bytes(committed)
        for one in deployments:
            if one["state"] != "committed" and one["code"] not in REFUSED:
                unexpected[one["device_id"]] = f"{one['state']} {one['code']}: {one['detail']}"
        is_as_it_should_be = (
            not unexpected
            and len(committed) == self._devices - sum(REFUSED.values())
            and refused == REFUSED
            and len(received) == self._devices
        )
        return {
            "ok": is_as_it_should_be,
            "devices": self._connected(),
            "committed": len(committed),
            "refused": dict(sorted(refused.items())),
            "alerts_received": len(received),
            "received_p50_ms": _percentile(received, 50),
            "received_p99_ms": _percentile(received, 99),
            "updates_received": sum(one["received_at"] is not None for one in deployments),
            "verified": sum(one["verified_at"] is not None for one in deployments),
            "slots_checked": len(committed),
            "unexpected": unexpected,
            "seconds": round(time.monotonic() - self._started_at, 1),
        }

    def _slots_with_other_bytes(self, device_ids: list[str]) -> dict[str, str]:
        """Return the devices whose running slot, as its flash has it, is not the image byte by byte."""
        flash = self._stage.folder / "flash"
        self._stage.processes["devices"].send_signal(signal.SIGUSR1)  # write it out
        self._stage.until(flash.exists, "the devices do not show their flash")
        image = self._image.read_bytes()
        wrong = {}
        for device_id in device_ids:
            slots = flash / device_id
            name = SlotInstaller(slots, components=(COMPONENT,), is_boot=False).running_file(COMPONENT)
            if (slots / name).read_bytes() != image:
                wrong[device_id] = f"{name} is not the image"
        return wrong

    def _write_config(self, port: int) -> None:
        text = (
            f'[server]\nlisten_port = {port}\ndata_dir = "data"\n\n'
            f'[identity]\nmode = "forward_auth"\n\n[identity.forward_auth]\nurl = {json.dumps(self.origin)}\n'
        )
        if self._database is not None:
            text += f"\n[database]\nurl = {json.dumps(self._database)}\n"
        path = self._stage.folder / "fleetcast.toml"
        path.touch(0o600)  # a database's URL may have a password in it
        path.write_text(text)


def main() -> int:
    arguments = _arguments()
    if arguments.stop is not None:
        stop_kept(arguments.stop)
        return 0
    view = View(arguments.devices)
    folder = Path(tempfile.mkdtemp(prefix="fleetcast-demo-"))
    stage = Stage(folder, is_kept=arguments.keep, say=view.say)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    is_kept = False
    try:
        for number in signals:
            signal.signal(number, stage.interrupt)
        demo = Demo(arguments, stage, view)
        with view.shown():
            summary = demo.run()
        if arguments.once:
            _check_devices(stage, summary)
        if arguments.keep:
            is_kept = True
            summary |= {
                "gateway": demo.url,
                "origin": demo.origin,
                "fleet": demo.fleet,
                "token_file": str(folder / "operator.token"),
                "device_tokens": str(folder / "tokens.txt"),
                "release_key": str(folder / "release.pem"),
                "folder": str(folder),
                "stop": stage.stop_command(),
            }
        _tell(summary, demo, arguments)
        if not arguments.once:
            _stay(stage)
        return 0 if summary["ok"] else 1
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        is_the_end = interrupted.number == signal.SIGINT and not arguments.once
        return 0 if is_the_end else 128 + interrupted.number
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)  # what was started is ended, whoever is impatient
        stage.close(keep=is_kept)


def _check_devices(stage: Stage, summary: dict[str, Any]) -> None:
    """Switch the devices off and let them say, too, how they ended."""
    result = json.loads(stage.end("devices").splitlines()[-1])
    summary["alerts_in_order"] = result["alerts_in_order"]
    summary["unexpected"] |= result["unmet"]
    summary["ok"] = summary["ok"] and result["ok"]


def _tell(summary: dict[str, Any], demo: Demo, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(summary), flush=True)
        return
    print_summary(summary)
    if arguments.keep:
        print(f"The gateway stays at {demo.url}. To stop it:\n{summary['stop']}", flush=True)


def _stay(stage: Stage) -> None:
    variables = " ".join(f"{name}={value}" for name, value in stage.variables.items())
    print("\nThe gateway stays up until Ctrl-C. In another terminal:\n")
    print(f"  cd {stage.folder}\n  export {variables} PATH={BIN}:$PATH\n  fleetcast device list", flush=True)
    while True:
        stage.check()
        time.sleep(0.5)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="end when everything has been shown")
    parser.add_argument("--json", action="store_true", help="the summary as one line of JSON")
    parser.add_argument("--keep", action="store_true", help="with --once: leave gateway and origin running")
    parser.add_argument("--devices", type=int, default=50, metavar="N", help="3..1000 (default 50)")
    parser.add_argument("--database", metavar="URL", help="postgresql://…, instead of SQLite")
    parser.add_argument("--stop", type=Path, metavar="FOLDER", help="end what --keep left running")
    arguments = parser.parse_args()
    if not 3 <= arguments.devices <= 1000:
        parser.error("--devices is 3..1000")
    if arguments.keep and not arguments.once:
        parser.error("--keep goes with --once")
    return arguments


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def _percentile(values: list[int], percent: int) -> int | None:
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else None


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    sys.exit(main())
