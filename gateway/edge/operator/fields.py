"""Types that the bodies of several routes share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

# A fleet, a device's id, a channel by an operator: 1..128 of the alphabet, not beginning with ~ (names.py).
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-][A-Za-z0-9._~:-]{0,127}$", description="A name.")]
DeviceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-][A-Za-z0-9._~:-]{0,126}$", description="An id.")]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~:-]{1,128}$")]
Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Id = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", description="A UUID."),
]
