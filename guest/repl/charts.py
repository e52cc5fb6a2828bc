# SPDX-License-Identifier: Apache-2.0
"""The data behind a figure of matplotlib: lines, scatter plots, bars, pies and boxes, as plain JSON.

    {"type": "line", "title": ..., "x_label": ..., "y_label": ..., "x_scale": ..., "y_scale": ...,
     "elements": [{"label": ..., "points": [[x, y], ...]}]}

One kind of marks in one set of axes is a chart; several are {"charts": [...]}. docs/results.md has
the whole format. The sizes are bounded, and what has been left out is said ("truncated"). A figure
that is not understood has no data: nothing here may raise into the user's cell, but an interrupt.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, Callable, Iterable

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

MAX_CHARTS = 32
MAX_ELEMENTS = 1000
MAX_POINTS = 10_000  # of one figure
MAX_LABEL = 300
_BOXES = "_podflare_boxes"
_modules = sys.modules


def describe(figure: Any) -> dict[str, Any] | None:
    """The chart of a figure that has been drawn, {"charts": [...]} of several, or None."""
    try:
        budget = _Budget(MAX_POINTS)
        found: list[dict[str, Any]] = []
        for axes in figure.axes[:MAX_CHARTS]:
            if axes.get_visible():
                found += _charts_of(axes, budget)
        if not found:
            return None
        return found[0] if len(found) == 1 else {"charts": found[:MAX_CHARTS]}
    except Exception:
        return None


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of numpy as numbers, times in ISO 8601, others as text."""
    if value is None or isinstance(value, (bool, str)):
        return value[:MAX_LABEL] if isinstance(value, str) else value
    module = type(value).__module__
    if module == "numpy":
        kind = value.dtype.kind
        if kind == "M":
            return None if value != value else str(value)
        value = value.item()
        if kind == "m" or value is None:
            return None if value is None else str(value)
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else _finite(value)
    if hasattr(value, "isoformat"):  # datetime, and what pandas makes of it
        return None if value != value else value.isoformat()
    if hasattr(value, "__float__"):  # float, Decimal, Fraction
        return _finite(value)
    return str(value)[:MAX_LABEL]


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class _Budget:
    """How many points may still be told."""

    def __init__(self, left: int) -> None:
        self.left = left

    def sample(self, count: int, series: int = 1) -> slice:
        """Which of `count` points to take, evenly spread, when `series` have to share what is left."""
        allowed = max(1, self.left // max(1, series))
        step = max(1, math.ceil(count / allowed))
        self.left -= min(self.left, math.ceil(count / step))
        return slice(None, None, step)


def _charts_of(axes: Any, budget: _Budget) -> list[dict[str, Any]]:
    boxes, box_artists = _boxes_of(axes)
    lines = [line for line in axes.lines if _is_data(line, axes) and id(line) not in box_artists]
    scatters = [one for one in axes.collections if type(one).__name__ == "PathCollection"]
    marks = [line for line in lines if line.get_linestyle() in ("None", "", " ")]
    joined = [line for line in lines if line not in marks]
    bars = [one for one in axes.containers if type(one).__name__ == "BarContainer"]
    errors = {id(part) for one in axes.containers if type(one).__name__ == "ErrorbarContainer"
              for part in (one.lines[1] if len(one.lines) > 1 else ())}  # fmt: skip
    marks = [line for line in marks if id(line) not in errors]
    wedges = [one for one in axes.patches if type(one).__name__ == "Wedge"]
    scatters = [one for one in scatters if one.get_visible() and len(one.get_offsets())]
    count = len(joined) + len(marks) + len(scatters)
    found: list[tuple[str, list[dict[str, Any]], bool]] = []
    if wedges:
        found.append(("pie", *_take(wedges, _wedge)))
    if boxes:
        found.append(("box", *_take(boxes, lambda box: _box(box, budget))))
    if bars:
        found.append(("bar", *_bars(axes, bars, budget)))
    if joined:
        found.append(("line", *_take(joined, lambda line: _line(axes, line, budget, count))))
    if marks or scatters:
        elements, cut = _take(marks, lambda line: _line(axes, line, budget, count))
        others, more = _take(scatters, lambda one: _scatter(axes, one, budget, count))
        found.append(("scatter", elements + others, cut or more))
    charts = []
    for kind, elements, cut in found:
        chart = {
            "type": kind,
            "title": _title(axes),
            "x_label": plain(axes.get_xlabel()),
            "y_label": plain(axes.get_ylabel()),
            "x_scale": _scale(axes.xaxis),
            "y_scale": _scale(axes.yaxis),
            "elements": elements,
        }
        if kind == "pie":
            del chart["x_scale"], chart["y_scale"]
        if cut or any("points_total" in element for element in elements):
            chart["truncated"] = True
        charts.append(chart)
    return charts


def _take(artists: list[Any], make: Callable[[Any], dict[str, Any]]) -> tuple[list[Any], bool]:
    return [make(one) for one in artists[:MAX_ELEMENTS]], len(artists) > MAX_ELEMENTS


def _title(axes: Any) -> Any:
    title = axes.get_title() or axes.get_title("left") or axes.get_title("right")
    above = getattr(axes.figure, "_suptitle", None)
    if not title and above is not None and len(axes.figure.axes) == 1:
        title = above.get_text()
    return plain(title)


def _scale(axis: Any) -> str:
    """linear, log and so on; or what the numbers of the axis stand for: datetime, categorical."""
    converter = type(getattr(axis, "converter", None)).__name__
    if "Date" in converter or "Time" in converter or "Period" in converter:
        return "datetime"
    if "Category" in converter:
        return "categorical"
    return plain(axis.get_scale())


def _label(artist: Any) -> Any:
    """What the user has called it; matplotlib's own names begin with an underscore."""
    label = artist.get_label()
    return None if label is None or str(label).startswith("_") else plain(str(label))


def _is_data(line: Any, axes: Any) -> bool:
    """Lines of data, not the ones of axhline() and the like, which span the axes."""
    return bool(line.get_visible()) and line.get_transform() == axes.transData


def _points(xs: Iterable[Any], ys: Iterable[Any]) -> list[list[Any]]:
    return [[plain(x), plain(y)] for x, y in zip(xs, ys)]


def _pick(values: Any, count: int, part: slice) -> Any:
    """The chosen ones of what may be an array, a list, a series of pandas or a single value."""
    values = getattr(values, "values", values) if hasattr(values, "iloc") else values
    if not hasattr(values, "__len__") or isinstance(values, str):
        return [values] * count
    return values[part]


def _with_points(element: dict[str, Any], points: list[Any], count: int) -> dict[str, Any]:
    element["points"] = points
    if len(points) < count:
        element["points_total"] = count
    return element


def _line(axes: Any, line: Any, budget: _Budget, series: int) -> dict[str, Any]:
    count = len(line.get_xdata(orig=False))
    part = budget.sample(count, series)
    xs = _pick(line.get_xdata(orig=True), count, part)
    ys = _pick(line.get_ydata(orig=True), count, part)
    xs, ys = _back(axes.xaxis, xs), _back(axes.yaxis, ys)
    return _with_points({"label": _label(line)}, _points(xs, ys), count)


def _scatter(axes: Any, collection: Any, budget: _Budget, series: int) -> dict[str, Any]:
    offsets = collection.get_offsets()
    part = budget.sample(len(offsets), series)
    chosen = offsets[part]
    xs = _back(axes.xaxis, [point[0] for point in chosen])
    ys = _back(axes.yaxis, [point[1] for point in chosen])
    return _with_points({"label": _label(collection)}, _points(xs, ys), len(offsets))


def _back(axis: Any, values: Any) -> Any:
    """What numbers on an axis stand for: times, names, or the numbers themselves."""
    scale = _scale(axis)
    if not len(values) or scale not in ("datetime", "categorical"):
        return values
    if not isinstance(plain(values[0]), (int, float)):
        return values
    if scale == "categorical":
        names = {number: name for name, number in getattr(axis.units, "_mapping", {}).items()}
        return [names.get(round(float(value)), value) for value in values]
    if (
        "matplotlib" in type(axis.converter).__module__
        or "Datetime" in type(axis.converter).__name__
    ):
        to_date = _modules["matplotlib.dates"].num2date
        return [to_date(float(value)).replace(tzinfo=None) for value in values]
    return values


def _tick_names(axis: Any) -> dict[float, str]:
    """The texts at an axis whose ticks are named by hand, by position."""
    formatter, locator = axis.get_major_formatter(), axis.get_major_locator()
    if type(formatter).__name__ not in ("FixedFormatter", "StrCategoryFormatter"):
        if type(locator).__name__ != "FixedLocator":
            return {}
    names = (label.get_text() for label in axis.get_ticklabels())
    return dict(zip((float(place) for place in axis.get_ticklocs()), names))


def _bars(axes: Any, containers: list[Any], budget: _Budget) -> tuple[list[Any], bool]:
    elements: list[dict[str, Any]] = []
    for container in containers:
        across = getattr(container, "orientation", None) == "horizontal"
        axis = axes.yaxis if across else axes.xaxis
        names = _tick_names(axis)
        group = _label(container)
        touching = _touch(container.patches, across)
        for patch in container.patches:
            if len(elements) >= MAX_ELEMENTS or budget.left <= 0:
                return elements, True
            budget.left -= 1
            start, extent = (
                (patch.get_y(), patch.get_height())
                if across
                else (patch.get_x(), patch.get_width())
            )
            value = patch.get_width() if across else patch.get_height()
            element = {"label": None, "value": plain(value), "group": group}
            if touching and not names:
                element["label"] = f"{_number(start)} to {_number(start + extent)}"
                element["from"], element["to"] = plain(start), plain(start + extent)
            else:
                element["label"] = _bar_name(axis, names, start, extent)
            elements.append(element)
    return elements, False


def _touch(patches: list[Any], across: bool) -> bool:
    """Whether the bars stand side by side without a gap, as those of a histogram."""
    if len(patches) < 2:
        return False
    edges = [(p.get_y(), p.get_height()) if across else (p.get_x(), p.get_width()) for p in patches]
    return all(
        abs(start + extent - after) <= 1e-6 * abs(extent)
        for (start, extent), (after, _) in zip(edges, edges[1:])
    )


def _bar_name(axis: Any, names: dict[float, str], start: float, extent: float) -> Any:
    """The category of a bar: the name of the nearest tick; else what its middle stands for."""
    middle = start + extent / 2
    if names:
        place = min(names, key=lambda one: abs(one - middle))
        # Bars of several groups share a tick and stand beside it.
        if abs(place - middle) < 0.5 or abs(place - middle) <= abs(extent):
            return plain(names[place])
    middle = _back(axis, [middle])[0]
    return plain(middle) if not isinstance(middle, float) else _number(middle)


def _number(value: Any) -> str:
    return f"{float(value):.6g}"


def _wedge(wedge: Any) -> dict[str, Any]:
    share = (float(wedge.theta2) - float(wedge.theta1)) / 360
    return {"label": _label(wedge), "value": plain(round(share, 9))}


def watch_boxes(original: Callable[..., Any], mark: str) -> Callable[..., Any]:
    """Axes.bxp(), which draws boxplots from their figures, made to remember these."""

    @functools.wraps(original)
    def bxp(self: Any, bxpstats: Any, *args: Any, **options: Any) -> Any:
        stats = [dict(one) for one in bxpstats]
        artists = original(self, stats, *args, **options)
        try:
            vars(self).setdefault(_BOXES, []).append((stats, artists))
        except Exception:
            pass
        return artists

    setattr(bxp, mark, True)
    return bxp


def _boxes_of(axes: Any) -> tuple[list[dict[str, Any]], set[int]]:
    """The boxes that are still in the axes, and the ids of the lines that they consist of."""
    boxes: list[dict[str, Any]] = []
    artists: set[int] = set()
    present = {id(line) for line in axes.lines}
    for stats, drawn in vars(axes).get(_BOXES, ()):
        medians = drawn["medians"]
        if not any(id(line) in present for line in medians):
            continue
        for one, median in zip(stats, medians):
            boxes.append({**one, "label": _box_name(axes, median) or one.get("label", "")})
        for part in drawn.values():
            artists.update(id(one) for one in part)
    return boxes, artists


def _box_name(axes: Any, median: Any) -> Any:
    """The name of the tick at a box."""
    xs, ys = median.get_xdata(), median.get_ydata()
    across = len(set(xs)) == 1 and len(set(ys)) > 1
    places = ys if across else xs
    middle = float(sum(places)) / len(places)
    names = _tick_names(axes.yaxis if across else axes.xaxis)
    place = min(names, key=lambda one: abs(one - middle), default=None)
    return None if place is None or abs(place - middle) > 0.25 else names[place]


def _box(stats: dict[str, Any], budget: _Budget) -> dict[str, Any]:
    outliers = stats.get("fliers", ())
    part = budget.sample(len(outliers))
    element = {
        "label": plain(str(stats.get("label", ""))),
        "min": plain(stats["whislo"]),
        "first_quartile": plain(stats["q1"]),
        "median": plain(stats["med"]),
        "third_quartile": plain(stats["q3"]),
        "max": plain(stats["whishi"]),
        "outliers": [plain(one) for one in outliers[part]],
    }
    if len(element["outliers"]) < len(outliers):
        element["points_total"] = len(outliers)
    return element
