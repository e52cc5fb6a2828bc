# SPDX-License-Identifier: Apache-2.0
"""What results are made of, how they are saved, and how they show themselves."""

from __future__ import annotations

import base64
import json
import time

import pytest

import podflare
from fake_daemon import FakeDaemon
from podflare import ExecError, ExecResult, Result, Sandbox, _exec
from podflare._html import clean

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(50))
PLOT = {"image/png": base64.b64encode(PNG).decode() + "\n", "text/plain": "<Figure 640x480>"}
TABLE = {"text/plain": "   a\n0  1", "text/html": '<table class="dataframe"><td>1</td></table>'}
EXIT = {"type": "exit", "data": 0}


def answer(daemon: FakeDaemon, *bundles: object) -> None:
    daemon.on_exec(lambda r: r.events(*({"type": "result", "data": b} for b in bundles), EXIT))


def test_everything_that_an_exit_event_says(daemon: FakeDaemon):
    said = {
        "exit_code": 137,
        "termination_reason": "oom",
        "state": "lost",
        "duration_ms": 1234,
        "truncated": True,
        "bytes_dropped": 99,
        "signal": 9,
        "log": {"stdout": "/tmp/.podflare/7.stdout"},
        "log_truncated": True,
    }
    daemon.on_exec(
        lambda r: r.events(
            {"type": "notice", "data": "memory"}, {"type": "exit", "data": 137, **said}
        )
    )
    r = Sandbox().run_code("")
    assert {name: getattr(r, name) for name in said} == said
    assert r.notices[0] == "memory" and "99 bytes are missing" in r.notices[1] and not r.ok
    assert "stops at 1 GiB" in r.notices[2]
    text = str(r)
    for word in ("[memory]", "exit code 137", "oom after 1.234 s", "variables lost", "99 bytes"):
        assert word in text, text
    assert "the first of it in /tmp/.podflare/7.stdout" in text and "all of it in /" not in text


def test_ended_at_its_output_limit(daemon: FakeDaemon):
    """The beginning is there, the log is whole, and nothing says otherwise."""
    said = {"termination_reason": "output_limit", "truncated": True, "bytes_dropped": 99}
    log = {"stdout": "/tmp/.podflare/7.stdout"}
    daemon.on_exec(lambda r: r.events({"type": "exit", "data": 153, **said, "log": log}))
    r = Sandbox().run_code("")
    (notice,) = r.notices
    assert "99 bytes longer" in notice and "between" not in notice
    assert "all of it in /tmp/.podflare/7.stdout" in str(r)


def test_forms_of_a_result(daemon: FakeDaemon):
    chart = {"type": "line", "series": [{"x": [1], "y": [2]}]}
    everything = {
        "text/plain": "t",
        "text/html": ["<b>", "h</b>"],  # as notebooks hold it
        "text/markdown": "m",
        "text/latex": "$l$",
        "image/svg+xml": "<svg/>",
        "image/png": base64.b64encode(PNG).decode(),
        "image/jpeg": base64.b64encode(b"jpeg").decode(),
        "application/pdf": base64.b64encode(b"pdf").decode(),
        "application/json": {"k": [1, None]},
        "application/vnd.podflare.chart+json": chart,
    }
    answer(daemon, everything, {"application/x": 1})
    full, other = Sandbox().run_code("").results
    assert (full.text, full.html, full.markdown, full.latex) == ("t", "<b>h</b>", "m", "$l$")
    assert (full.svg, full.png, full.jpeg, full.pdf) == ("<svg/>", PNG, b"jpeg", b"pdf")
    assert full.json == {"k": [1, None]} and full.chart == chart and full.data == everything
    names = ("text", "html", "markdown", "latex", "svg", "png", "jpeg", "json", "chart")
    assert [getattr(other, name) for name in names] == [None] * len(names)


def test_what_sandboxed_code_may_send_instead(daemon: FakeDaemon):
    answer(daemon, {"text/plain": 5, "image/png": "%%%", "image/jpeg": {}, "text/html": None})
    r = Sandbox().run_code("")
    (one,) = r.results
    assert (one.text, one.html, one.jpeg, r.text, r.png) == (
        None,
        None,
        None,
        None,
        None,
    ) or one.png
    for show in (repr, str, ExecResult._repr_html_):
        show(r)
    one._repr_mimebundle_()


def test_text_and_png_of_a_call(daemon: FakeDaemon):
    answer(daemon, TABLE, PLOT)
    r = Sandbox().run_code("")
    assert r.text == TABLE["text/plain"]  # not the placeholder of the picture
    assert r.png == PNG
    answer(daemon, PLOT)
    r = Sandbox().run_code("")
    assert r.text == "<Figure 640x480>"
    answer(daemon)
    r = Sandbox().run_code("")
    assert (r.text, r.png, r.results) == (None, None, ())


def test_save(daemon: FakeDaemon, tmp_path):
    answer(daemon, TABLE, PLOT, {"application/json": {"a": "é"}}, {"text/plain": "last"})
    r = Sandbox().run_code("")
    r.save(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == PNG
    r.save(str(tmp_path / "TABLE.HTML"))
    assert (tmp_path / "TABLE.HTML").read_text() == TABLE["text/html"]
    r.save(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "é"}
    r.save(tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text() == "last"
    r.results[1].save(tmp_path / "again.png")
    for name, why in (("x.jpg", "there is no image/jpeg.*image/png"), ("x.gif", ".png, .jpg")):
        with pytest.raises(ValueError, match=why):
            r.save(tmp_path / name)
        assert not (tmp_path / name).exists()
    with pytest.raises(ValueError, match="there is: text/plain"):
        r.results[3].save(tmp_path / "no.png")


def test_terminal():
    r = ExecResult(
        stdout="out\n\x1b[31mred\x9b\r\n",
        stderr="err",
        exit_code=0,
        results=(Result(TABLE), Result(PLOT), Result({"text/plain": "\x1b]0;title\x07"})),
    )
    text = str(r)
    assert text.startswith("out\n\\x1b[31mred\\x9b\nerr\n   a\n0  1\n<Result image/png: 58 bytes")
    assert text.endswith("\\x1b]0;title\\x07")
    assert "\x1b" not in text + repr(r)
    assert str(ExecResult(stdout="", stderr="", exit_code=0)) == ""
    timeout = ExecResult("", "", 124, "timeout", duration_ms=300000)
    assert str(timeout) == "[exit code 124; timeout after 300 s]"
    assert len(repr(Result({"text/html": "x" * 100000}))) < 400


def test_notebook():
    plot = Result(PLOT)
    assert plot._repr_png_() == PNG and plot._repr_html_() is None
    assert plot._repr_mimebundle_() == {
        "text/plain": "<Figure 640x480>",
        "image/png": base64.b64encode(PNG).decode(),
    }
    table = Result(TABLE)._repr_mimebundle_()
    assert table["text/html"] == TABLE["text/html"].replace("<td>", "<td>")
    evil = Result(
        {
            "text/html": "<script>x</script>",
            "application/javascript": "x",
            "image/svg+xml": "<svg onload=x>",
            "text/markdown": "<script>",
            "application/vnd.jupyter.widget-view+json": {},
        }
    )
    assert set(evil._repr_mimebundle_()) == {"text/plain", "text/html"}
    shown = Result({"text/plain": "a\n\x1b]0;title\x07\x9b\tb"})._repr_mimebundle_()
    assert shown == {"text/plain": "a\n\\x1b]0;title\\x07\\x9b\tb"}  # a terminal shows it, too
    svg = Result({"image/svg+xml": "<svg onload='evil()'></svg>"})._repr_html_()
    assert svg is not None and svg.startswith('<img src="data:image/svg+xml;base64,')
    r = ExecResult("<o>\n", "e\n", 1, results=(plot, Result(TABLE)), error=ExecError("E", "", ""))
    html = r._repr_html_()
    assert "&lt;o&gt;" in html and "exit code 1" in html and "data:image/png;base64," in html
    assert "<table" in html and r._repr_png_() == PNG


@pytest.mark.parametrize(
    "dirty, want",
    [
        ("<b>bold</b> &amp; &lt;i&gt;", "<b>bold</b> &amp; &lt;i&gt;"),
        ("<script>alert(1)</script>after", "after"),
        ("<style>a{}</style><p>x", "<p>x</p>"),
        ("<SCRIPT SRC=//x></SCRIPT >y", "y"),
        (
            '<td onclick="x" colspan="2" style="background:url(//x)">1</td>',
            '<td colspan="2">1</td>',
        ),
        ('<img src=x onerror=alert(1)><a href="javascript:x">t</a>', "t"),
        ('<th scope="a&quot;>">x', '<th scope="a&quot;&gt;">x</th>'),
        ('<th scope="a&quot;><script>">x', None),
        ("<svg><script>x</script><b>in</b></svg>out", "out"),
        ("<iframe srcdoc='x'>y</iframe>z", "z"),
        ("<iframe srcdoc='<script>x</script>'></iframe>z", None),
        ("<div><p></div></p><br>", "<div><p></p></div><br>"),
        ("<scr<script>ipt>x", "&lt;scr"),
        ("<script", "&lt;script"),
        ("a < b && c > d", "a &lt; b &amp;&amp; c &gt; d"),
        ("&#" + "1" * 5000 + ";", None),
        ("<td align = 'left' colspan=3>x", '<td align="left" colspan="3">x</td>'),
        (
            "<table class='dataframe'><tr><td>1",
            '<table class="dataframe"><tr><td>1</td></tr></table>',
        ),
        ("<table class='jp-evil'>", "<table></table>"),
        ("<!-- c --><![CDATA[<b>]]><?php x?><!DOCTYPE x>t", None),
        ("<noscript><p title='</noscript><img src=x onerror=alert(1)>'>", None),
        ("<math><mtext></p><style><img src=x onerror=alert(1)></style>", None),
        ("<b" + "<b>" * 500 + "x", None),
        ("\x00<b\x00>x<\x00script>", None),
    ],
)
def test_html_of_the_sandbox_is_made_harmless(dirty, want):
    cleaned = clean(dirty)
    if want is not None:
        assert cleaned == want
    for word in ("<script", "onerror=", "<img", "<style", "javascript:", "<iframe", "<svg", "url("):
        assert word not in cleaned.lower() or "&lt;" in cleaned
    # What is cleaned once stays as it is, so that nothing in it was hidden.
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "piece",
    ["<!--", "<![CDATA[", "<b a='", '<td a="', "&#", "&#1", "1", "<svg>", "<script>", "</script>"]
    + [
        "<",
        "<?",
        "</",
        "<!",
        "<b ",
        "<b",
        "<td " + "a" * 99 + ">",
        "<td a=a",
        "<p>",
        "</p>",
        "a=",
    ],
)
@pytest.mark.sync_only
def test_no_html_takes_long(piece):
    """Whatever it is, the time is in proportion to its size (the standard library's parser takes
    minutes over some of these)."""
    for text in (piece * (1_000_000 // len(piece)), "<td " + piece * (1_000_000 // len(piece))):
        start = time.monotonic()
        Result({"text/html": text})._repr_mimebundle_()
        assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "piece",
    [
        {},
        {"": ""},
        {"x" * 3000: 1},
        {"application/json": {"x" * 3000: None}},
        {"application/json": [[], [], {}] * 40},
        {"application/json": list(range(300, 400))},
        {"text/plain": "\U0001f600" * 700},
    ],
)
def test_what_results_take_is_counted(daemon: FakeDaemon, monkeypatch, piece):
    """Names, and values that are hardly a character long, too."""
    monkeypatch.setattr(_exec, "RESULTS", 100_000)
    daemon.on_exec(lambda r: r.events(*[{"type": "result", "data": piece}] * 500, EXIT))
    seen: list[Result] = []
    r = Sandbox().run_code("", on_result=seen.append)
    here = len(r.results)
    assert 0 < here < 250 and len(seen) == 500 and r.results[0].data == piece
    assert f"{500 - here} results are not here" in r.notices[-1]


def test_what_notices_take_is_counted(daemon: FakeDaemon, monkeypatch):
    monkeypatch.setattr(_exec, "RESULTS", 100_000)
    long = [{"type": "notice", "data": "n" * 40_000, "from": "guest"}] * 5
    results = [{"type": "result", "data": {"text/plain": "x" * 90_000}}] * 2
    last = [{"type": "notice", "data": "the last"}, {"type": "result", "data": {"text/plain": "y"}}]
    daemon.on_exec(lambda r: r.events(*long, *results, *last, EXIT))
    r = Sandbox().run_code("")
    assert [n[:9] for n in r.notices[:3]] == ["n" * 9, "n" * 9, "the last"] and r.text == "y"
    assert "2 results and 3 notices are not here" in r.notices[3] and len(r.notices) == 4


def test_race_result():
    assert podflare.RaceResult(winner=0, result=None, results=()).won


def test_showing_without_end_does_not_fill_the_memory(daemon: FakeDaemon, monkeypatch):
    monkeypatch.setattr(_exec, "RESULTS", 1 << 20)
    monkeypatch.setattr(_exec, "NOTICES", 2)
    big = {"text/plain": "x" * 400_000, "application/json": [1, 2]}
    events = [{"type": "result", "data": big}] * 5 + [{"type": "notice", "data": "n", "from": "guest"}] * 5
    daemon.on_exec(lambda r: r.events(*events, {"type": "notice", "data": "a disk"}, EXIT))
    seen = []
    r = Sandbox().run_code("", on_result=seen.append)
    assert len(r.results) == 2 and len(seen) == 5
    assert r.notices[:3] == ("n", "n", "a disk") and len(r.notices) == 4
    assert "3 results and 3 notices are not here" in r.notices[3] and "1 MiB" in r.notices[3]


def test_notices_of_the_sandbox_hide_none_of_the_daemons(daemon: FakeDaemon):
    events = [{"type": "notice", "data": "n", "from": "guest"}] * 3000
    daemon.on_exec(lambda r: r.events(*events, {"type": "notice", "data": "a disk"}, EXIT))
    r = Sandbox().run_code("")
    assert r.host_notices[0] == "a disk" and r.notices.count("n") == 1000
    assert any("2000 notices are not here" in text for text in r.host_notices)
