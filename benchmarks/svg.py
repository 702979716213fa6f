"""Plain SVG line charts on logarithmic axes. Text is text, colours suit light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["lines"]

COLOURS = ("#2a7de1", "#d9730d", "#0f9d58", "#a142c4", "#c5221f", "#7a7a7a", "#00909e", "#b8860b", "#5c6bc0", "#8d6e63")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 66, 190, 34, 44


def lines(title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A drawing of every line; points that are not above 0 are left out."""
    kept = {name: [point for point in points if min(point) > 0] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    every = [point for points in kept.values() for point in points]
    xs, ys = _Axis([p[0] for p in every], LEFT, WIDTH - RIGHT), _Axis([p[1] for p in every], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="#808080">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="16" font-size="13">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]
    for value in xs.ticks():
        at = xs.place(value)
        parts.append(_rule(at, TOP, at, HEIGHT - BOTTOM))
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_short(value)}</text>')
    for value in ys.ticks():
        at = ys.place(value)
        parts.append(_rule(LEFT, at, WIDTH - RIGHT, at))
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for index, (name, points) in enumerate(kept.items()):
        colour = COLOURS[index % len(COLOURS)]
        placed = [(xs.place(a), ys.place(b)) for a, b in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in placed]
        at = TOP + 12 + index * 17
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{at - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 27}" y="{at + 1}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if high / low < 4:  # else a flat line would be drawn as a mountain
            low, high = low / 2, high * 2
        self.low, self.high = math.log10(low) - 0.04, math.log10(high) + 0.04
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if self.low <= math.log10(value) <= self.high]
            if len(found) >= 3:
                break
        return found


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#808080" stroke-opacity="0.25"/>'


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
