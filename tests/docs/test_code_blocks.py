"""Code on the pages is code: what is marked as shell runs, what is marked as data or Python reads.

The first word after the backticks says what it is:

* ``sh``: run, all blocks of a page in order, in one shell in a fresh folder; a page is one session, with a
  gateway that ``systemctl`` (a stand-in) starts. ``sh host`` is for a machine's own administrator: only read.
* ``toml``, ``json``, ``python``: read. A toml block with tables of the configuration must be one. A file's
  name behind ``toml`` is where the session finds it.
* ``text``, ``mermaid``, ``ini``, or nothing: no code.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from gateway.cli.program import app
from gateway.config.keys import tables
from gateway.config.load import load_config
from gateway.errors import ConfigError
from tests.harness.gateway import CLI, free_port

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/operating.md", *sorted((ROOT / "docs/reference").glob("*.md"))]
STAND_INS = Path(__file__).parent / "stand_ins"
KINDS = {"sh", "toml", "json", "python", "text", "mermaid", "ini", ""}
SESSION_S = 150  # under 20 on a machine of its own


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    more: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[1], found[2].strip(), found[3])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.kind == "sh"]
RUN = {page: [b for b in SHELL if b.page == page and b.more != "host"] for page in PAGES}


def of_kind(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == kind], ids=str)


def test_every_block_is_found_and_of_a_kind_that_is_checked() -> None:
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(), re.M)) == 2 * len(list(blocks_of(page))), page.name
    assert [str(block) for block in BLOCKS if block.kind not in KINDS] == []
    assert [str(block) for block in SHELL if block.more not in ("", "host")] == []


@of_kind("toml")
def test_toml_reads_and_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    data = tomllib.loads(block.text)
    if not data.keys() & {name.partition(".")[0] for name in tables()}:
        return
    if not all(isinstance(table, dict) for table in data.values()):
        return  # a scenario of the simulator, whose own tests read it; a configuration has tables only
    path = tmp_path / "fleetcast.toml"
    path.touch(mode=0o600)
    path.write_text(block.text)
    problems: list[str] = []
    try:
        load_config(path, {})
    except ConfigError as error:
        problems = [problem for problem in error.problems if "cannot read" not in problem]
    assert problems == []


@of_kind("json")
def test_json_reads(block: Block) -> None:
    json.loads(block.text)


@of_kind("python")
def test_python_compiles(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_reads_and_names_commands_that_there_are(block: Block) -> None:
    read = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    for words in re.findall(r"(?:^|[;&|(] *)fleetcast((?: [a-z-]+)+)", block.text, re.M):
        assert _is_command(words.split()), words


def _is_command(words: list[str]) -> bool:
    command = typer.main.get_command(app)
    for word in words:
        inner = getattr(command, "commands", {})
        if not inner:
            return True  # what follows is an argument
        if word not in inner:
            return False
        command = inner[word]
    return not getattr(command, "commands", {})


@pytest.mark.timeout(SESSION_S + 30)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if RUN[page]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_runs_from_its_beginning_to_its_end(page: Path, tmp_path: Path) -> None:
    work, state = tmp_path / "work", tmp_path / "state"
    work.mkdir()
    state.mkdir()
    for block in blocks_of(page):
        if block.kind == "toml" and block.more:
            (work / block.more).touch(mode=0o600)
            (work / block.more).write_text(block.text)
    port = free_port()
    environment = {name: text for name, text in os.environ.items() if not name.startswith("FLEETCAST_")} | {
        "FLEETCAST_CONFIG": str(work / "fleetcast.toml"),
        "FLEETCAST_SERVER_DATA_DIR": str(work),
        "FLEETCAST_SERVER_LISTEN_PORT": str(port),
        "FLEETCAST_TEST_SYSTEMD": str(state),
        "FLEETCAST_URL": f"http://127.0.0.1:{port}",
        "PATH": os.pathsep.join([str(STAND_INS), str(CLI.parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    script = "set -euo pipefail\n" + "\n".join(
        f"echo '::: {block}' >&2\n{block.text}" for block in RUN[page]
    ).replace("8089", str(free_port()))
    with _stopped_at_the_end(environment):
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SESSION_S,
            check=False,
        )
    log = (state / "log").read_text() if (state / "log").exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}\n{log[-4000:]}"


@contextmanager
def _stopped_at_the_end(environment: dict[str, str]) -> Iterator[None]:
    try:
        yield
    finally:
        subprocess.run(
            [sys.executable, STAND_INS / "systemctl", "stop", "fleetcast"], env=environment, check=True
        )


def test_codes_that_a_page_explains_are_registered() -> None:
    registry = (ROOT / "docs/reference/codes.md").read_text()
    page = (ROOT / "docs/operating.md").read_text()
    table = page.partition("## Troubleshooting by code")[2]
    codes = re.findall(r"^\| `([a-z_]+)` \|", table, re.M)
    assert len(codes) > 20
    assert [code for code in codes if f"| `{code}` |" not in registry] == []


def test_metrics_that_a_page_watches_are_there() -> None:
    registry = (ROOT / "docs/reference/metrics.md").read_text()
    named = set(re.findall(r"fleetcast_[a-z_]+", (ROOT / "docs/operating.md").read_text()))
    assert named
    assert [name for name in sorted(named) if f"`{name}`" not in registry] == []
