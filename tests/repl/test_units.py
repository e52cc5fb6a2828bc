# SPDX-License-Identifier: Apache-2.0
"""The pure parts by themselves: source handling and event payloads."""

from __future__ import annotations

import json
import random
import textwrap

import pytest
from _podflare_repl import display, frames, source  # type: ignore[import]


@pytest.mark.parametrize(
    "text",
    ["x = 1\n", "", "\n\n", "def f():\n    pass\n", "x = '''\n    y\n   '''", "# c\nx\n"],
)
def test_unindented_text_is_not_touched(text: str) -> None:
    assert source.normalize(text) == text


@pytest.mark.parametrize(
    "text",
    ["    x = 1\n    y\n", "\n\tx\n\t\ty\n", "  # c\n  x\n \n", "\n  s = '''\n    a\n  '''\n  s\n"],
)
def test_indented_text_is_dedented_as_textwrap_does(text: str) -> None:
    assert source.normalize(text) == textwrap.dedent(text) != text


def test_indentation_pattern_is_linear() -> None:
    for hard in ("\n" * 200_000 + "x", " " * 200_000, "#\n" * 100_000 + "x", " \n" * 100_000):
        source.normalize(hard)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ls", True),
        ("  ls -la\n", True),
        ("pip install x", True),
        ("cd ..", True),
        ("rm -rf /tmp/x", True),
        ("who", True),
        ("ls = 1", False),
        ("ls == 1", False),
        ("ls += 1", False),
        ("ls(1)", False),
        ("ls.x", False),
        ("ls, x", False),
        ("ls\nx", False),
        ("lsof", False),
        ("known -1", False),
        ("print x", False),
    ],
)
def test_automagic(text: str, expected: bool) -> None:
    assert source.is_automagic(text, {"known": 1}) is expected
    assert not source.is_automagic(text, dict.fromkeys(text.replace("=", " ").split()))


def no_shell(needed: bool) -> None:
    """Stands for the shell where none may be asked for."""
    if needed:
        raise AssertionError("IPython was asked for")


def test_kept_text_is_bounded() -> None:
    import linecache

    compiler = source.Compiler()
    for i in range(source.KEPT_CELLS + 50):
        compiler.compile(f"x = {i}", {}, no_shell)
    assert "<cell 1>" not in linecache.cache and "<cell 51>" in linecache.cache
    big = "x = '" + "y" * (5 << 20) + "'"
    for _ in range(6):
        compiler.compile(big, {}, no_shell)
    kept = sum(int(e[0]) for n, e in linecache.cache.items() if n.startswith("<cell"))  # type: ignore
    assert kept <= source.KEPT_BYTES + len(big)
    compiler.compile("y = '" + "z" * (20 << 20) + "'", {}, no_shell)
    assert compiler.name in linecache.cache


def test_text_of_every_kind_fits_and_is_strict_json() -> None:
    rng = random.Random(3)
    alphabets = ["ab", "\x00\x01\n", "é€", "\U0001f600", "\udc80\ud800", '"\\', 'a\0€\ud801"\n']
    for _ in range(400):
        alphabet = rng.choice(alphabets)
        text = "".join(rng.choices(alphabet, k=rng.choice((0, 1, 50, 999, 1000, 1001, 9000))))
        for tail in (False, True):
            encoded, count = display.json_text(text, 1000, tail)
            assert len(encoded) <= 1000
            value = json.loads(encoded.decode("utf-8"))
            assert "\0" not in value and value.isprintable() in (True, False)
            value.encode("utf-8")
            whole = display.clean(text)
            if count < 0:
                assert value == whole
            else:
                assert len(value) == count > 100
                part = display.clean(text[-1000:] if tail else text[:1000])
                assert value == (part[-count:] if tail else part[:count])


def test_payloads_are_never_larger_than_an_event() -> None:
    worst = "\x01" * 3_000_000
    bundle, problems = display.bundle_payload(
        {"text/plain": worst, "text/html": worst, worst: worst, "text/latex": "$small$"}
    )
    assert len(problems) == 2 and all("too large" in problem for problem in problems)
    payloads = [
        display.result_payload(display.text_field(worst)),
        display.result_payload(display.text_field(worst, cut=True)),
        bundle,
        display.bundle_payload({"image/png": b"x" * 6_000_000})[0],
    ]
    for payload in payloads:
        assert 65536 < len(payload) <= frames.MAX_EVENT
        json.loads(payload)
    assert set(json.loads(bundle)["data"]) == {"text/plain", "text/latex"}
    for payload in (display.error_payload(worst, worst, worst), display.notice_payload(worst)):
        assert len(payload) <= 65536
        json.loads(payload)
    error = json.loads(display.error_payload("N", "v", "head" + "m" * 100_000 + "tail"))
    assert error["traceback"].startswith("head") and error["traceback"].endswith("tail")


def test_content_of_bundles_is_strict_json() -> None:
    hard = {"a": [1, None, "x\0\udc80\\u0000", 1.5], "é\ud800": {}}
    payload, problems = display.bundle_payload({"application/json": hard, "x\0y": "z\ud800"})
    assert not problems
    data = json.loads(payload.decode("utf-8"))["data"]
    text = json.dumps(data, ensure_ascii=False)
    text.encode("utf-8")
    assert data["application/json"]["a"] == [1, None, "x\\x00\\udc80\\u0000", 1.5]
    assert data["x\\x00y"] == "z\\ud800"
    for wrong in ([float("nan")], object(), {(1, 2): 3}, [set()]):
        payload, problems = display.bundle_payload({"application/json": wrong})
        assert len(problems) == 1 and "application/json cannot be shown" in problems[0]
        assert json.loads(payload)["data"] == {"text/plain": "<not shown>"}
    assert display.bundle_payload({}) == (None, [])


@pytest.mark.parametrize(
    "value",
    [
        ["ab"] * 700_000,
        "q'" * 700_000,
        b"\0" * 1_100_000,
        dict.fromkeys(range(700_000)),
        tuple([1] * 700_000),
        set(range(700_000)),
    ],
)
def test_early_cut_gives_the_same_beginning_as_the_whole_repr(value: object) -> None:
    text, cut = display.bounded_repr(value)
    assert cut and text[: display.TEXT_BYTES - 1] == repr(value)[: display.TEXT_BYTES - 1]
    assert len(text) < 8 * display.TEXT_BYTES


@pytest.mark.parametrize("count", [1999, 2000, 2001, 4000, 4001, 9000])
def test_repr_in_pieces_is_the_repr(count: int) -> None:
    items = [(i, "x") for i in range(count)]
    for value in (items, tuple(items), dict(items), set(items), frozenset(items)):
        assert display.bounded_repr(value) == (repr(value), False)


def test_plain_values_of_charts() -> None:
    from datetime import date, datetime, time
    from decimal import Decimal
    from fractions import Fraction

    import numpy as np
    import pandas as pd

    from _podflare_repl import charts

    for value, plain in (
        (True, True),
        (None, None),
        (5, 5),
        (10**400, None),
        (1.5, 1.5),
        (float("inf"), None),
        (Decimal("2.5"), 2.5),
        (Fraction(1, 2), 0.5),
        ("x" * 1000, "x" * charts.MAX_LABEL),
        (date(2024, 1, 2), "2024-01-02"),
        (datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
        (time(4, 5), "04:05:00"),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.bool_(True), True),
        (np.str_("s"), "s"),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        (np.datetime64("NaT"), None),
        (np.timedelta64(5, "s"), "0:00:05"),
        (pd.Timestamp("2024-01-02"), "2024-01-02T00:00:00"),
        (pd.NaT, None),
        (pd.Period("2024-01", "M"), "2024-01"),
        (2j, "2j"),
        ([1], "[1]"),
    ):
        got = charts.plain(value)
        assert got == plain and type(got) is type(plain), repr(value)[:80]
        json.dumps(got, allow_nan=False)
