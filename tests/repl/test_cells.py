# SPDX-License-Identifier: Apache-2.0
"""Plain cells: shared names, results, dedent, await, and what __main__ looks like."""

from __future__ import annotations

import pytest
from repl_process import Repl


def test_names_and_imports_persist(repl: Repl) -> None:
    assert repl.run("import json\nx = 42").out == b""
    result = repl.run('print(x, json.dumps({"ok": True}))')
    assert result.text == '42 {"ok": true}\n' and result.exit_code == 0
    assert result.state == "preserved" and result.events == []


def test_imported_module_keeps_its_state(repl: Repl) -> None:
    repl.run("import math, sys\nmath.marker = [1]\ndata = list(range(1000))")
    assert repl.run("math.marker.append(2); math.marker").value == "[1, 2]"
    assert repl.run("sum(data)").value == "499500"


def test_cwd_environment_path_and_open_files_persist(repl: Repl) -> None:
    repl.run(
        "import os, sys\nos.mkdir('d'); os.chdir('d')\nos.environ['K'] = 'v'\nf = open('t', 'w+')"
    )
    repl.run("sys.path.append('/nowhere'); f.write('abc')")
    assert repl.run("f.seek(0); f.read(), os.path.basename(os.getcwd())").value == "('abc', 'd')"
    assert repl.run("os.environ['K'], sys.path[-1]").value == "('v', '/nowhere')"


@pytest.mark.parametrize(
    "code, value",
    [
        ("1 + 1", "2"),
        ("x = 5\nx", "5"),
        ("'text'", "'text'"),
        ("(1 +\n 2)", "3"),
        ("if True:\n    3", None),
        ("None", None),
        ("x = 1", None),
        ("1 + 1;", None),
        ("1 + 1 ;  # why", None),
        ("(1 + 1);", None),
        ("1 + 1  # a; b;", "2"),
        ("';'", "';'"),
        ("'é'; 'é;'", "'é;'"),
        ("print; 7", "7"),
        ("", None),
        ("\n\n# only a comment\n", None),
        ("[1,\n 2]\n\n", "[1, 2]"),
        ("for _i in (1, 2): _i", None),
        ("lambda: 1;", None),
        ("x = 1\r\nx + 1\r\n", "2"),
        ("\ufeff3", "3"),
        ("'a\\0b'", "'a\\x00b'"),
    ],
)
def test_value_of_the_last_expression(repl: Repl, code: str, value: str | None) -> None:
    result = repl.run(code)
    assert (result.exit_code, result.value, result.out, result.err) == (0, value, b"", b"")


def test_result_is_kept_as_underscore_but_not_over_a_name_of_the_user(repl: Repl) -> None:
    repl.run("21 * 2")
    assert repl.run("_ + 1").value == "43"
    assert repl.run("None").value is None
    assert repl.run("_").value == "43"
    repl.run("_ = 'mine'\n99")
    assert repl.run("_").value == "'mine'"


def test_output_comes_before_the_result_event(repl: Repl) -> None:
    result = repl.run("import os\nfor i in range(100): print(i)\nos.system('echo x')\n'v'")
    assert result.text.splitlines() == [*map(str, range(100)), "x"]
    assert result.value == "'v'"


def test_user_displayhook_is_used(repl: Repl) -> None:
    repl.run("import sys\nsys.displayhook = lambda v: print('shown', v)")
    result = repl.run("1 + 1")
    assert result.text == "shown 2\n" and result.events == []


@pytest.mark.parametrize(
    "code, out",
    [
        ("\n        import json\n        print(json.dumps([1]))\n        ", "[1]\n"),
        ("    a = 1\n    if a:\n        print(a)\n", "1\n"),
        ("\tprint(1)\n\tprint(2)", "1\n2\n"),
        ("  # comment\n  print(1)", "1\n"),
        ("\n\n    # comment\n\n    print(1)\n  ", "1\n"),
        ("# left comment\n    print(1)\n    print(2)\n", "1\n2\n"),
        # As textwrap.dedent does: the text of the string moves with the code.
        ("    s = '''a\n      b\n    c'''\n    print(s)", "a\n  b\nc\n"),
        # No common margin: the code moves, the text of the string stays.
        ("    s = '''a\nb\n      c'''\n    print(s)", "a\nb\n      c\n"),
        # Not indented: nothing is touched.
        ("s = '''\n    a\n    b'''\nprint(s)", "\n    a\n    b\n"),
        ("print('''   \n   x''')", "   \n   x\n"),
    ],
)
def test_indented_cells(repl: Repl, code: str, out: str) -> None:
    result = repl.run(code)
    assert (result.text, result.errors, result.exit_code) == (out, "", 0)


def test_lines_of_an_indented_cell_are_right_in_tracebacks(repl: Repl) -> None:
    result = repl.run("    s = '''\nx'''\n    1/0\n")
    assert 'File "<cell 1>", line 3' in result.errors and "    1/0\n" in result.errors


@pytest.mark.parametrize("code", ["x = 1\n  y = 2", "    x = 1\n  y = 2", "    x\nelse:\n    y"])
def test_wrong_indentation_stays_an_error(repl: Repl, code: str) -> None:
    result = repl.run(code)
    assert result.exit_code == 1
    assert result.error is not None
    assert result.error["name"] in ("IndentationError", "SyntaxError")


def test_future_import_holds_for_later_cells(repl: Repl) -> None:
    repl.run("from __future__ import annotations")
    assert repl.run("def f(x: Nowhere): pass\nf.__annotations__").value == "{'x': 'Nowhere'}"


def test_top_level_await_keeps_one_loop(repl: Repl) -> None:
    code = "import asyncio\nasync def work():\n    await asyncio.sleep(0.01)\n    return 7\n"
    assert repl.run(code + "await work()").value == "7"
    repl.run("first = asyncio.get_running_loop() if await asyncio.sleep(0, True) else None")
    assert repl.run("await asyncio.sleep(0)\nasyncio.get_running_loop() is first").value == "True"
    repl.run("task = asyncio.create_task(work())\nawait asyncio.sleep(0)")
    assert repl.run("await task").value == "7"
    assert repl.run("async with asyncio.timeout(5):\n    x = [i async for i in agen()]").exit_code
    assert repl.run("asyncio.run(work())").value == "7"
    assert repl.run("await work()").value == "7"


def test_error_in_await_shows_only_user_frames(repl: Repl) -> None:
    result = repl.run("import asyncio\nawait asyncio.sleep(0)\nawait asyncio.wait_for(no(), 1)")
    assert result.exit_code == 1 and "NameError: name 'no'" in result.errors
    assert result.errors.count("File ") == 1 and "repl" not in result.errors


def test_main_looks_like_an_interactive_main(repl: Repl) -> None:
    names = "['__annotations__', '__builtins__', '__doc__', '__loader__', '__name__', "
    names += "'__package__', '__spec__']"
    assert repl.run("sorted(dir())").value == names
    assert repl.run("import __main__, sys\n__main__.__dict__ is globals()").value == "True"
    assert repl.run("__name__, sys.argv, sys.path[0]").value == "('__main__', [''], '')"
    assert repl.run("if __name__ == '__main__': print('main')").text == "main\n"


def test_own_modules_are_not_importable_by_their_plain_names(repl: Repl) -> None:
    for name in ("frames", "runner", "streams", "guard", "source", "display", "shell", "aio"):
        assert repl.run(f"import {name}").exit_code == 1, name
    assert repl.run("open('frames.py', 'w').write('x = 1')\nimport frames; frames.x").value == "1"


def test_pickle_of_classes_made_in_cells(repl: Repl) -> None:
    repl.run("import pickle\nclass Point:\n    def __init__(self, x): self.x = x\np = Point(3)")
    assert repl.run("pickle.loads(pickle.dumps(p)).x").value == "3"
    assert repl.run("Point.__module__").value == "'__main__'"


def test_source_of_functions_and_dataclasses(repl: Repl) -> None:
    repl.run("import inspect, dataclasses\ndef f():\n    return 1  # one")
    assert repl.run("print(inspect.getsource(f))").text == "def f():\n    return 1  # one\n\n"
    repl.run("@dataclasses.dataclass\nclass D:\n    a: int = 1")
    assert repl.run("D()").value == "D(a=1)"


def test_warnings_appear_in_every_cell(repl: Repl) -> None:
    repl.run("import warnings")
    for _ in range(2):
        assert "UserWarning: careful" in repl.run("warnings.warn('careful')").errors


def test_large_cell_comes_in_many_frames(repl: Repl) -> None:
    text = "x" * 1_000_000
    assert repl.run(f"s = '{text}'\nlen(s)").value == "1000000"


def test_user_site_packages_made_later_are_found(repl: Repl, tmp_path: object) -> None:
    with Repl(env={"HOME": str(tmp_path), "PYTHONNOUSERSITE": ""}) as other:
        code = "import os, site\np = site.getusersitepackages()\nos.makedirs(p)\n"
        other.run(code + "open(p + '/fresh_module.py', 'w').write('x = 1')")
        assert other.run("import fresh_module; fresh_module.x").value == "1"


def test_many_cells_leak_nothing(repl: Repl) -> None:
    memory = "int(open('/proc/self/statm').read().split()[1]) * 4"
    for i in range(1500):
        repl.run(f"v = {i}")
    before = int(repl.run(memory).value or 0)
    for i in range(1500, 4500):
        repl.run(f"v = {i}")
    grown = int(repl.run(memory).value or 0) - before
    assert grown < 400, f"{grown} KiB in 3000 cells"
    assert repl.run("import linecache; len(linecache.cache) < 520").value == "True"
