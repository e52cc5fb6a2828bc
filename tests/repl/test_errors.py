# SPDX-License-Identifier: Apache-2.0
"""Errors and exits: tracebacks, exit codes, and the interpreter alive afterwards."""

from __future__ import annotations

import pytest
from repl_process import Repl


def alive(repl: Repl) -> bool:
    """The next cell works and sees the names of the earlier ones."""
    result = repl.run("print(keep)")
    return result.text == "kept\n" and result.exit_code == 0


@pytest.fixture(autouse=True)
def keep(repl: Repl) -> None:
    repl.run("keep = 'kept'")


def test_exception(repl: Repl) -> None:
    result = repl.run("def f(x):\n    return 1 / x\nprint('before')\nf(0)")
    assert result.exit_code == 1 and result.text == "before\n"
    assert result.errors == (
        "Traceback (most recent call last):\n"
        '  File "<cell 2>", line 4, in <module>\n'
        "    f(0)\n"
        '  File "<cell 2>", line 2, in f\n'
        "    return 1 / x\n"
        "           ~~^~~\n"
        "ZeroDivisionError: division by zero\n"
    )
    assert result.error == {
        "type": "error",
        "name": "ZeroDivisionError",
        "value": "division by zero",
        "traceback": result.errors,
    }
    assert alive(repl)


def test_traceback_through_functions_of_earlier_cells(repl: Repl) -> None:
    repl.run("def old():\n    raise ValueError('from old')")
    result = repl.run("old()")
    assert "    raise ValueError('from old')\n" in result.errors
    assert 'File "<cell 2>", line 2, in old' in result.errors


def test_chained_exceptions(repl: Repl) -> None:
    code = "try:\n    1/0\nexcept Exception as e:\n    raise KeyError('k') from e"
    result = repl.run(code)
    assert "direct cause" in result.errors and "ZeroDivisionError" in result.errors
    assert "repl" not in result.errors and result.error is not None
    assert (result.error["name"], result.error["value"]) == ("KeyError", "'k'")


def test_syntax_error(repl: Repl) -> None:
    result = repl.run("x = 1\nprint(x y)\n")
    assert result.exit_code == 1 and result.out == b""
    assert result.errors.startswith('  File "<cell 2>", line 2\n    print(x y)\n')
    assert "^^^" in result.errors and "SyntaxError: invalid syntax" in result.errors
    assert "Traceback" not in result.errors
    assert alive(repl)
    assert repl.run("'x' in globals()").value == "False"


@pytest.mark.parametrize(
    "code, name",
    [
        ("def f(): f()\nf()", "RecursionError"),
        ("[0] * 10**14", "MemoryError"),
        ("raise Exception", "Exception"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("print('a\0b')", "SyntaxError"),
        ("(" * 300 + ")" * 300, "SyntaxError"),
        ("-" * 20000 + "1", "MemoryError RecursionError"),
        ("raise BaseException('b')", "BaseException"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise ExceptionGroup('g', [ValueError(1), TypeError(2)])", "ExceptionGroup"),
        ("eval('1 +')", "SyntaxError"),
        ("class R:\n    def __repr__(self): raise OSError('no repr')\nR()", "OSError"),
        ("class R:\n    def __repr__(self): return 5\nR()", "TypeError"),
        ("class R:\n    def __repr__(self): return repr(self)\nR()", "RecursionError"),
    ],
)
def test_kinds_of_errors(repl: Repl, code: str, name: str) -> None:
    result = repl.run(code)
    assert result.exit_code == 1 and result.error is not None
    assert result.error["name"] in name.split()
    assert result.error["name"] in result.errors
    assert "guest/repl" not in result.errors
    assert alive(repl)


def test_recursion_error_is_short(repl: Repl) -> None:
    result = repl.run("def f(): f()\nf()")
    assert "[Previous line repeated" in result.errors and len(result.err) < 2000
    assert result.seconds < 5


@pytest.mark.parametrize(
    "code, exit_code, err",
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit()", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(None)", 0, ""),
        ("raise SystemExit(256)", 0, ""),
        ("raise SystemExit(-1)", 255, ""),
        ("raise SystemExit(True)", 1, ""),
        ("raise SystemExit(10**30 + 7)", (10**30 + 7) & 255, ""),
        ("raise SystemExit('bye')", 1, "bye\n"),
        ("raise SystemExit(1.5)", 1, "1.5\n"),
        ("raise SystemExit((1, 2))", 1, "(1, 2)\n"),
        ("exit", 0, ""),
        ("quit", 0, ""),
        ("exit()", 0, ""),
        ("quit(4)", 4, ""),
        ("exit('done')", 1, "done\n"),
        ("class S(SystemExit): pass\nraise S(9)", 9, ""),
        ("try:\n    raise SystemExit(6)\nfinally:\n    print('clean')", 6, ""),
        ("def f():\n    exit(11)\nf()", 11, ""),
    ],
)
def test_system_exit(repl: Repl, code: str, exit_code: int, err: str) -> None:
    result = repl.run(code)
    assert (result.exit_code, result.errors, result.events) == (exit_code, err, [])
    assert alive(repl)


def test_exit_message_that_fails(repl: Repl) -> None:
    code = "class M:\n    def __str__(self): raise ValueError\nraise SystemExit(M())"
    result = repl.run(code)
    assert result.exit_code == 1 and "ValueError" in result.errors
    assert alive(repl)


def test_exception_whose_text_raises(repl: Repl) -> None:
    code = "class E(Exception):\n    def __str__(self): raise ValueError('no text')\nraise E"
    result = repl.run(code)
    assert result.exit_code == 1 and "str() failed" in result.errors
    assert result.error is not None and result.error["name"] == "E"
    assert alive(repl)


def test_huge_exception_text_is_whole_on_stderr_and_bounded_in_the_event(repl: Repl) -> None:
    result = repl.run("raise ValueError('x' * 300_000)")
    assert len(result.err) > 300_000 and result.error is not None
    assert len(result.error["value"]) < 10_000 and len(result.error["traceback"]) < 60_000
    assert result.error["traceback"].startswith("Traceback")
    assert alive(repl)


def test_user_excepthook(repl: Repl) -> None:
    repl.run(
        "import sys\nsys.excepthook = lambda t, v, tb: print('hook', t.__name__, tb.tb_lineno)"
    )
    result = repl.run("\n1/0")
    assert result.text == "hook ZeroDivisionError 2\n" and result.err == b""
    assert result.exit_code == 1 and result.error is not None
    repl.run("def bad(*a): raise RuntimeError('hook broken')\nsys.excepthook = bad")
    result = repl.run("1/0")
    assert "sys.excepthook failed with RuntimeError" in result.errors
    assert "ZeroDivisionError: division by zero" in result.errors


def test_last_exception_is_kept_for_post_mortem(repl: Repl) -> None:
    repl.run("v = 5\n1/0")
    code = "import sys\nsys.last_type.__name__, sys.last_traceback.tb_frame.f_code.co_filename"
    assert repl.run(code).value == "('ZeroDivisionError', '<cell 2>')"


def test_input_says_why_it_fails(repl: Repl) -> None:
    result = repl.run("input('name? ')")
    assert result.exit_code == 1 and "without a terminal" in result.errors
    assert result.errors.count("File ") == 1
    result = repl.run("try:\n    input()\nexcept EOFError as e:\n    print('caught')")
    assert result.text == "caught\n"
    assert "getpass() is not available" in repl.run("import getpass; getpass.getpass()").errors
    assert repl.run("import sys; sys.stdin.read()").value == "''"
    assert alive(repl)


def test_debuggers_say_why_they_fail(repl: Repl) -> None:
    result = repl.run("breakpoint()")
    assert result.exit_code == 1 and "breakpoint() is not available" in result.errors
    result = repl.run("import pdb\npdb.set_trace()\nx = 1")
    assert result.exit_code == 1 and "BdbQuit" in result.errors
    assert alive(repl)


def test_help_prints(repl: Repl) -> None:
    assert "Return the absolute value" in repl.run("help(abs)").text
    assert repl.run("help()").exit_code in (0, 1)
    assert alive(repl)


def test_error_in_a_thread_is_shown_and_the_cell_goes_on(repl: Repl) -> None:
    code = "import threading\nt = threading.Thread(target=lambda: 1/0)\nt.start(); t.join(); 5"
    result = repl.run(code)
    assert result.value == "5" and "ZeroDivisionError" in result.errors and result.exit_code == 0


def test_sys_exit_in_a_thread_ends_the_thread_only(repl: Repl) -> None:
    code = "import threading, sys\nt = threading.Thread(target=sys.exit, args=(3,))\nt.start()"
    assert repl.run(code + "; t.join(); 'on'").value == "'on'"
    assert alive(repl)
