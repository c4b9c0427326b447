"""Curves as SVG inside a page; the style sheet of the page gives them their colours."""

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420, 290  # in the units of the drawing: about one CSS pixel on a phone
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 12, 40
# Lengths of dashes and gaps in turn, in line widths.
_DASHES = {"-": (), "--": (3, 2), ":": (1, 1.5), "-.": (3, 1.5, 1, 1.5)}
COLOURS = 10  # classes c0 … c9 of the style sheet


def groups_of(panels: Sequence) -> dict[str, int]:
    """Return {group: number of its colour}, the same for all panels."""
    names = (curve.group or curve.name for panel in panels for curve in panel.curves)
    return {name: number % COLOURS for number, name in enumerate(dict.fromkeys(names))}


def legend(panels: Sequence) -> str:
    """Return the names of all curves, each beside a piece of its line."""
    colours = groups_of(panels)
    shown = {curve.name: curve for panel in panels for curve in panel.curves}
    items = "".join(
        f'<li><svg class="key {_class(curve, colours)}" viewBox="0 0 26 8" aria-hidden="true">'
        f'<path d="M1 4H25"{_dashes(curve)}/></svg>{html.escape(name)}</li>'
        for name, curve in shown.items()
    )
    return f'<ul class="legend">{items}</ul>'


def panel_svg(panel, panels: Sequence) -> str:
    """Return one panel; the colours are those of all ``panels`` together.

    Each point is a circle with its values in words (`<title>`) and in ``data-`` attributes, which
    the page's script shows for all curves at once.
    """
    colours = groups_of(panels)
    x_axis = _Axis([x for curve in panel.curves for x in curve.x], LEFT, WIDTH - RIGHT)
    heights = [
        y for curve in panel.curves for of in (curve.y, curve.low, curve.high) for y in of or ()
    ]
    y_axis = _Axis([*heights, *panel.levels.values()], HEIGHT - BOTTOM, TOP)
    names = ", ".join(curve.name for curve in panel.curves)
    label = html.escape(f"{panel.title} over {panel.x_label}: {names}")
    parts = [
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'data-x="{html.escape(panel.x_label)}">',
        *_grid(x_axis, y_axis, panel),
        *_levels(panel.levels, y_axis),
    ]
    parts += [
        _band(curve, colours, x_axis, y_axis) for curve in panel.curves if curve.low is not None
    ]
    parts += [_line(curve, colours, x_axis, y_axis) for curve in panel.curves]
    parts.append(f'<path class="at" d="M0 {TOP}V{HEIGHT - BOTTOM}" visibility="hidden"/>')
    for curve in panel.curves:
        parts += _points(curve, colours, x_axis, y_axis, panel)
    return "\n".join([*parts, "</svg>"])


class _Axis:
    """Maps values to places, with ticks at round values."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        known = [float(value) for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        if low == high:
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / 4)
        self.first, self.last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self._low, self._high = self.first * step, self.last * step
        self._start, self._end = start, end
        self.ticks = [number * step for number in range(self.first, self.last + 1)]

    def at(self, value: float) -> float:
        """Return the place of a value."""
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 2)


def _round_step(least: float) -> float:
    power = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * 0.999)


def _grid(x_axis: _Axis, y_axis: _Axis, panel) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:.6g}</text>'
        )
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:.6g}</text>'
        )
    middle = (LEFT + right) / 2
    label = html.escape(panel.x_label)
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>')
    label = html.escape(panel.y_label)
    parts.append(
        f'<text transform="translate(11 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{label}</text>"
    )
    return parts


def _levels(levels, y_axis: _Axis) -> list[str]:
    parts = []
    for name, value in levels.items():
        if not math.isfinite(value):
            continue
        y = y_axis.at(value)
        text = html.escape(f"{name} {value:.1f}")
        parts.append(f'<path class="level" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        beside = y - 4 if y > TOP + 14 else y + 12
        parts.append(f'<text class="level" x="{LEFT + 4}" y="{beside}">{text}</text>')
    return parts


def _class(curve, colours) -> str:
    return f"c{colours[curve.group or curve.name]}"


def _dashes(curve) -> str:
    lengths = _DASHES[curve.line] if isinstance(curve.line, str) else curve.line[1]
    return f' stroke-dasharray="{" ".join(f"{2 * n:g}" for n in lengths)}"' if lengths else ""


def _line(curve, colours, x_axis: _Axis, y_axis: _Axis) -> str:
    places = [
        f"{x_axis.at(x)} {y_axis.at(y)}"
        for x, y in zip(curve.x, curve.y, strict=True)
        if math.isfinite(y)
    ]
    if not places:
        return ""
    path = f'class="line {_class(curve, colours)}" d="M{"L".join(places)}"{_dashes(curve)}'
    return f"<path {path}/>"


def _band(curve, colours, x_axis: _Axis, y_axis: _Axis) -> str:
    there = [f"{x_axis.at(x)} {y_axis.at(y)}" for x, y in zip(curve.x, curve.high, strict=True)]
    back = [f"{x_axis.at(x)} {y_axis.at(y)}" for x, y in zip(curve.x, curve.low, strict=True)]
    outline = "L".join(there + back[::-1])
    return f'<path class="band {_class(curve, colours)}" d="M{outline}Z"/>'


def _points(curve, colours, x_axis: _Axis, y_axis: _Axis, panel) -> list[str]:
    parts = []
    for number, (x, y) in enumerate(zip(curve.x, curve.y, strict=True)):
        if not math.isfinite(y):
            continue
        value = f"{y:.1f}"
        if curve.low is not None:
            value += f" ({curve.low[number]:.1f}–{curve.high[number]:.1f})"
        name = html.escape(curve.name)
        parts.append(
            f'<circle class="point {_class(curve, colours)}" '
            f'cx="{x_axis.at(x)}" cy="{y_axis.at(y)}" r="3" '
            f'data-name="{name}" data-at="{x:.4g}" data-value="{value}">'
            f"<title>{name}: {html.escape(panel.title)} {value} at {x:.4g}</title></circle>"
        )
    return parts
