"""Charts as SVG text: lines, points, bars and marked moments, with nothing to load from anywhere.

Colours come from the page's style sheet (classes ``c0`` to ``c3``), so that a chart follows the reader's light or dark
setting. All functions are pure and may be called from any thread.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 42
POINTS_MAX = 4000

STYLE = """
svg{width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--text-soft)}
.grid{stroke:var(--grid);stroke-width:1}
.axis{stroke:var(--text-soft);stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.dash{stroke-dasharray:6 5;stroke-width:1.5}
.point{stroke:none;opacity:.45}
.mark{stroke:var(--c3);stroke-width:1.5;stroke-dasharray:2 3}
.c0{stroke:var(--c0);fill:var(--c0)}.c1{stroke:var(--c1);fill:var(--c1)}
.c2{stroke:var(--c2);fill:var(--c2)}.c3{stroke:var(--c3);fill:var(--c3)}
.line.c0,.line.c1,.line.c2,.line.c3{fill:none}
"""


@dataclass(frozen=True)
class Series:
    """Some values over x, drawn in one way and named in the legend. ``color``: 0 to 3."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    kind: Literal["line", "dash", "points"] = "line"


@dataclass(frozen=True)
class Mark:
    """A moment worth a vertical line."""

    x: float
    label: str


@dataclass(frozen=True)
class _Frame:
    x_min: float
    x_max: float
    y_max: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_min) / (self.x_max - self.x_min) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - min(max(value / self.y_max, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def chart(series: Sequence[Series], *, x_label: str, y_label: str, marks: Sequence[Mark] = ()) -> str:
    """Values over x as one SVG element; both axes begin at 0. Values that are not finite are left out."""
    series = [_finite(one) for one in series]
    xs = [x for one in series for x in one.xs] or [0.0, 1.0]
    ys = [y for one in series for y in one.ys] or [1.0]
    x_min, x_max = min(*xs, 0.0), max(xs)
    frame = _Frame(x_min, x_max if x_max > x_min else x_min + 1.0, _ceiling(max(ys)))
    parts = [_axes(frame, x_label, y_label)]
    parts += [_draw(one, frame) for one in series]
    parts += [_draw_mark(mark, frame) for mark in marks if frame.x_min <= mark.x <= frame.x_max]
    parts.append(_legend(series))
    return _svg(parts, f"{y_label} over {x_label}")


def histogram(values: Sequence[float], *, x_label: str, y_label: str, num_bars: int = 48, x_max: float) -> str:
    """How often values in [0, x_max) occur, as one SVG element; larger ones are counted in the last bar."""
    values = [value for value in values if math.isfinite(value)]
    step = x_max / num_bars
    counts = [0] * num_bars
    for value in values:
        counts[min(int(max(value, 0.0) / step), num_bars - 1)] += 1
    frame = _Frame(0.0, x_max, _ceiling(max(*counts, 1)))
    parts = [_axes(frame, x_label, y_label)]
    for index, count in enumerate(counts):
        left, right = frame.x(index * step), frame.x((index + 1) * step)
        top, floor = frame.y(count), frame.y(0.0)
        title = f"{index * step:.3g} to {(index + 1) * step:.3g}: {count}"
        parts.append(
            f'<rect class="c0" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{floor - top:.1f}"><title>{title}</title></rect>'
        )
    return _svg(parts, f"{y_label} by {x_label}")


def ticks(low: float, high: float, num_max: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``: at most ``num_max`` + 1, at steps of 1, 2 or 5 times a power of ten. Of a
    range that is narrower than floats can be cut, ``low`` alone."""
    if (high - low) / num_max < sys.float_info.min:
        return [low]
    step = _step((high - low) / num_max)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _step(least: float) -> float:
    """The smallest round number that is not below ``least``, which is positive."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= least * (1 - 1e-9))


def _ceiling(value: float) -> float:
    """Where a y axis ends that has to show ``value`` with a little room above."""
    room = max(value, 1e-9) * 1.02
    step = _step(room / 8)
    return math.ceil(room / step) * step


def _finite(series: Series) -> Series:
    pairs = [(x, y) for x, y in zip(series.xs, series.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    stride = -(-len(pairs) // POINTS_MAX) or 1
    pairs = pairs[::stride]
    return Series(series.name, [x for x, _ in pairs], [y for _, y in pairs], series.color, series.kind)


def _label(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    floor = HEIGHT - BOTTOM
    parts = []
    for value in ticks(0.0, frame.y_max, 5):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>')
    parts += [
        f'<text x="{frame.x(value):.1f}" y="{floor + 17}" text-anchor="middle">{_label(value)}</text>'
        for value in ticks(frame.x_min, frame.x_max, 8)
    ]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + floor) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{middle_y}" text-anchor="middle" transform="rotate(-90 14 {middle_y})">'
        f"{html.escape(y_label)}</text>"
    )
    return "".join(parts)


def _draw(series: Series, frame: _Frame) -> str:
    points = [(frame.x(x), frame.y(y)) for x, y in zip(series.xs, series.ys, strict=True)]
    if series.kind == "points":
        return "".join(f'<circle class="point c{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in points)
    dash = " dash" if series.kind == "dash" else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline class="line{dash} c{series.color}" points="{path}"><title>{html.escape(series.name)}</title>'
        "</polyline>"
    )


def _draw_mark(mark: Mark, frame: _Frame) -> str:
    x = frame.x(mark.x)
    end = x > WIDTH * 0.75
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{x + (-5 if end else 5):.1f}" y="{TOP + 10}" text-anchor="{"end" if end else "start"}">'
        f"{html.escape(mark.label)}</text>"
    )


def _legend(series: Sequence[Series]) -> str:
    parts = []
    x, y = float(LEFT), TOP - 18
    for one in series:
        dash = " dash" if one.kind == "dash" else ""
        if one.kind == "points":
            parts.append(f'<circle class="point c{one.color}" cx="{x + 10:.0f}" cy="{y}" r="3"/>')
        else:
            parts.append(f'<line class="line{dash} c{one.color}" x1="{x:.0f}" x2="{x + 20:.0f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{x + 26:.0f}" y="{y + 4}">{html.escape(one.name)}</text>')
        x += 44 + 6.6 * len(one.name)
    return "".join(parts) if len(series) > 1 else ""


def _svg(parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
