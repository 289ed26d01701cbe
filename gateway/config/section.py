"""What the sections of the configuration have in common: strictness, types, and the way to ``Limits``.

Packages below the configuration have ``Limits`` dataclasses of their own. ``Section.limits`` fills one from
the keys of the same names, so that a package never sees the configuration and a key is never renamed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LimitsT = TypeVar("LimitsT")

DAY_S: Final = 24 * 3600
KIB: Final = 1024
MIB: Final = 1024 * 1024


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    if parts.username is not None or parts.fragment:
        raise ValueError("must not carry a user name or a fragment; secrets come as files")
    return value


def with_password(url: str, password: str) -> str:
    """Return ``url`` with the password of its user; it is escaped."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


HttpUrl = Annotated[str, AfterValidator(_http_url)]
FilePath = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """One table of the file: strict types, no unknown keys, never changed after the start."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def limits(self, limits_class: type[LimitsT], **others: Any) -> LimitsT:
        """Return ``limits_class`` filled from the keys of this section that have its fields' names.

        ``others`` gives fields that are not keys of this section, by name. Fields in neither keep the
        dataclass's default.
        """
        assert dataclasses.is_dataclass(limits_class), "Limits are dataclasses"
        names = {field.name for field in dataclasses.fields(limits_class)}
        values = {name: getattr(self, name) for name in type(self).model_fields if name in names}
        return limits_class(**(values | others))
