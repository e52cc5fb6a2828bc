# SPDX-License-Identifier: Apache-2.0
"""Figures of matplotlib: which come back, when, how often, and the data behind them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repl_process import MAX_EVENT, OK, Repl, Result

CHART = "application/vnd.podflare.chart+json"


@pytest.fixture(scope="module")
def _plots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repl]:
    with Repl(cwd=tmp_path_factory.mktemp("plots")) as process:
        result = process.run("import matplotlib.pyplot as plt, numpy as np, datetime as dt\n0", 120)
        assert result.value == "0", result.errors
        assert process.warm()[0] == OK
        yield process


@pytest.fixture
def plots(_plots: Repl, tmp_path: Path) -> Repl:
    """An interpreter with pyplot imported, in an empty directory."""
    code = f"import os; os.chdir({str(tmp_path)!r}); plt.rcdefaults(); plt.close('all')"
    assert _plots.run(code).exit_code == 0
    return _plots


def shown(result: Result) -> list[dict[str, Any]]:
    """The data of the events with a picture, which is checked."""
    assert result.exit_code == 0, result.errors
    found = [e["data"] for e in result.events if "image/png" in e.get("data", {})]
    for data in found:
        size(data)
    return found


def size(data: dict[str, Any]) -> tuple[int, int]:
    """Width and height of a PNG."""
    png = base64.b64decode(data["image/png"], validate=True)
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[12:16] == b"IHDR"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def chart(repl: Repl, code: str) -> Any:
    """The data behind the one figure that the code makes."""
    (data,) = shown(repl.run(code))
    return data.get(CHART)


def test_figure_at_the_end_of_the_cell(plots: Repl) -> None:
    result = plots.run("print('a')\nplt.plot([1, 2])\nprint('b');")
    (data,) = shown(result)
    assert data["text/plain"] == "<Figure size 640x480 with 1 Axes>" and result.text == "a\nb\n"
    assert plots.run("plt.get_fignums()").value == "[]"
    assert shown(plots.run("1")) == []


def test_first_import_and_plot_in_one_cell(repl: Repl) -> None:
    result = repl.run("import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()\nprint(5)", 60)
    assert len(shown(result)) == 1 and result.errors == ""
    result = repl.run("from pylab import *\nplot([1, 2])\nshow()\nget_backend().lower()", 60)
    assert len(shown(result)) == 1 and result.value == "'agg'"


def test_show_comes_in_order_with_prints_and_once(plots: Repl) -> None:
    code = """
for i in range(3):
    print('before', i)
    plt.figure(figsize=(1 + i, 1)); plt.plot([i, i + 1])
    plt.show()
    print('after', i)
"""
    plots.start(code)
    result = plots.finish()
    widths = [size(data)[0] for data in shown(result)]
    assert widths == sorted(set(widths)) and len(widths) == 3
    assert result.text == "".join(f"before {i}\nafter {i}\n" for i in range(3))
    result = plots.run("plt.plot([1]); plt.show(block=False); plt.show(); plt.show()")
    assert len(shown(result)) == 1


def test_output_before_a_figure_is_there_when_it_comes(plots: Repl) -> None:
    code = "for i in range(500): print(i)\nplt.plot([1]); plt.show()\nprint('x')"
    result = plots.run(code)
    assert len(shown(result)) == 1 and result.text.endswith("499\nx\n")
    assert result.before[0] >= len(result.text) - 2


@pytest.mark.parametrize(
    "code, count",
    [
        ("fig, ax = plt.subplots(); ax.plot([1]); fig", 1),
        ("fig, ax = plt.subplots(); ax.plot([1]); display(fig)", 1),
        ("fig, ax = plt.subplots(); ax.plot([1]); display(fig); ax.plot([2]); None", 2),
        ("fig, ax = plt.subplots(); ax.plot([1]); fig.show(); print(1)", 1),
        ("fig, ax = plt.subplots(); ax.plot([1]); fig.show(); plt.show()", 1),
        ("fig, ax = plt.subplots(); ax.plot([1]); fig.savefig('a.png')", 1),
        ("fig, ax = plt.subplots(); ax.plot([1]); fig.savefig('a.png'); plt.close()", 0),
        ("plt.figure(); plt.figure()", 0),
        ("for i in range(4): plt.figure(); plt.plot([i])", 4),
        ("from matplotlib.figure import Figure\nf = Figure(); f.subplots().plot([1]); f", 1),
        ("plt.ion(); plt.plot([1]); plt.ioff();", 1),
        ("plt.imshow(np.eye(3));", 1),
        ("import matplotlib; matplotlib.use('Agg'); plt.plot([1]); plt.show()", 1),
        ("plt.switch_backend('svg'); plt.plot([1]); plt.show(); plt.switch_backend('agg')", 1),
        ("%matplotlib inline\nplt.plot([1])\nplt.show()", 1),
        ("%matplotlib notebook\nplt.plot([1]);", 1),
        ("from IPython.display import display as d\nplt.plot([1]); d(plt.gcf())", 1),
        ("import threading\nt = threading.Thread(target=lambda: (plt.plot([1]), plt.show()))\n"
         "t.start(); t.join()", 1),
        ("import os\nplt.plot([1])\nif os.fork() == 0: plt.show(); os._exit(0)\n_ = os.wait()", 1),
        ("with plt.xkcd(): plt.plot([1, 2]);", 1),
        ("plt.text(0, 0, 'x');", 1),
        ("from mpl_toolkits.mplot3d import Axes3D\n"
         "plt.figure().add_subplot(projection='3d').plot([1, 2], [1, 2], [1, 2]);", 1),
        ("plt.subplots(subplot_kw={'projection': 'polar'})[1].plot([1, 2], [1, 2]);", 1),
    ],
)  # fmt: skip
def test_how_often(plots: Repl, code: str, count: int) -> None:
    assert len(shown(plots.run(code, 60))) == count
    assert shown(plots.run("2")) == []


def test_axes_as_a_value_are_text_and_the_figure_comes(plots: Repl) -> None:
    result = plots.run("import pandas as pd\npd.Series([1, 2, 3]).plot()", 60)
    assert len(result.events) == 2 and len(shown(result)) == 1
    assert "Axes" in result.events[0]["data"]["text/plain"]


def test_errors_and_interrupts(plots: Repl) -> None:
    result = plots.run("plt.plot([1])\n1 / 0")
    assert result.exit_code == 1 and (result.error or {})["name"] == "ZeroDivisionError"
    assert ["image/png" in e.get("data", {}) for e in result.events] == [True, False]
    result = plots.run("plt.title(r'$\\frac{$'); plt.plot([1]);")
    assert result.exit_code == 1 and (result.error or {})["name"] == "ValueError"
    assert plots.run("plt.get_fignums()").value == "[]"
    result = plots.run(
        "plt.title(r'$\\frac{$'); plt.plot([1])\ntry: plt.show()\nexcept ValueError: 7"
    )
    assert result.exit_code == 0
    plots.start("plt.plot([1]); print('ready')\nwhile True: pass")
    plots.finish(until=b"ready")
    plots.interrupt()
    result = plots.finish()
    assert result.exit_code == 130 and [e["type"] for e in result.events] == ["error"]
    plots.ping()
    assert plots.run("plt.get_fignums()").value == "[]"
    plots.run("raise SystemExit(plt.plot([1]) and 3)")
    assert plots.run("plt.get_fignums()").value == "[]"


def test_large_pictures_fit(plots: Repl) -> None:
    code = "plt.figure(figsize=(30, 30), dpi=300); plt.imshow(np.random.rand(3000, 3000, 3)); None"
    result = plots.run(code, 120)
    (data,) = shown(result)
    assert 65536 < len(data["image/png"]) < MAX_EVENT - 65536 and min(size(data)) > 300
    (data,) = shown(plots.run("plt.figure(figsize=(500, 500)); plt.plot([1]);", 120))
    assert max(size(data)) < 4500
    (data,) = shown(plots.run("plt.plot([1]); plt.text(900, 900, 'far away');", 60))
    assert max(size(data)) < 2000


def test_child_programs_see_an_ordinary_matplotlib(plots: Repl, tmp_path: Path) -> None:
    script = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n"
    script += "plt.savefig('out.png')\nprint(plt.get_backend())\n"
    (tmp_path / "plot.py").write_text(script)
    result = plots.run("import sys\n!{sys.executable} plot.py", 60)
    assert (result.text.lower(), result.errors, result.exit_code) == ("agg\n", "", 0)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert result.events == []
    assert plots.run("'MPLBACKEND' in os.environ").value == "False"


def test_resolution_can_be_doubled(repl: Repl) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    (one,) = shown(repl.run(code, 60))
    (two,) = shown(repl.run("%config InlineBackend.figure_format = 'retina'\n" + code, 60))
    assert abs(size(two)[0] - 2 * size(one)[0]) < 4
    repl.run("%config InlineBackend.figure_format = 'png'")
    (three,) = shown(repl.run(code))
    assert size(three) == size(one)


def test_line(plots: Repl) -> None:
    code = """
plt.plot([1, 2, 3], np.array([1.5, np.nan, 4]), label='first')
plt.plot([1, 2], [3, np.inf], '--')
plt.axhline(2); plt.axvline(1)
plt.title('Title'); plt.xlabel('x'); plt.ylabel('y'); plt.yscale('log'); plt.legend();
"""
    assert chart(plots, code) == {
        "type": "line",
        "title": "Title",
        "x_label": "x",
        "y_label": "y",
        "x_scale": "linear",
        "y_scale": "log",
        "elements": [
            {"label": "first", "points": [[1, 1.5], [2, None], [3, 4.0]]},
            {"label": None, "points": [[1, 3], [2, None]]},
        ],
    }


@pytest.mark.parametrize(
    "days, first",
    [
        ("[dt.date(2024, 1, 1), dt.date(2024, 1, 2)]", "2024-01-01"),
        ("[dt.datetime(2024, 1, 1, 5), dt.datetime(2024, 1, 2)]", "2024-01-01T05:00:00"),
        ("np.array(['2024-01-01', '2024-01-02'], 'M8[D]')", "2024-01-01"),
        ("__import__('pandas').date_range('2024-01-01', periods=2)", "2024-01-01T00:00:00"),
    ],
)
def test_times(plots: Repl, days: str, first: str) -> None:
    found = chart(plots, f"plt.plot({days}, [1, 2]);")
    assert found["x_scale"] == "datetime"
    assert found["elements"][0]["points"][0][0].startswith(first)
    found = chart(plots, f"plt.scatter({days}, [1, 2]);")
    assert found["type"] == "scatter"
    assert found["elements"][0]["points"][0][0].startswith(first)
    found = chart(plots, f"plt.bar({days}, [1, 2]);")
    assert found["elements"][0]["label"].startswith(first) and found["elements"][1]["value"] == 2


def test_scatter(plots: Repl) -> None:
    found = chart(
        plots, "plt.scatter([1, 2], [3, 4], label='s'); plt.plot([5], [6], 'o', label='p');"
    )
    assert found["type"] == "scatter" and found["elements"] == [
        {"label": "p", "points": [[5, 6]]},
        {"label": "s", "points": [[1, 3], [2, 4]]},
    ]
    found = chart(plots, "plt.scatter(['a', 'b', 'a'], [1, 2, 3]);")
    assert found["elements"][0]["points"] == [["a", 1], ["b", 2], ["a", 3]]
    assert found["x_scale"] == "categorical"


def test_bars(plots: Repl) -> None:
    assert chart(plots, "plt.bar(['a', 'b'], [3, 4], label='g');")["elements"] == [
        {"label": "a", "value": 3, "group": "g"},
        {"label": "b", "value": 4, "group": "g"},
    ]
    assert chart(plots, "plt.barh(['a', 'b'], [3, 4]);")["elements"][1] == {
        "label": "b",
        "value": 4,
        "group": None,
    }
    code = """
x = np.arange(2)
plt.bar(x - 0.2, [1, 2], 0.4, label='men'); plt.bar(x + 0.2, [3, 4], 0.4, label='women')
plt.xticks(x, ['old', 'new']);
"""
    found = chart(plots, code)["elements"]
    assert [(e["label"], e["value"], e["group"]) for e in found] == [
        ("old", 1, "men"),
        ("new", 2, "men"),
        ("old", 3, "women"),
        ("new", 4, "women"),
    ]
    found = chart(plots, "plt.bar([10, 20], [1, 2]);")["elements"]
    assert [e["label"] for e in found] == ["10", "20"]
    found = chart(plots, "plt.hist([1, 1, 2, 5], bins=[0, 2, 4, 6]);")["elements"]
    assert [(e["from"], e["to"], e["value"]) for e in found] == [(0, 2, 2), (2, 4, 1), (4, 6, 1)]
    assert found[0]["label"] == "0 to 2"
    code = "import pandas as pd\npd.DataFrame({'u': [1, 2], 'v': [3, 4]}, index=['k', 'l']).plot.bar();"
    found = chart(plots, code)["elements"]
    assert [(e["label"], e["value"], e["group"]) for e in found] == [
        ("k", 1, "u"),
        ("l", 2, "u"),
        ("k", 3, "v"),
        ("l", 4, "v"),
    ]


def test_pie(plots: Repl) -> None:
    found = chart(plots, "plt.pie([1, 3], labels=['a', 'b'], autopct='%d'); plt.title('P');")
    assert found["type"] == "pie" and found["title"] == "P" and "x_scale" not in found
    assert [e["label"] for e in found["elements"]] == ["a", "b"]
    assert [e["value"] for e in found["elements"]] == pytest.approx([0.25, 0.75])


def test_boxes(plots: Repl) -> None:
    code = "plt.boxplot([[1, 2, 3, 4, 100], [5, 6, 7]], vert={});"
    for vert in (True, False):
        found = chart(plots, code.format(vert))
        assert found["type"] == "box" and found["elements"] == [
            {
                "label": "1",
                "min": 1,
                "first_quartile": 2.0,
                "median": 3.0,
                "third_quartile": 4.0,
                "max": 4,
                "outliers": [100],
            },
            {
                "label": "2",
                "min": 5,
                "first_quartile": 5.5,
                "median": 6.0,
                "third_quartile": 6.5,
                "max": 7,
                "outliers": [],
            },
        ]
    found = chart(plots, "plt.boxplot([[1, 2], [3, 4]]); plt.xticks([1, 2], ['a', 'b']);")
    assert [e["label"] for e in found["elements"]] == ["a", "b"]
    code = "import pandas as pd\npd.DataFrame({'u': [1, 2], 'v': [3, 4]}).boxplot();"
    assert [e["label"] for e in chart(plots, code)["elements"]] == ["u", "v"]
    assert chart(plots, "plt.boxplot([1, 2]); plt.cla(); plt.plot([1, 2]);")["type"] == "line"


def test_several_axes_and_kinds(plots: Repl) -> None:
    code = """
fig, (a, b) = plt.subplots(1, 2)
a.plot([1, 2]); a.set_title('A')
b.bar(['x'], [1]); b.plot([0], [2], '-'); b.set_title('B')
None
"""
    found = chart(plots, code)["charts"]
    assert [(c["type"], c["title"]) for c in found] == [("line", "A"), ("bar", "B"), ("line", "B")]
    assert chart(plots, "plt.imshow(np.eye(2));") is None
    assert chart(plots, "plt.fill_between([1, 2], [1, 2]);") is None


def test_chart_data_is_bounded(plots: Repl) -> None:
    found = chart(plots, "plt.plot(np.arange(1_000_000));")
    (element,) = found["elements"]
    assert found["truncated"] and element["points_total"] == 1_000_000
    assert 5000 <= len(element["points"]) <= 10_000 and element["points"][1][0] >= 100
    found = chart(plots, "for i in range(30): plt.plot(np.arange(20_000))")
    assert sum(len(e["points"]) for e in found["elements"]) <= 10_100
    assert len(found["elements"]) == 30
    found = chart(plots, "plt.scatter(np.random.rand(50_000), np.random.rand(50_000));")
    assert len(found["elements"][0]["points"]) <= 10_000 and found["truncated"]
    found = chart(plots, "plt.bar(range(2000), range(2000));")
    assert len(found["elements"]) == 1000 and found["truncated"]
    found = chart(plots, "plt.plot([1], [2], label='l' * 5000);")
    assert len(found["elements"][0]["label"]) == 300


def test_chart_data_never_raises(plots: Repl) -> None:
    code = """
class Bad(float):
    def __float__(self): raise OSError
    def __str__(self): raise OSError
fig, ax = plt.subplots()
line, = ax.plot([1, 2], [3, 4])
line.get_xdata = None
fig
"""
    (data,) = shown(plots.run(code))
    assert CHART not in data

    result = plots.run("import matplotlib.axes as ma\nkept = ma.Axes.get_xlabel\n"
                       "plt.plot([1]); ma.Axes.get_xlabel = 5;")  # fmt: skip
    assert len(shown(result)) == 1 and CHART not in shown(result)[0]
    plots.run("ma.Axes.get_xlabel = kept")
    found = chart(plots, "plt.plot([1, 2], [np.float32(1), 10**400 // 10**398]);")
    json.dumps(found, allow_nan=False)


def test_without_matplotlib(repl: Repl) -> None:
    repl.run("import sys\nsys.modules['matplotlib'] = None")
    assert repl.run("import matplotlib.pyplot").exit_code == 1
    assert repl.run("import json.tool, email.mime.text\n3").value == "3"


def test_pyplot_that_the_user_has_replaced(repl: Repl) -> None:
    code = "import sys\nfrom unittest.mock import MagicMock\nkept = dict(sys.modules)\n"
    code += "for n in ('', '.pyplot', '._pylab_helpers', '.figure'): "
    code += "sys.modules['matplotlib' + n] = MagicMock()\nimport matplotlib.pyplot as plt\nplt.show()\n5"
    assert repl.run(code).value == "5"
    assert repl.run("display(MagicMock(), 6)").value == "6"
    result = repl.run(
        "sys.modules.clear(); sys.modules.update(kept)\nimport matplotlib.pyplot as p", 60
    )
    assert result.exit_code == 0, result.errors
    assert len(shown(repl.run("p.show = lambda: 7\np.plot([1]); p.show()"))) == 1
    assert repl.run("p.show()").value == "7"


def test_finder_gone_or_pyplot_reloaded(repl: Repl) -> None:
    repl.run(
        "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'podflare' not in str(f)]"
    )
    result = repl.run("import matplotlib.pyplot as plt\nplt.plot([1]);", 60)
    assert len(shown(result)) == 1
    result = repl.run(
        "import importlib\nimportlib.reload(plt)\nplt.plot([1]); plt.show(); plt.show()"
    )
    assert len(shown(result)) == 1


def test_figures_leak_little(plots: Repl) -> None:
    code = "fig, ax = plt.subplots(figsize=(1, 1)); ax.plot([1]); ax.boxplot([1, 2]);"
    for _ in range(30):
        plots.run(code)
    count = "import gc; gc.collect(); len(gc.get_objects())"
    before = int(plots.run(count).value or 0)
    for _ in range(30):
        plots.run(code)
    assert int(plots.run(count).value or 0) - before < 3000
