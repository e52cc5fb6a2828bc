# SPDX-License-Identifier: Apache-2.0
"""What needs IPython: magics, !commands, help, display; and that plain cells do not load it."""

from __future__ import annotations

from pathlib import Path

import pytest
from repl_process import OK, Repl
from test_interrupt import cancel

LOADED = "import sys; 'IPython' in sys.modules"


@pytest.mark.parametrize(
    "code",
    [
        "1 % 2",
        "x y",
        "print 'hello'",
        "d = {'a': 1}\nf'{d!r}'",
        "await __import__('asyncio').sleep(0)",
        "'%time !ls ?'",
        "def f():\n    '''%magic\n    !x\n    what?\n    '''\nf",
        "ls = 3\nls",
        "display = 3\ndisplay",
        "display(40 + 2)",
        "class H:\n    def _repr_html_(self): return '<b>'\nH()",
    ],
)
def test_plain_cells_do_not_load_ipython(repl: Repl, code: str) -> None:
    repl.run(code)
    assert repl.run("import sys; 'IPyth' + 'on' in sys.modules").value == "False"


@pytest.mark.parametrize(
    "code, out, value",
    [
        ("!echo hi", "hi\n", None),
        ("get_ipython().system('echo via')", "via\n", None),
        ("from IPython.display import display as d\nd('x')", "", "'x'"),
        ("%cd -q /", "", None),
    ],
)
def test_loads_on_demand(repl: Repl, code: str, out: str, value: str | None) -> None:
    repl.run("keep = 5; _ = 'mine'")
    result = repl.run(code)
    assert (result.text, result.errors, result.exit_code) == (out, "", 0)
    assert result.value == value
    assert repl.run("keep, _").value == "(5, 'mine')"
    assert repl.run("[n for n in dir() if not n.startswith('__')]").exit_code == 0


def test_without_ipython(repl: Repl) -> None:
    repl.run("import sys\nsys.modules['IPy' + 'thon'] = None")
    assert repl.run("1 + 1  # IPython").value == "2"
    for code in ("!ls", "%time 1", "get_ipython()"):
        result = repl.run(code)
        assert result.exit_code == 1 and "IPython" in result.errors
    assert b"IPython" in repl.warm()[1]
    assert repl.run("3").value == "3"


def test_warm_and_what_it_leaves_behind(repl: Repl, tmp_path: Path) -> None:
    with Repl(cwd=tmp_path, env={"HOME": str(tmp_path)}) as other:
        before = other.run("sorted(dir())").value
        assert other.warm()[0] == OK and other.warm()[0] == OK
        assert other.run(LOADED).value == "True"
        names = other.run("del sys\nsorted(set(dir()) - {'_dh', '_ih', '_oh'})").value
        assert names == before
        assert other.run("import threading; threading.active_count()").value == "1"
        assert other.threads() == 1
        directory = other.run("get_ipython().ipython_dir").value or ""
        other.run("%cd /\n%bookmark top /\n%load_ext storemagic\nkept = 5\n%store kept")
        assert other.run("%cd -b top").text.endswith("/\n")
        assert "kept" in other.run("%store").text
        assert not Path(directory.strip("'")).exists()
        assert other.run("1 + 1\n_ + 1").exit_code in (0, 1)
        assert other.run("3").value == "3" and other.run("_ + 1").value == "4"
    assert list(tmp_path.iterdir()) == []


def test_commands(ipython: Repl) -> None:
    ipython.run("v = 'value'")
    assert ipython.run("!echo {v} $v {v.upper()}").text == "value value VALUE\n"
    assert ipython.run("!echo $HOME/x").text.endswith("/x\n")
    result = ipython.run("!echo out; echo err >&2; exit 3")
    assert (result.text, result.errors, result.exit_code) == ("out\n", "err\n", 3)
    assert result.events == [
        {"type": "notice", "text": "!echo out; echo err >&2; exit 3 ended with exit code 3"}
    ]
    assert ipython.run("_exit_code").value == "3"
    assert ipython.run("!kill -9 $$\n_exit_code").value == "-9"
    assert ipython.run("files = !printf 'a\\nb\\n'\nlist(files)").value == "['a', 'b']"
    assert ipython.run("for i in range(2):\n    !echo n{i}").text == "n0\nn1\n"
    code = (
        "def f(local):\n    !echo {local}\n    got = !echo {local}2\n    return got[0]\nf('inner')"
    )
    result = ipython.run(code)
    assert (result.text, result.value) == ("inner\n", "'inner2'")
    assert "bash" in ipython.run("!echo $BASH").text
    assert ipython.run("!cat").text == ""
    assert ipython.run("!printf '\\377\\001'").out == b"\xff\x01"
    assert ipython.run("print('a')\n!echo b\nprint('c')").text == "a\nb\nc\n"
    assert ipython.run("!sleep 5 & echo now").seconds < 3


def test_magics(ipython: Repl, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert ipython.run("%cd sub").text == f"{tmp_path}/sub\n"
    assert ipython.run("import os; os.getcwd()").value == f"'{tmp_path}/sub'"
    ipython.run("%cd -q ..")
    assert "per loop" in ipython.run("%timeit -n2 -r2 sum(range(10))").text
    assert "Wall time" in ipython.run("%time sum(range(10))").text
    ipython.run("%env MAGIC=yes")
    assert ipython.run("os.environ['MAGIC']").value == "'yes'"
    assert "Writing" in ipython.run("%%writefile m.py\nprint('ran', __name__)\n").text
    assert ipython.run("%run m.py").text == "ran __main__\n"
    assert ipython.run("%%bash\nfor i in 1 2; do echo b$i; done; echo e >&2").text == "b1\nb2\n"
    result = ipython.run("%%bash\necho x\nexit 4")
    assert result.exit_code == 1 and "exit status 4" in result.errors and result.text == "x\n"
    assert ipython.run("%%sh\necho sh").text == "sh\n"
    assert ipython.run("%%bash --out captured\necho to variable").text == ""
    assert ipython.run("captured").value == "'to variable\\n'"
    assert ipython.run("%%capture c\nprint('hidden')").text == ""
    assert ipython.run("c.stdout").value == "'hidden\\n'"
    assert "pip " in ipython.run("%pip --version").text
    assert ipython.run("%pwd").value == f"'{tmp_path}'"
    assert ipython.run("x = %pwd\nx").value == f"'{tmp_path}'"
    assert ipython.run("%%time\n1 + 1").value == "2"
    assert ipython.run("%who_ls int").exit_code == 0
    assert ipython.run("    %cd -q .\n    print('indented')").text == "indented\n"


def test_automagic_lines(ipython: Repl, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("content\n")
    assert ipython.run("ls").text.split() == ["a-file"]
    assert "a-file" in ipython.run("ls -l").text
    assert ipython.run("cat a-file").text == "content\n"
    assert ipython.run("mkdir newdir").exit_code == 0
    assert ipython.run("cd newdir").text == f"{tmp_path}/newdir\n"
    assert ipython.run("pwd").value == f"'{tmp_path}/newdir'"
    assert "pip " in ipython.run("pip --version").text
    assert ipython.run("time = 4\ntime").value == "4"
    assert ipython.run("time").value == "4"
    assert ipython.run("del time\nrun = 5").exit_code == 0
    assert ipython.run("run -1").value == "4"
    ipython.run("del run")
    assert ipython.run("cp = [1]").exit_code == 0
    assert ipython.run("del cp").exit_code == 0


def test_help_and_prompts(ipython: Repl) -> None:
    ipython.run("def documented(a):\n    '''What it does.'''")
    assert "What it does." in ipython.run("documented?").text
    assert "def documented(a)" in ipython.run("documented??").text
    assert "What it does." in ipython.run("?documented").text
    assert ipython.run(">>> x = 1\n>>> x + 1").value == "2"
    assert ipython.run("In [3]: if x:\n   ...:     print('in')").text == "in\n"


def test_errors(ipython: Repl) -> None:
    result = ipython.run("%no_such_magic")
    assert result.exit_code == 1 and result.errors.startswith("UsageError: ")
    result = ipython.run("%%time\n1/0")
    assert result.exit_code == 1 and "ZeroDivisionError" in result.errors
    assert "IPython" not in result.errors
    result = ipython.run("x = 5 +\n!echo never")
    assert result.exit_code == 1 and "SyntaxError" in result.errors and result.out == b""
    assert "During handling" not in result.errors
    result = ipython.run("!echo first\n1/0")
    assert result.text == "first\n" and "line 2" in result.errors and result.exit_code == 1
    result = ipython.run("%run no_such_file.py")
    assert result.exit_code == 1 and "no_such_file.py" in result.errors
    assert "terminal" in ipython.run("%debug").errors
    assert ipython.run("1 + 1").value == "2"


def test_exits_and_interrupts(ipython: Repl) -> None:
    ipython.run("keep = 8")
    for code, status in (
        ("!true\nexit", 0),
        ("%time exit(6)", 6),
        ("!true\nimport sys; sys.exit(3)", 3),
    ):
        result = ipython.run(code)
        assert (result.exit_code, result.errors) == (status, ""), code
    result = ipython.run("get_ipython().run_cell('import sys; sys.exit(9)')")
    assert result.exit_code == 9 and "To exit" not in result.errors
    for code in (
        "!sleep 60",
        "%%bash\nsleep 60",
        "x = !sleep 60",
        "%timeit -n1 -r1 time.sleep(60)",
    ):
        first = "!echo ready\n" if not code.startswith("%%") else ""
        text = first + code if first else "%%bash\necho ready\nsleep 60"
        ipython.start("import time" if not first else "1")
        ipython.finish()
        ipython.start(text)
        ipython.finish(until=b"ready")
        ipython.interrupt()
        assert ipython.finish(5).exit_code == 130, code
    assert ipython.run("keep").value == "8"


def test_cancel_of_a_plain_cell(ipython: Repl) -> None:
    result = cancel(ipython, "print('ready', flush=True)\ntime.sleep(60)")
    assert result.exit_code == 130  # type: ignore[attr-defined]


def test_display(ipython: Repl) -> None:
    result = ipython.run("display(1, 'two')\nprint('p')\n3")
    texts = [e["data"]["text/plain"] for e in result.events]
    assert texts == ["1", "'two'", "3"] and result.text == "p\n"
    code = "from IPython.display import publish_display_data as p\n"
    result = ipython.run(code + "p({'text/plain': 'big', 'image/png': b'x' * 9_000_000})")
    assert [e["type"] for e in result.events] == ["result", "notice"]
    assert "image/png" in result.events[1]["text"]
    result = ipython.run("p({'text/plain': 'small', 'image/png': b'\\0\\1'})")
    assert result.events[0]["data"] == {"text/plain": "small", "image/png": "AAE="}
    assert ipython.run("get_ipython().run_cell('5 + 5')\nNone").value == "10"


def test_same_namespace_and_results_in_both_ways(ipython: Repl) -> None:
    ipython.run("a = list(range(100))")
    assert ipython.run("a").value == repr(list(range(100)))
    assert ipython.run("%cd -q .\na").value == repr(list(range(100)))
    ipython.run("%cd -q .\nb = 3\ndef g(): return __name__")
    assert ipython.run("b, g()").value == "(3, '__main__')"
    assert ipython.run("get_ipython().user_ns is globals()").value == "True"
    assert ipython.run("import IPython\nIPython.get_ipython() is get_ipython()").value == "True"


def test_autoreload_and_callbacks(ipython: Repl, tmp_path: Path) -> None:
    (tmp_path / "fresh.py").write_text("v = 1\n")
    ipython.run("%load_ext autoreload\n%autoreload 2")
    assert ipython.run("import fresh\nfresh.v").value == "1"
    (tmp_path / "fresh.py").write_text("v = 2222\n")
    assert ipython.run("fresh.v").value == "2222"
    ipython.run("%autoreload 0")
    ipython.run(
        "seen = []\nget_ipython().events.register('post_run_cell', lambda r: seen.append(1))"
    )
    ipython.run("x = 1")
    assert int((ipython.run("len(seen)").value or "0")) >= 1
    ipython.run("get_ipython().events.callbacks['post_run_cell'].clear()")


def test_source_and_tree_transformers(ipython: Repl) -> None:
    code = "def twice(lines): return [l.replace('TWO', '2') for l in lines]\n"
    ipython.run(code + "get_ipython().input_transformers_post.append(twice)")
    assert ipython.run("TWO + TWO").value == "4"
    ipython.run("get_ipython().input_transformers_post.clear()")
    assert ipython.run("TWO").exit_code == 1


def test_await_with_magics(ipython: Repl) -> None:
    code = "import asyncio\n%cd -q .\nawait asyncio.sleep(0)\n'done'"
    assert ipython.run(code).value == "'done'"
    result = ipython.run("get_ipython().run_cell('await asyncio.sleep(0); 6')\nNone")
    assert result.value == "6" and result.exit_code == 0


def test_cells_with_magics_leak_little(ipython: Repl) -> None:
    memory = "int(open('/proc/self/statm').read().split()[1]) * 4"
    for i in range(600):
        ipython.run(f"%cd -q .\nv = {i}")
    before = int(ipython.run(memory).value or 0)
    for i in range(600, 1200):
        ipython.run(f"%cd -q .\nv = {i}")
    grown = int(ipython.run(memory).value or 0) - before
    assert grown < 1000, f"{grown} KiB in 600 cells"
    assert int(ipython.run("len(_dh)").value or 0) <= 100


def test_failures_of_magics_and_commands_are_visible(ipython: Repl, tmp_path: Path) -> None:
    def notices(code: str) -> list[str]:
        result = ipython.run(code, 60)
        return [e["text"] for e in result.events if e["type"] == "notice"]

    result = ipython.run("%pip install --no-index no-such-package-anywhere", 60)
    assert result.exit_code == 1 and (result.error or {})["name"] == "CalledProcessError"
    assert "pip install" in result.errors
    assert ipython.run("pip install --no-index no-such-package\nprint('never')", 60).exit_code == 1
    assert ipython.run("!pip install --no-index no-such-package-anywhere", 60).exit_code == 1
    result = ipython.run("%cd no-such-directory")
    assert result.exit_code == 1 and "no-such-directory" in result.errors and result.text == ""
    assert ipython.run("%cd -q .\n%pwd").value == f"'{tmp_path}'"
    assert notices("!exit 4\nx = 1") == ["!exit 4 ended with exit code 4"]
    assert notices("x = !exit 5") == ["!exit 5 ended with exit code 5"]
    assert notices("!kill -9 $$\n1") == ["!kill -9 $$ ended by signal 9"]
    assert notices("!true") == []
    assert len(notices("for i in range(100):\n    !exit 1")) == 20
    for code, status in (
        ("!exit 4", 4),
        ("!kill -15 $$", 143),
        ("!exit 4\n!true", 0),
        ("!exit 4\n1", 0),
        ("%%bash\nexit 4", 1),
        ("%%script sh\nexit 4", 1),
        ("%run nothing.py", 1),
        ("%%writefile no/such/place\nx", 1),
        ("%env NO_SUCH_VARIABLE", 1),
        ("%load_ext no_such_extension", 1),
    ):
        assert ipython.run(code, 60).exit_code == status, code
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    assert ipython.run("%run leaves.py").exit_code == 3
    assert ipython.run("_exit_code = 0\n!echo $HOME | grep -q .\n_exit_code").value == "0"


def test_installed_package_is_there_at_once(ipython: Repl, tmp_path: Path) -> None:
    target = tmp_path / "site"
    package = tmp_path / "source"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (package / "backend.py").write_text(BACKEND)
    code = f"import sys\nsys.path.insert(0, {str(target)!r})\n"
    code += f"%pip install -q --no-index --no-build-isolation --target {target} {package}\n"
    result = ipython.run(code + "import installed_now\ninstalled_now.value", 120)
    assert result.value == "'here'", result.errors
    assert "restart" not in result.text


BACKEND = """
import zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = 'installed_now-1-py3-none-any.whl'
    info = 'installed_now-1.dist-info/'
    with zipfile.ZipFile(f'{directory}/{name}', 'w') as z:
        z.writestr('installed_now.py', "value = 'here'")
        z.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: installed_now\\nVersion: 1\\n')
        z.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        z.writestr(info + 'RECORD', '')
    return name
"""
