"""A plot of lines over time, as SVG that any browser shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 110, 40, 45
_COLOURS = ("#1f6fb2", "#c8501e", "#3a7d44", "#7a4fa3")
_TICKS = 5


@dataclass(frozen=True)
class Line:
    """``points`` are (seconds, value)."""

    name: str
    points: Sequence[tuple[float, float]]


def write_plot(path: Path, title: str, lines: Sequence[Line], *, y_max: float) -> None:
    """Draw ``lines`` over one axis of seconds."""
    x_max = max(x for line in lines for x, _ in line.points) or 1.0

    def at(x: float, y: float) -> str:
        across = _LEFT + x / x_max * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - y / y_max * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        left, right = at(0, y_max * share), at(x_max, y_max * share)
        parts += [
            f'<polyline points="{left} {right}" stroke="#ddd" fill="none"/>',
            _text(left, f"{y_max * share:,.0f}", dx=-8, dy=4, anchor="end"),
            _text(at(x_max * share, 0), f"{x_max * share:.1f} s", dy=20, anchor="middle"),
        ]
    for line, colour in zip(lines, _COLOURS, strict=False):
        points = " ".join(at(x, y) for x, y in line.points)
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>')
    for number, (line, colour) in enumerate(zip(lines, _COLOURS, strict=False)):
        label = f"{_WIDTH - _RIGHT + 12},{_TOP + 10 + 18 * number}"
        parts.append(_text(label, line.name, anchor="start", colour=colour))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _text(
    at: str, text: str, *, dx: float = 0, dy: float = 0, anchor: str = "middle", colour: str = "black"
) -> str:
    x, y = map(float, at.split(","))
    place = f'x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{escape(text)}</text>'
