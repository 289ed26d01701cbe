"""docs/reference/cli.md, made from the program itself: ``python -m gateway.cli.reference``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

_INTRODUCTION = """\
# The command line

`pip install 'fleetcast[gateway]'` installs `fleetcast`. `fleetcast COMMAND --help` says what this page says;
`fleetcast --install-completion` completes commands and options in bash, zsh and fish.

This page is made from the program: `python -m gateway.cli.reference > docs/reference/cli.md`.

## Exit status

| status | meaning |
|---|---|
| 0 | done |
| 1 | failed: the gateway, the network, a file or the database said no |
| 2 | wrong usage or configuration; nothing was tried |
| 3 | refused: a signature, a digest or the form of what was signed |

A failure is one line on standard error, `error: what happened and what to do [code]`, with further lines for
single fields. Standard output holds answers only.

The code is the gateway's ([codes.md](codes.md)), or one of the program's own:

| code | meaning |
|---|---|
| `usage` | what was asked makes no sense; nothing was tried |
| `unreachable` | no answer; whether anything was done is not known |
| `http_NNN` | that status without a reason: something else than a gateway, or in front of it |
| `bad_answer` | an answer that no gateway of this version gives |
| `file` | a file cannot be read or written |
| `file_exists` | a key or a token would overwrite a file |
| `file_changed` | an image changed while it was uploaded |
| `schema_behind` | the database needs `fleetcast db upgrade` |
| `schema_newer` | the database is of a newer version than this program |
| `watch_timeout` | `rollout watch --timeout` ran out; the rollout goes on |

## Talking to a gateway

| option | variable | |
|---|---|---|
| `--url` | `FLEETCAST_URL` | address of the gateway; `http://127.0.0.1:8080` without it |
| `--token-file` | `FLEETCAST_TOKEN_FILE` | holds an operator token; [scopes](identity.md) |
| `--fleet` | `FLEETCAST_FLEET` | which fleet |
| `--json` | | print JSON as the [API](api.md) has it; lists become one array |

Every wait for the gateway ends after 30 seconds without a byte. Redirects are not followed and proxies not
used. Certificates are checked against the system's authorities, or those in the file that `SSL_CERT_FILE`
names. `alert send` and `rollout start` repeat a request that got no answer, or *later* (429, 502, 503, 504),
up to four times under one `Idempotency-Key`: it takes effect once.
"""


def reference() -> str:
    """Return docs/reference/cli.md."""
    from gateway.cli.program import app

    root = get_command(app)
    assert isinstance(root, TyperGroup), "the program has commands"
    lines = _INTRODUCTION.splitlines()
    for name, command in root.commands.items():
        lines += _section(f"fleetcast {name}", command)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _section(path: str, command: Any) -> Iterator[str]:
    yield ""
    if not isinstance(command, TyperGroup):
        yield from _command(path, command)
        return
    yield f"## {path}"
    yield ""
    yield from _prose(command)
    for name, inner in command.commands.items():
        yield ""
        yield from _command(f"{path} {name}", inner, level=3)


def _command(path: str, command: Any, *, level: int = 2) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    yield f"{'#' * level} {' '.join([path, *(argument.metavar for argument in arguments)])}"
    yield ""
    yield from _prose(command)
    rows = [row for option in options if (row := _row(option)) is not None]
    if rows:
        yield from ("", "| option | meaning | default |", "|---|---|---|")
        yield from rows


def _prose(command: Any) -> list[str]:
    return inspect.cleandoc(command.help or "").splitlines()


def _row(option: Any) -> str | None:
    if option.name == "help":
        return None
    names = ", ".join(f"`{name}`" for name in option.opts)
    if not option.is_flag:
        names += f" {_value(option)}"
    if option.multiple:
        names += " …"
    meaning = option.help or ""
    if option.envvar:
        meaning += f" `{option.envvar}`"
    return f"| {names} | {meaning.replace('|', chr(92) + '|')} | {_default(option)} |"


def _value(option: Any) -> str:
    if option.metavar:
        return str(option.metavar).replace("|", "\\|")
    choices = option.type_descriptor.choices
    if choices:
        return " \\| ".join(str(getattr(choice, "value", choice)) for choice in choices)
    return "N"


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.default is None:
        return ""
    return f"`{getattr(option.default, 'value', option.default)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
