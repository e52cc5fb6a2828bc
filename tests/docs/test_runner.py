# SPDX-License-Identifier: Apache-2.0
"""What tests/run.py counts of programs of cmocka and of pytest: stand-ins that fail once, or always."""

from __future__ import annotations

import importlib.util
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "run.py"

TWO = """\
[==========] tests: Running 3 test(s).
[ RUN      ] test_good
[       OK ] test_good
[ RUN      ] test_left
[  SKIPPED ] test_left
[ RUN      ] test_bad
[  ERROR   ] --- 0x1 != 0x2
[   LINE   ] --- ../tests/unit/test_x.c:7: error: Failure!
[  FAILED  ] test_bad
[==========] tests: 3 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] test_left
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] test_bad
"""
GOOD = TWO.split("[ RUN      ] test_bad")[0] + """\
[ RUN      ] test_bad
[       OK ] test_bad
[  PASSED  ] 2 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] test_left
"""


@pytest.fixture(name="run", scope="module")
def load():
    spec = importlib.util.spec_from_file_location("runner", RUN)
    module = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def program(directory: Path, *runs: tuple[str, int]) -> None:
    """A test program that says one thing after the other, and ends with that status."""
    path = directory / "test_x"
    lines = ["#!/bin/sh", f"n=$(cat {path}.n 2>/dev/null || echo 0)", f"echo $((n + 1)) >{path}.n"]
    for i, (text, status) in enumerate(runs):
        (directory / f"said.{i}").write_text(text)
        lines.append(f'[ "$n" = {i} ] && cat {directory}/said.{i} && exit {status}')
    path.write_text("\n".join([*lines, "exit 99", ""]))
    path.chmod(0o755)


def cmocka(run, directory: Path):
    log = io.StringIO()
    return run.run_cmocka(run.Stage("unit", "cmocka", [str(directory)]), log), log.getvalue()


def test_cmocka_counts(run, tmp_path):
    program(tmp_path, (GOOD, 0))
    counts, _ = cmocka(run, tmp_path)
    assert (counts.passed, counts.failed, counts.skipped, counts.names) == (2, 0, 1, [])


def test_cmocka_failed_twice(run, tmp_path):
    program(tmp_path, (TWO, 1), (TWO, 1))
    counts, log = cmocka(run, tmp_path)
    assert (counts.passed, counts.failed, counts.skipped) == (1, 1, 1)
    assert counts.names == ["unit::test_x::test_bad"] and not counts.unsteady
    assert "0x1 != 0x2; ../tests/unit/test_x.c:7" in run.said(counts, counts.names[0])
    assert log.count("error: Failure!") == 2


def test_cmocka_failed_once(run, tmp_path):
    program(tmp_path, (TWO, 1), (GOOD, 0))
    counts, _ = cmocka(run, tmp_path)
    assert (counts.passed, counts.failed, counts.skipped, counts.names) == (2, 0, 1, [])
    assert counts.unsteady == ["unit::test_x::test_bad"]
    assert "0x1 != 0x2" in run.said(counts, counts.unsteady[0])


def test_cmocka_skipped_the_second_time(run, tmp_path):
    program(tmp_path, (TWO, 1), (GOOD.replace("[       OK ] test_bad", "[  SKIPPED ] test_bad"), 0))
    counts, _ = cmocka(run, tmp_path)
    assert counts.failed == 1 and counts.names == ["unit::test_x::test_bad"]


@pytest.mark.parametrize("text", ["", GOOD, "SUMMARY: AddressSanitizer: heap-use-after-free x.c:1\n"])
def test_cmocka_ended_badly(run, tmp_path, text):
    program(tmp_path, (text, 3), (text, 3))
    counts, _ = cmocka(run, tmp_path)
    assert counts.failed == 1 and counts.names == ["unit::test_x"]
    said = run.said(counts, "unit::test_x")
    assert "status 3" in said and ("SUMMARY" in text) == ("heap-use-after-free" in said)


def test_cmocka_without_programs(run, tmp_path):
    counts, log = cmocka(run, tmp_path)
    assert counts.failed == 1 and "no test programs" in log


def pytest_stage(run, directory: Path, source: str):
    (directory / "test_x.py").write_text(source)
    (directory / "pytest.ini").write_text("[pytest]\n")
    (directory / "test-logs").mkdir()
    stage = run.Stage("x", "pytest", ["--rootdir", str(directory), str(directory / "test_x.py")])
    with (directory / "log").open("w") as log:
        return run.run_pytest(stage, log, directory)


def test_pytest_failed_once_and_twice(run, tmp_path):
    counts = pytest_stage(
        run,
        tmp_path,
        "from pathlib import Path\n"
        "def test_good(): pass\n"
        "def test_once():\n"
        f"    mark = Path({str(tmp_path)!r}, 'mark')\n"
        "    first = not mark.exists()\n"
        "    mark.touch()\n"
        "    assert not first, 'only once'\n"
        "def test_bad(): assert 1 == 2, 'always'\n",
    )
    assert (counts.passed, counts.failed, counts.skipped) == (2, 1, 0)
    assert [n.split("::")[1] for n in counts.names + counts.unsteady] == ["test_bad", "test_once"]
    assert "always" in run.said(counts, counts.names[0])
    assert "only once" in run.said(counts, counts.unsteady[0])


def test_pytest_skipped_the_second_time(run, tmp_path):
    counts = pytest_stage(
        run,
        tmp_path,
        "import pytest\n"
        "from pathlib import Path\n"
        "def test_good(): pass\n"
        "def test_once():\n"
        f"    mark = Path({str(tmp_path)!r}, 'mark')\n"
        "    if mark.exists(): pytest.skip('now')\n"
        "    mark.touch()\n"
        "    assert False\n",
    )
    assert (counts.passed, counts.failed) == (1, 1) and not counts.unsteady


DOCUMENT = """\
`tests/a.py::test_x[1]`

## Claims and their tests

| claim | tests |
|---|---|
| One | `tests/a.py::test_x`, `tests/a.py::test_y` |
| Two | `tests/a.py::test_y`, `tests/unit/test_b.c::test_left` |
| Three | `tests/a.py::test_y`, `tests/a.py::test_z` |
"""


def test_claims_with_less(run, tmp_path):
    """A test that was skipped in one stage and ran in another has run; its parameters one by one."""
    document = tmp_path / "claims.md"
    document.write_text(DOCUMENT)
    counts = run.Counts(ran={"tests/a.py::test_y", "tests/a.py::test_x[2]"})
    counts.add(run.Counts(left={"tests/a.py::test_y", "tests/a.py::test_x[1]", "tests/a.py::test_x[2]"}))
    assert run.less(counts, document) == ["One: tests/a.py::test_x"]
    counts.add(run.Counts(left={"tests/unit/test_b.c::test_left"}))
    assert run.less(counts, document)[1:] == ["Two: tests/unit/test_b.c::test_left"]
    again = counts.after(run.Counts(ran={"tests/a.py::test_x[1]"}))
    assert [line.partition(":")[0] for line in run.less(again, document)] == ["Two"]


def test_what_ran_and_what_was_skipped(run, tmp_path):
    program(tmp_path, (GOOD, 0))
    counts, _ = cmocka(run, tmp_path)
    names = {f"tests/unit/test_x.c::{name}" for name in ("test_good", "test_bad")}
    assert counts.ran == names and counts.left == {"tests/unit/test_x.c::test_left"}
    counts = pytest_stage(
        run,
        tmp_path,
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_one(n):\n"
        "    if n == 2: pytest.skip('now')\n",
    )
    path = run.Stage("", "", ["tests/daemon/test_a.py::test_b"]), run.Stage("", "", ["tests/vmm", "-m", "x"])
    assert [run.where_of(stage) for stage in path] == ["tests/daemon", "tests/vmm"]
    assert {name.rpartition("/")[2] for name in counts.ran} == {"test_x.py::test_one[1]"}
    assert {name.rpartition("/")[2] for name in counts.left} == {"test_x.py::test_one[2]"}


FUZZER = """\
#!/bin/sh
case "$*" in
*-runs=0*) echo "a replay"; exit 0;;
esac
echo "#2 INITED cov: 5 ft: 5"
: >{here}/begun
until [ -e {here}/replayed ]; do sleep 0.01; done
echo "#9 NEW cov: 6 ft: 6"
echo "stat::number_of_executed_units: 9"
"""


# Its find fails as often by itself as the file says.
FINDER = """\
#!/bin/sh
say() {{ cat {here}/says; exit 77; }}
case "$*" in
*-max_total_time*) echo "Test unit written to {here}/find"; say;;
esac
echo >>{here}/tries
[ "$(wc -l <{here}/tries)" != "$(cat {here}/fails_at)" ] || say
"""

BROKEN = "../x.c:7: a == b\n==1== ERROR: libFuzzer: deadly signal\n"
LATE = BROKEN.replace("a == b", "not yet: a == b")
HUNG = "==1== ERROR: libFuzzer: timeout after 120 seconds\n"
ASAN = "==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x1\n"
LSAN = "==1==ERROR: LeakSanitizer: detected memory leaks\n"
UBSAN = "../x.c:7:3: runtime error: shift exponent 99 is too large\n"


def fuzz_program(build: Path, text: str):
    """tests/fuzz/run.py, and a stand-in for the target "ctl" in a build directory."""
    spec = importlib.util.spec_from_file_location("fuzz_run", RUN.parent / "fuzz" / "run.py")
    fuzz_run = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_run"] = fuzz_run
    spec.loader.exec_module(fuzz_run)
    program = build / "tests" / "fuzz" / "fuzz_ctl"
    program.parent.mkdir(parents=True)
    program.write_text(text.format(here=build), encoding="utf-8")
    program.chmod(0o755)
    return fuzz_run


def found(directory: Path, says: str, fails_at: int):
    """What the runner makes of a target that says this of its find, and again at that try."""
    fuzz_run = fuzz_program(directory, FINDER)
    (target,) = fuzz_run.targets(directory, ["ctl"])
    (directory / "fails_at").write_text(str(fails_at), encoding="utf-8")
    (directory / "says").write_text(says, encoding="utf-8")
    result = target.fuzz(60, False, fuzz_run.Extra())
    assert "Test unit written to" in target.log.read_text(encoding="utf-8")
    assert len((directory / "tries").read_text().splitlines()) == (fails_at or 3)
    assert any(f"{directory}/find" in line for line in result.told)
    return result


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_find_about_time_is_tried_again(tmp_path, fails_at):
    result = found(tmp_path, LATE, fails_at)
    assert result.ok == (fails_at == 0)
    assert result.text.startswith("UNSTEADY: FAILED (status 77)" if result.ok else "FAILED (status 77)")
    assert result.told[0] == "../x.c:7: not yet: a == b"


def test_a_hang_that_does_not_come_again_is_unsteady(tmp_path):
    assert found(tmp_path, HUNG, 0).ok


@pytest.mark.parametrize("says", [BROKEN, ASAN, LSAN, UBSAN, LATE + ASAN, HUNG + LSAN, LATE + UBSAN, ""])
def test_another_find_has_failed_though_it_does_not_come_again(tmp_path, says):
    result = found(tmp_path, says, 0)
    assert not result.ok
    assert result.text == "FAILED (status 77), and not again in 3 tries"
    assert set(says.splitlines()) <= set(result.told)


# Has two inputs and the empty one, and time for as many others as the file says, all of which it
# keeps; does as many runs as it is told to.
SLOW = """\
#!/bin/sh
more=$(cat {here}/time_for)
old=$((1 + $(ls {here}/seeds {here}/fuzz/ctl/corpus | grep -c kept)))
for o; do
    case "$o" in
    -runs=*) [ "$more" = none ] || more=$((${{o#-runs=}} - old)); echo "$o" >>{here}/more;;
    -max_total_time=1) ;;
    -max_total_time=*) echo "$o" >>{here}/more;;
    esac
done
[ "$more" != unborn ] || exit 0
[ "$more" != none ] || more=0
for i in $(seq $more); do : >{here}/fuzz/ctl/corpus/kept$i; done
printf '#%s\\tINITED cov: 5 ft: 5\\n#9\\tDONE   cov: 6 ft: 6\\n' $old
echo "stat::number_of_executed_units: $((old + more))"
"""


MORE = "-runs=6\n-max_total_time=50\n"


@pytest.mark.parametrize(
    "time_for, extra, more, says, told",
    [
        ("3", 50, "", "6 executions, 1 new edges of 6", ""),
        ("2", 50, MORE, "11 executions, 1 new edges of 6", ""),
        ("0", 50, MORE, "9 executions, 1 new edges of 6", ""),
        ("0", 1000, MORE.replace("50", "120"), "9 executions, 1 new edges of 6", ""),
        ("none", 50, MORE, "SLOW: 6 executions", "only 0 new inputs for 3 old ones, with 50 seconds more"),
        ("2", 0.9, "", "SLOW: 5 executions", "only 2 new inputs for 3 old ones, with 0 seconds more"),
        ("unborn", 50, "", "FAILED", ""),
    ],
)
def test_a_fuzz_target_tries_as_many_new_inputs_as_it_has(tmp_path, time_for, extra, more, says, told):
    fuzz_run = fuzz_program(tmp_path, SLOW)
    (target,) = fuzz_run.targets(tmp_path, ["ctl"])
    (tmp_path / "time_for").write_text(time_for, encoding="utf-8")
    (tmp_path / "more").touch()
    target.seeds = tmp_path / "seeds"
    target.seeds.mkdir()
    for name in ("kept_a", "kept_b"):
        (target.seeds / name).touch()
    result = target.fuzz(1, False, fuzz_run.Extra(extra))
    assert result.text.startswith(says) and result.ok == (time_for != "unborn")
    assert result.text.endswith("a second, ok") == (not told and result.ok)
    assert not told or result.told[0] == told
    assert (tmp_path / "more").read_text(encoding="utf-8") == more


def test_the_extra_time_of_a_run_is_for_all_its_targets(tmp_path):
    fuzz_run = fuzz_program(tmp_path, SLOW)
    extra = fuzz_run.Extra(130)
    assert extra.take() == 120 and extra.take() == 10 and extra.take() == 0
    extra.give_back(90.5)
    extra.give_back(-30)  # it took longer than its share
    assert extra.take() == 60 and extra.take() == 0


@pytest.mark.parametrize(
    "change, status, says",
    [
        ({}, 0, ""),
        ({"src/vmm/virtio/blk.c": (84, 100)}, 1, "84/100    src/vmm/virtio/blk.c  <- below the goal"),
        ({"src/vmm/core/exit.c": None}, 1, "0/0      src/vmm/core/exit.c  <- no target has it"),
        ({"src/egress/socks.c": (84, 100)}, 1, "84/100    src/egress/socks.c  <- below the goal"),
        ({"src/proto/frame.c": None}, 1, "0/0      src/proto/frame.c  <- no target has it"),
        ({"src/vmm/main.c": (0, 100), "src/vmm/virtio/spec.h": (0, 0)}, 0, ""),
    ],
)
def test_coverage_judges_every_file_of_the_devices_and_parsers(monkeypatch, tmp_path, capsys, change, status, says):
    spec = importlib.util.spec_from_file_location("fuzz_coverage", RUN.parent / "fuzz" / "coverage.py")
    coverage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coverage)
    lines = {path: (85, 100) for path in coverage.judged()} | change
    lines = {path: count for path, count in lines.items() if count}
    assert len(coverage.judged()) > 50
    assert all((RUN.parents[1] / path).is_file() for path in coverage.judged())
    monkeypatch.setattr(coverage, "build", lambda directory: [tmp_path / "fuzz_x"])
    monkeypatch.setattr(coverage, "replay", lambda directory, program, learned: program)
    monkeypatch.setattr(coverage, "lines_of", lambda directory, programs, profiles: lines)
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--build", str(tmp_path), "--committed"])
    assert coverage.main() == status
    told = capsys.readouterr().out
    assert says in told and ("<-" in told) == bool(status)
    total = len(coverage.judged())
    assert told.endswith(f"{total - status} of {total} files reach 85 % of their lines\n")


def test_fuzz_targets_say_why(run, tmp_path):
    lines = "a1  9 executions, ok\nb  UNSTEADY: FAILED (status 1), and not again\n    x.c:7: b\n"
    lines += "c  FAILED (status 77)\n    x.c:7: a\n    log: l\n"
    lines += "d  SLOW: 5 executions\n    only 2 new\n3 passed, 1 failed, 0 skipped\n"
    stage = run.Stage("fuzz", "fuzz", ["sh", "-c", f"printf '{lines}'; exit 1"])
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        counts = run.run_fuzz(stage, log)
    assert (counts.passed, counts.failed, counts.skipped) == (3, 1, 0)
    assert counts.slow == ["fuzz::d"] and run.said(counts, "fuzz::d") == ": only 2 new"
    assert counts.names == ["fuzz::c"] and counts.unsteady == ["fuzz::b"]
    assert run.said(counts, "fuzz::c") == ": x.c:7: a log: l"


def test_a_replay_runs_beside_a_fuzz_target(tmp_path):
    fuzz_run = fuzz_program(tmp_path, FUZZER)
    (fuzzed,) = fuzz_run.targets(tmp_path, ["ctl"], "fuzz")
    (replayed,) = fuzz_run.targets(tmp_path, ["ctl"], "replay")
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(fuzzed.fuzz, 1, False, fuzz_run.Extra())
        while not (tmp_path / "begun").exists() and not result.done():
            time.sleep(0.01)
        assert replayed.replay().ok
        (tmp_path / "replayed").touch()
        assert result.result().ok, result.result()
    assert result.result().text.startswith("9 executions, 1 new edges of 6")
