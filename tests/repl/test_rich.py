# SPDX-License-Identifier: Apache-2.0
"""Rich results: the protocol of _repr_*_ methods, display(), sizes, and what fails on the way."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from repl_process import MAX_EVENT, Died, Repl, Result


def bundles(result: Result) -> list[dict[str, Any]]:
    """The data of the result events."""
    return [e["data"] for e in result.events if e["type"] == "result"]


def notices(result: Result) -> list[str]:
    """The texts of the notices."""
    return [e["text"] for e in result.events if e["type"] == "notice"]


@pytest.mark.parametrize(
    "method, content, mime, shown",
    [
        ("_repr_html_", "'<b>x</b>'", "text/html", "<b>x</b>"),
        ("_repr_markdown_", "'# x'", "text/markdown", "# x"),
        ("_repr_svg_", "'<svg/>'", "image/svg+xml", "<svg/>"),
        ("_repr_png_", "b'\\x89PNG'", "image/png", base64.b64encode(b"\x89PNG").decode()),
        ("_repr_jpeg_", "b'\\xff\\xd8'", "image/jpeg", base64.b64encode(b"\xff\xd8").decode()),
        ("_repr_png_", "('iVBO', {'width': 5})", "image/png", "iVBO"),
        ("_repr_latex_", "'$x^2$'", "text/latex", "$x^2$"),
        ("_repr_json_", "{'a': [1, None]}", "application/json", {"a": [1, None]}),
        ("_repr_pdf_", "b'%PDF'", "application/pdf", base64.b64encode(b"%PDF").decode()),
        ("_repr_javascript_", "'1'", "application/javascript", "1"),
        ("_repr_mimebundle_", "{'text/x': 'x'}", "text/x", "x"),
        ("_repr_mimebundle_", "({'text/x': 'x'}, {'text/x': {}})", "text/x", "x"),
    ],
)
def test_protocol(repl: Repl, method: str, content: str, mime: str, shown: object) -> None:
    code = f"class C:\n    def {method}(self, **k): return {content}\n"
    code += "    def __repr__(self): return 'text'\n"
    result = repl.run(code + "C()")
    assert bundles(result) == [{"text/plain": "text", mime: shown}] and result.exit_code == 0
    assert bundles(repl.run("display(C(), 1)")) == [
        {"text/plain": "text", mime: shown},
        {"text/plain": "1"},
    ]
    assert bundles(repl.run("C")) == [{"text/plain": "<class '__main__.C'>"}]


def test_protocol_by_inheritance_and_without(repl: Repl) -> None:
    code = """
class Base:
    def __repr__(self): return 'b'
    def _repr_html_(self): return 'html'
    def _repr_latex_(self): return None
class Derived(Base):
    def _repr_markdown_(self): return 'md'
class Without(Base):
    _repr_html_ = None
class Everything:
    def __repr__(self): return 'e'
    def __getattr__(self, name): return lambda *a, **k: 'magic'
class Own:
    def __repr__(self): raise SystemError('not asked for')
    def _ipython_display_(self): print('own'); display(7)
display(Derived(), Without(), Everything(), Own())
"""
    result = repl.run(code)
    assert bundles(result) == [
        {"text/plain": "b", "text/html": "html", "text/markdown": "md"},
        {"text/plain": "b"},
        {"text/plain": "e"},
        {"text/plain": "7"},
    ]
    assert result.text == "own\n" and not notices(result)


def test_a_form_that_fails_is_named_and_the_others_are_shown(repl: Repl) -> None:
    code = """
class C:
    def __repr__(self): return 'c'
    def _repr_html_(self): raise ValueError('no html')
    def _repr_latex_(self): return '$c$'
    def _repr_svg_(self): raise NotImplementedError
    def _repr_json_(self): return {1j: object()}
    def _repr_mimebundle_(self): pass
C()
"""
    result = repl.run(code)
    assert bundles(result) == [{"text/plain": "c", "text/latex": "$c$"}] and result.exit_code == 0
    first, second, third = notices(result)
    assert first.startswith("_repr_mimebundle_ of C failed: TypeError")
    assert second == "text/html of C failed: ValueError: no html"
    assert third.startswith("application/json cannot be shown: TypeError")
    result = repl.run("C.__repr__ = lambda s: 1 / 0\nC()")
    assert result.exit_code == 1 and (result.error or {})["name"] == "ZeroDivisionError"
    result = repl.run("C._repr_html_ = lambda s: exit(4)\nC.__repr__ = object.__repr__\nC()")
    assert result.exit_code == 4


@pytest.mark.parametrize("size", [10, 65_000, 65_536, 70_000, 1_000_000, 7_900_000])
def test_results_of_any_size_arrive_whole(repl: Repl, size: int) -> None:
    result = repl.run(f"print('before')\ndisplay({{'text/html': 'h' * {size}}}, raw=True)\n5")
    assert len(bundles(result)[0]["text/html"]) == size and bundles(result)[1:] == [
        {"text/plain": "5"}
    ]
    assert result.text == "before\n" and not notices(result)


def test_too_large_forms_are_left_out_and_said(repl: Repl) -> None:
    code = "class C:\n    def _repr_html_(self): return 'h' * 9_000_000\n"
    code += (
        "    def _repr_png_(self): return b'p' * 7_000_000\n    def __repr__(self): return 'C'\n"
    )
    result = repl.run(code + "C()")
    assert bundles(result) == [{"text/plain": "C"}]
    assert ["text/html" in notices(result)[0], "image/png" in notices(result)[1]] == [True, True]
    result = repl.run("display({'text/html': 'h' * 9_000_000}, raw=True)")
    assert bundles(result) == [{"text/plain": "<not shown>"}] and len(notices(result)) == 1
    result = repl.run("class D(C):\n    def _repr_html_(self): return 'h' * 5_000_000\nD()")
    assert set(bundles(result)[0]) == {"text/plain", "text/html"} and len(notices(result)) == 1
    assert repl.run("1").value == "1"


def test_text_is_at_most_a_mebibyte(repl: Repl) -> None:
    for code in ("'x' * 50_000_000", "list(range(5_000_000))", "b'1' * 20_000_000"):
        result = repl.run(code)
        data = bundles(result)[0]["text/plain"]
        assert 1_000_000 < len(json.dumps(data)) < 1_100_000 < MAX_EVENT
        assert data.splitlines()[-1].startswith("[cut: ")
    assert len(repl.run("'y' * 1_000_000").value or "") == 1_000_002


def test_interrupts_leave_no_half_event(repl: Repl) -> None:
    code = (
        "print('ready', flush=True)\nwhile True: display({'text/html': 'h' * 3_000_000}, raw=True)"
    )
    for _ in range(10):
        repl.start(code)
        repl.finish(until=b"ready")
        repl.interrupt()
        result = repl.finish()
        assert result.exit_code == 130
        repl.ping()
        assert repl.run("6").value == "6"


def test_displays_of_finalizers_do_not_come_between_the_parts(repl: Repl) -> None:
    code = """
import gc
class D:
    def __del__(self): display('finalizer')
gc.set_threshold(1)
for i in range(20):
    for j in range(20):
        d = D(); d.self = d; del d
    display({'text/html': 'h' * 1_000_000}, raw=True)
gc.set_threshold(700)
"""
    shown = bundles(repl.run(code + "gc.collect(); None"))
    assert sum("text/html" in data for data in shown) == 20
    assert sum("finalizer" in data.get("text/plain", "") for data in shown) == 400


def test_no_memory_for_an_event_is_no_half_event(repl: Repl) -> None:
    code = "import _podflare_repl.frames as f\nkept = f.Channel.send\ncount = 0\n"
    code += (
        "def send(*a):\n    global count\n    count += 1\n    if count == 3: raise MemoryError\n"
    )
    code += "    kept(*a)\nf.Channel.send = send\n"
    with pytest.raises(Died) as died:
        repl.run(code + "display({'text/html': 'h' * 1_000_000}, raw=True)")
    assert died.value.status == 70


def test_display_options(repl: Repl) -> None:
    code = "class C:\n    def __repr__(self): return 'c'\n    def _repr_html_(self): return 'h'\n"
    code += "    def _repr_latex_(self): return 'l'\n"
    repl.run(code)
    shown = bundles(repl.run("display(C(), include=['text/html'], metadata={}, clear=False)"))
    assert shown == [{"text/plain": "c", "text/html": "h"}]
    shown = bundles(repl.run("display(C(), exclude=['text/html'])"))
    assert shown == [{"text/plain": "c", "text/latex": "l"}]
    assert repl.run("display()").events == []
    assert repl.run("display(5, raw=True)").exit_code == 1
    assert repl.run("display(5, update=True)").exit_code == 1
    assert repl.run("display(None)").value == "None"


def test_updates_show_first_and_last_state(repl: Repl) -> None:
    code = "h = display('start', display_id=True)\nfor i in range(1000): h.update(i)\nprint('end')"
    result = repl.run(code)
    texts = [data["text/plain"] for data in bundles(result)]
    assert texts[0] == "'start'" and texts[-1] == "999" and len(texts) < 100
    assert result.text == "end\n"
    assert bundles(repl.run("display(0, display_id='z')")) == [{"text/plain": "0"}]
    assert bundles(repl.run("h.update('next cell');")) == [{"text/plain": "'next cell'"}]
    assert bundles(repl.run("display(1, display_id='a'); display(2, display_id='a');")) == [
        {"text/plain": "1"},
        {"text/plain": "2"},
    ]


def test_display_by_other_threads_and_processes(repl: Repl) -> None:
    code = "import threading, os\nt = threading.Thread(target=display, args=(7,))\n"
    result = repl.run(code + "t.start(); t.join()\ndisplay(8)\nprint('end')")
    assert [data["text/plain"] for data in bundles(result)] == ["7", "8"]
    result = repl.run("if os.fork() == 0: display(9)\nelse: _ = os.wait()")
    assert result.events == [] and result.text == "9\n"
    repl.run("import time\ndef late():\n    time.sleep(0.3); display(6)")
    repl.run("threading.Thread(target=late).start()")
    assert repl.drain(20, until=b"6\n").text == "6\n"
    assert repl.run("1").value == "1"


def test_notices_are_bounded(repl: Repl) -> None:
    code = (
        "class C:\n    def _repr_html_(self): raise ValueError\nfor i in range(500): display(C())"
    )
    result = repl.run(code)
    assert len(notices(result)) == 20 and len(bundles(result)) == 500
    assert len(notices(repl.run("display(C())"))) == 1


def test_objects_of_ipython(ipython: Repl) -> None:
    code = """
from IPython.display import (HTML, JSON, SVG, Image, Latex, Markdown, clear_output,
                             display as shown, update_display)
import base64
gif = base64.b64decode('R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==')
shown(HTML('<i>h</i>'), Markdown('*m*'), Latex('$l$'), JSON({'j': 1}), SVG('<svg/>'))
Image(gif, format='gif')
"""
    found = bundles(ipython.run(code))
    for data in found:
        data.pop("text/plain")
    assert found == [
        {"text/html": "<i>h</i>"},
        {"text/markdown": "*m*"},
        {"text/latex": "$l$"},
        {"application/json": {"j": 1}},
        {"image/svg+xml": "<svg/>"},
        {"image/gif": "R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="},
    ]
    code = "shown(1, display_id='n')\nfor i in range(50): update_display(i, display_id='n')"
    texts = [data["text/plain"] for data in bundles(ipython.run(code))]
    assert texts[0] == "1" and texts[-1] == "49" and len(texts) < 40
    assert bundles(ipython.run("display(3); clear_output(wait=True); display(4)")) == [
        {"text/plain": "3"},
        {"text/plain": "4"},
    ]
    assert ipython.run("display.__self__.__class__.__module__").value == "'_podflare_repl.runner'"


def test_registered_formatters(repl: Repl) -> None:
    code = """
class C: pass
f = get_ipython().display_formatter.formatters
_ = f['text/latex'].for_type(C, lambda c: '$C$'), f['text/plain'].for_type(C, lambda c, p, y: p.text('C!'))
C()
"""
    assert bundles(repl.run(code)) == [{"text/plain": "C!", "text/latex": "$C$"}]
    assert repl.run("[1, 2]").value == "[1, 2]"


def test_precision(repl: Repl) -> None:
    assert repl.run("%precision 3\n3.14159").value == "3.142"
    assert repl.run("[2.71828, 1]").value == "[2.718, 1]"
    assert repl.run("%precision %r\n_ = 0; 3.14159").value == "3.14159"


def test_tables_of_pandas(repl: Repl) -> None:
    code = "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', '<y>']})"
    (data,) = bundles(repl.run(code))
    assert data["text/plain"].splitlines()[0].split() == ["a", "b"]
    assert "<table" in data["text/html"] and "&lt;y&gt;" in data["text/html"]
    (data,) = bundles(repl.run("pd.Series([1, 2])"))
    assert set(data) == {"text/plain"}
    (data,) = bundles(repl.run("pd.DataFrame({'n': range(10**6)})"))
    assert "1000000 rows" in data["text/plain"] and len(data["text/html"]) < 65536


def test_nothing_is_imported_by_the_first_cells_after_warm(repl: Repl) -> None:
    repl.warm()
    before = repl.run("import sys; seen = set(sys.modules); len(seen) > 50")
    assert before.value == "True"
    for code in (
        "1 + 1",
        "print(1)",
        "1 / 0",
        "await __import__('asyncio').sleep(0)",
        "%cd -q .",
        "!true",
        "class H:\n    def _repr_html_(self): return 'h'\nH()",
        "display(1)",
        "x = !echo 1",
    ):
        repl.run(code)
        new = repl.run("sorted(set(sys.modules) - seen)").value
        assert new == "[]", f"{code}: {new}"
