"""docs/reference/limits.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from device_sdk.wire import limits, names

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "limits.md"


def test_the_page_has_each_limit_with_its_value() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", PAGE.read_text(), re.M))
    code = {**vars(limits), **vars(names)}
    assert {name: int(value) for name, value in rows.items()} == {
        name: value for name, value in code.items() if name.endswith("_MAX") and isinstance(value, int)
    }


def test_the_bounds_leave_room_for_each_other() -> None:
    assert limits.ALERT_SIZE_MAX < limits.SIGNED_SIZE_MAX < limits.ENVELOPE_SIZE_MAX
    # an update is a directive and an envelope in one frame
    assert limits.SIGNED_SIZE_MAX + limits.ENVELOPE_SIZE_MAX < limits.FRAME_SIZE_MAX
    assert limits.FRAME_SIZE_MAX < limits.BATCH_SIZE_MAX
    assert names.DEVICE_ID_LEN_MAX + len("~") == names.NAME_LEN_MAX
