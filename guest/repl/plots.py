# SPDX-License-Identifier: Apache-2.0
"""Figures of matplotlib come back as PNG: from plt.show(), and those open at the end of a cell.

matplotlib is never imported from here; when the user's code imports pyplot, show() is replaced there
(and what boxplots are drawn from is kept, for charts.py). The backend stays Agg, or whatever does not
need a screen: nothing is in the environment, so programs that a cell starts see an ordinary
matplotlib. A figure is shown once, unless it was changed after it had been shown in the middle of a
cell; like a notebook, a cell closes its figures at its end.
"""

from __future__ import annotations

import _frozen_importlib_external
import functools
import io
import sys
from typing import Any, Callable

from . import charts, pools
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

CHART = "application/vnd.podflare.chart+json"
PNG_BYTES = 5 << 20
PIXELS = 16_000_000
LEAST_DPI = 10
_PYPLOT, _HELPERS = "matplotlib.pyplot", "matplotlib._pylab_helpers"
_Module = type(sys)
_MARK = "_podflare"
_modules = sys.modules
_settings = {"scale": 1.0}
bases_of = type.__dict__["__mro__"].__get__  # of a class, whatever its metaclass says


def set_scale(scale: float) -> None:
    """How many pixels there are for each of the figure's own."""
    _settings["scale"] = scale


def is_figure(value: Any) -> bool:
    """Whether it is a figure of matplotlib, without importing that."""
    module = _modules.get("matplotlib.figure")
    return module is not None and getattr(module, "Figure", None) in bases_of(type(value))


def forms(figure: Any) -> dict[str, Any]:
    """The MIME bundle of a figure. What matplotlib raises while it draws passes through."""
    data: dict[str, Any] = {"text/plain": repr(figure)}
    if figure.axes or figure.lines or figure.texts or figure.images or figure.patches:
        data["image/png"] = render(figure)
        chart = charts.describe(figure)
        if chart is not None:
            data[CHART] = chart
    figure.stale = False  # until it is changed
    return data


def render(figure: Any) -> bytes:
    """The figure as PNG of at most PNG_BYTES, as far as a lower resolution can help."""
    if figure.canvas is None:
        _modules["matplotlib.backend_bases"].FigureCanvasBase(figure)
    dpi = float(figure.dpi) * _settings["scale"]
    width, height = (float(size) for size in figure.get_size_inches())
    box = None if _shrink(width, height, dpi) < dpi else _tight_box(figure, width * height)
    if box is not None:
        width, height = box.width, box.height
    dpi = _shrink(width, height, dpi)
    while True:
        file = io.BytesIO()
        figure.canvas.print_figure(
            file,
            format="png",
            dpi=dpi,
            bbox_inches=box,
            facecolor=figure.get_facecolor(),
            edgecolor=figure.get_edgecolor(),
        )
        if file.tell() <= PNG_BYTES or dpi <= LEAST_DPI:
            return file.getvalue()
        dpi *= 0.9 * (PNG_BYTES / file.tell()) ** 0.5


def _shrink(width: float, height: float, dpi: float) -> float:
    """The resolution at which a picture of so many inches has PIXELS at most."""
    return min(dpi, (PIXELS / max(width * height, 1e-6)) ** 0.5)


def _tight_box(figure: Any, area: float) -> Any:
    """What of the figure is drawn on. None, for all of it, when something lies far outside."""
    try:
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    except (AttributeError, TypeError):  # an old matplotlib
        return None
    if not 0 < box.width * box.height <= 4 * area:
        return None
    return box.padded(_modules["matplotlib"].rcParams["savefig.pad_inches"])


class Plots:
    """The figures of pyplot in this process."""

    def __init__(self, runner: Any) -> None:
        """Waits for the import of pyplot."""
        self._runner = runner
        self._seen: list[Any] = []  # shown in this cell and still open
        self._attached: Any = None  # the pyplot that has our functions
        self._interrupted = False
        sys.meta_path.insert(0, _Finder({_PYPLOT: self._attach, pools.POOL: pools.attach}))

    def show(self) -> None:
        """plt.show(): shows the open figures and closes them."""
        helpers = _modules.get(_HELPERS)
        if type(helpers) is not _Module:  # what stands for it in a test of the user's
            return
        managers = sorted(helpers.Gcf.get_all_fig_managers(), key=lambda one: one.num)
        try:
            for manager in managers:
                self._publish(manager.canvas.figure)
        finally:
            for manager in managers:
                helpers.Gcf.destroy(manager)

    def note(self, value: Any) -> None:
        """Called when a figure was shown by display() or as a value."""
        if is_figure(value) and not any(value is one for one in self._seen):
            self._seen.append(value)

    def after_cell(self, failure: BaseException | None) -> None:
        """End of a cell: shows the figures that are open; when it was interrupted, only closes them."""
        pyplot = _modules.get(_PYPLOT)
        if type(pyplot) is not _Module:
            return
        if self._attached is not pyplot:  # imported past the finder
            self._attach(pyplot)
        self._interrupted = isinstance(failure, KeyboardInterrupt)
        try:
            self.show()
        finally:
            self._interrupted = False
            self._seen.clear()

    def _publish(self, figure: Any) -> None:
        """Shows a figure, but for one that was shown as it is."""
        if self._interrupted or (not figure.stale and any(figure is one for one in self._seen)):
            return
        data = forms(figure)
        if "image/png" in data:
            self._runner.results.publish(data)

    def _attach(self, pyplot: Any) -> None:
        """Replaces show() of pyplot and of a figure, and watches boxplots. Never raises."""
        self._attached = pyplot
        try:
            pyplot.show = self._wrap(pyplot.show, self.show)
            base = _modules["matplotlib.backend_bases"].FigureManagerBase
            if _MARK not in vars(base.show):
                base.show = self._wrap(base.show, self._show_one)
            axes = _modules["matplotlib.axes"].Axes
            if _MARK not in vars(axes.bxp):
                axes.bxp = charts.watch_boxes(axes.bxp, _MARK)
        except Exception:  # a matplotlib that looks different
            pass

    def _show_one(self, manager: Any) -> None:
        """Figure.show()"""
        self._publish(manager.canvas.figure)
        self.note(manager.canvas.figure)

    def _wrap(self, original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        """A function that shows if events can be sent, and does what it did before otherwise (in
        other threads, whose figures the end of the cell shows, and in forked processes)."""
        count = 1 if ours == self._show_one else 0

        @functools.wraps(original)
        def show(*args: Any, **options: Any) -> Any:
            if self._runner.is_running_here():
                return ours(*args[:count])
            return original(*args, **options)

        setattr(show, _MARK, True)
        return show


class _Finder:
    """Tells when pyplot, or another module that we change, has been imported."""

    def __init__(self, then: dict[str, Callable[[Any], None]]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Only these modules are found here; and they are found as without this finder."""
        then = self._then.get(name)
        if then is None:
            return None
        spec = _frozen_importlib_external.PathFinder.find_spec(name, path, target)
        loader = None if spec is None else spec.loader
        if loader is None:
            return spec
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            if module.__name__ == name:
                then(module)

        loader.exec_module = exec_module
        return spec
