"""The report's page: one HTML file with everything in it, under a policy that lets nothing in. Pure.

The page reads without a script; with one it has plots. Scripts and styles are allowed by their digests, so
the data, whatever devices said, can never be one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any, Final

from firmware_sim.invariants import MEANINGS, Invariant

UNMET_SHOWN_MAX: Final = 50
BROKEN_SHOWN_MAX: Final = 50
_PLOTS: Final = (
    ("latency", "Alert latency", "from an alert’s issue to the commit of its handler on a device; ms, log"),
    ("trips", "Round trips", "a report until it is recorded, a connection until it is welcomed; ms, log"),
    ("phases", "Devices", "by what they do"),
    ("states", "Deployments", "devices by the state of their newest deployment"),
    ("connects", "Connections", "welcomed, and attempts that came to nothing; per second"),
    ("refused", "Refusals", "by reason, since the run began"),
)


def render(document: Mapping[str, Any]) -> str:
    """Return the page of ``document`` (``report_document``)."""
    styles = [_file("vendor", "uPlot.min.css"), _file("report.css")]
    scripts = [_file("vendor", "uPlot.iife.min.js"), _file("report.js")]
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(map(_digest, scripts)),
            "style-src " + " ".join(map(_digest, styles)),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(document['name'])}, seed {document['result']['seed']}</title>",
        *(f"<style>{style}</style>" for style in styles),
    ]
    body = [
        "<main>",
        _header(document),
        '<section class="plots">',
        *(_plot(name, title, meaning) for name, title, meaning in _PLOTS),
        "</section>",
        _invariants(document),
        _groups(document),
        _attacks(document["result"]["attacks"]),
        _faults(document["result"]),
        "</main>",
        f'<script type="application/json" id="data">{_data(document)}</script>',
        *(f"<script>{script}</script>" for script in scripts),
    ]
    comment = "<!-- uPlot, which is in here:\n" + _file("vendor", "LICENSE").replace("--", "- -") + "-->"
    top = ["<!doctype html>", '<html lang="en">', comment]
    return "\n".join([*top, "<head>", *head, "</head>", "<body>", *body, "</body>", "</html>", ""])


def _header(document: Mapping[str, Any]) -> str:
    result = document["result"]
    broken = sum(one["broken"] for one in result["invariants"].values())
    faults = sum(result["faults"].values())
    verdict = (
        '<span class="good">as expected</span>'
        if result["ok"]
        else '<span class="bad">not as expected</span>'
    )
    tiles = [
        ("devices", f"{result['devices'] - len(result['unmet'])} of {result['devices']}", "as expected"),
        ("invariants", f"{broken} broken" if broken else "all held", f"{len(result['invariants'])} checked"),
        ("alerts", _number(result["alerts_received"]), f"on {result['devices_alerted']} devices"),
        ("latency", _ms(result["received_p50_ms"]), f"p50; p99 {_ms(result['received_p99_ms'])}"),
        ("reconnects", _number(result["reconnects"]), f"{_number(result['boots'])} boots"),
        ("faults", _number(faults), "on purpose"),
    ]
    return "\n".join(
        [
            "<header>",
            f"<h1>{escape(document['name'])} {verdict}</h1>",
            f"<p>{escape(document['description'])}</p>",
            f'<p class="quiet">{result["devices"]} devices, seed {result["seed"]},'
            f" {result['seconds']:.1f} s</p>",
            '<dl class="tiles">',
            *(
                f"<div><dt>{name}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>"
                for name, value, note in tiles
            ),
            "</dl>",
            _command("Run it again", document["command"]),
            "</header>",
        ]
    )


def _command(what: str, words: Sequence[str]) -> str:
    return (
        f'<div class="command"><span>{what}</span><code>{escape(shlex.join(words))}</code>'
        '<button type="button" hidden>Copy</button></div>'
    )


def _plot(name: str, title: str, meaning: str) -> str:
    return (
        f'<figure id="{name}"><figcaption><strong>{title}</strong> <span>{meaning}</span></figcaption>'
        '<div class="plot"><noscript>Plots need a script.</noscript></div></figure>'
    )


def _invariants(document: Mapping[str, Any]) -> str:
    result = document["result"]
    rows = []
    for invariant in Invariant:
        one = result["invariants"][invariant.value]
        if one["broken"]:
            verdict = f'<span class="bad">broken {_number(one["broken"])} ×</span>'
        elif one["checks"]:
            verdict = '<span class="good">held</span>'
        else:
            verdict = '<span class="quiet">no occasion</span>'
        rows.append(
            [f"<code>{invariant.value}</code>", escape(MEANINGS[invariant]), _number(one["checks"]), verdict]
        )
    parts = [_table("Invariants", ["name", "what must hold", "checks", ""], rows)]
    for broken in result["broken"][:BROKEN_SHOWN_MAX]:
        parts.append(_broken(broken, document))
    return f"<section>{''.join(parts)}</section>"


def _broken(broken: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    rows = [
        [str(event["event"]), f"{event['at_s']:.3f}", escape(event["kind"]), escape(event["where"])]
        for event in broken["recent"]
    ]
    words = [*document["command"], "--only-device", broken["device"], "--trace", "trace.jsonl"]
    where = f"{broken['device']}, seed {broken['seed']}, event {broken['event']}, {broken['at_s']:.3f} s"
    return (
        f'<details open><summary><span class="bad">{escape(broken["invariant"])}</span> '
        f"{escape(where)}: {escape(broken['detail'])}</summary>"
        + _command("Replay this device", words)
        + _table("", ["event", "s", "what", ""], rows)
        + "</details>"
    )


def _groups(document: Mapping[str, Any]) -> str:
    rows = []
    for group in document["groups"]:
        ended = ", ".join(f"{state} {count}" for state, count in group["states"].items())
        verdict = (
            f'<span class="bad">{group["unmet"]} not</span>'
            if group["unmet"]
            else '<span class="good">all</span>'
        )
        rows.append(
            [escape(group["name"]), str(group["devices"]), escape(group["expected"]), escape(ended), verdict]
        )
    parts = [_table("Groups", ["name", "devices", "expected", "ended", "as expected"], rows)]
    unmet = list(document["result"]["unmet"].items())
    if unmet:
        shown = [[escape(device), escape(missing)] for device, missing in unmet[:UNMET_SHOWN_MAX]]
        if len(unmet) > UNMET_SHOWN_MAX:
            shown.append(["…", f"and {len(unmet) - UNMET_SHOWN_MAX} more: in the JSON beside this page"])
        parts.append(_table("Not as expected", ["device", "what is missing"], shown))
    return f"<section>{''.join(parts)}</section>"


def _attacks(attacks: Mapping[str, Any]) -> str:
    if not attacks:
        return ""
    rows = []
    for name, one in attacks.items():
        answers = ", ".join(f"{code} {count}" for code, count in one["answers"].items())
        rows.append([f"<code>{escape(name)}</code>", _number(one["tried"]), escape(answers) or "passed over"])
    return f"<section>{_table('Attacks', ['name', 'tried', 'answered'], rows)}</section>"


def _faults(result: Mapping[str, Any]) -> str:
    counted = [
        ("faults", result["faults"]),
        ("connections", result["connections"]),
        ("failed connections", result["connect_failures"]),
        ("refused devices", result["refused"]),
    ]
    rows = [
        [what, ", ".join(f"{escape(name)} {_number(count)}" for name, count in counts.items()) or "none"]
        for what, counts in counted
    ]
    rows.append(
        [
            "alerts sent by the run",
            "none" if result["alerts_sent"] is None else _number(result["alerts_sent"]),
        ]
    )
    rows.append(["signed statements", _number(result["statements"])])
    return f"<section>{_table('What happened', ['', ''], rows)}</section>"


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells are HTML."""
    if not rows:
        return ""
    head = "".join(f"<th>{head}</th>" for head in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    headed = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="table"><table>{title}{headed}<tbody>{lines}</tbody></table></div>'


def _data(document: Mapping[str, Any]) -> str:
    """Return JSON that ends no script element, whatever is in it."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _file(*path: str) -> str:
    return resources.files("firmware_sim.report").joinpath(*path).read_text()


def _number(number: int) -> str:
    return f"{number:,}".replace(",", " ")  # a thin space that does not break


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
    )
