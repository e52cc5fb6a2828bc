# SPDX-License-Identifier: Apache-2.0
"""What the long tests do by chance, and what their clients take for an answer: the generator and the
plans of tests/crash.sh and tests/soak.sh, the verdicts of tests/e2e/box/client. And that what a program
leaves behind is found, whatever it is (tests/e2e/served.py)."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "e2e"))

from served import Process, wait_until  # noqa: E402

BOX = TESTS / "e2e/box"
# Their shell is busybox's in the emulated host, the host's own elsewhere.
SHELLS = [["sh"], ["busybox", "sh"]]
ROUNDS = 1000
VICTIMS = ("daemon", "oldest", "sandbox", "proxy")


def run(shell: list[str], *argv: str, text: str = "") -> str:
    done = subprocess.run(
        [*shell, *argv], cwd=BOX, input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def crash_plan(seed: int, shell: list[str] = SHELLS[0], rounds: int = ROUNDS) -> list[tuple[int, str, int, int]]:
    out = run(shell, str(TESTS / "crash.sh"), str(rounds), str(seed), "plan")
    plan = [line.split() for line in out.splitlines()]
    assert len(plan) == rounds
    return [(int(delay), victim, int(which), int(pause)) for delay, victim, which, pause in plan]


def soak_plan(seed: int, shell: list[str] = SHELLS[0]) -> list[tuple[int, int]]:
    out = run(shell, str(TESTS / "soak.sh"), "0", "0", "0", str(ROUNDS), str(seed), "plan")
    return [(int(delay), int(which)) for delay, which in (line.split() for line in out.splitlines())]


@pytest.mark.parametrize("seed", [0, 1, 2, 1790000000, 2**31 + 5, 2**32 - 1])
def test_any_victim_at_any_moment(seed: int) -> None:
    """Whoever is killed, it is in all eighths of the delay, as often as chance has it; the same of the
    pause behind it, and of which of many it is."""
    plan = crash_plan(seed)
    met = collections.Counter((victim, delay * 8 // 4000) for delay, victim, _, _ in plan)
    assert len({delay for delay, *_ in plan}) > ROUNDS / 2
    assert {v for _, v, *_ in plan} == set(VICTIMS)
    for victim, eighth in product(VICTIMS, range(8)):
        share = ROUNDS / 64 * (1 if victim in ("daemon", "oldest") else 3)
        assert share / 4 < met[victim, eighth] < share * 3, (victim, eighth, met)
    for victim, pause, third in product(VICTIMS, (0, 1), range(3)):
        assert any(
            v == victim and p == pause and which % 3 == third for _, v, which, p in plan
        ), (victim, pause, third)
    # Nor does one kill decide about the next.
    pairs = collections.Counter(zip([v for _, v, *_ in plan], [v for _, v, *_ in plan[1:]]))
    assert len(pairs) == len(VICTIMS) ** 2
    pauses = sum(pause for *_, pause in plan)
    assert ROUNDS * 0.65 < pauses < ROUNDS * 0.85


@pytest.mark.parametrize("seed", [0, 1, 1790000000])
def test_any_process_at_any_moment_of_a_fork(seed: int) -> None:
    plan = soak_plan(seed)
    met = collections.Counter((delay * 7 // 700, which % 4) for delay, which in plan)
    assert len(plan) == ROUNDS and len(met) == 7 * 4 and min(met.values()) > ROUNDS / 28 / 4, met


@pytest.mark.parametrize("plan", [crash_plan, soak_plan])
def test_a_seed_is_a_plan(plan) -> None:
    seeds = (7, 8, 7 + 2**31)
    plans = [plan(seed) for seed in seeds]
    for i, one in enumerate(plans):
        assert one == plan(seeds[i]), "a seed repeats"
        for other in plans[:i]:
            same = sum(a == b for a, b in zip(one, other))
            assert same < ROUNDS / 50, "another seed is another plan"
            assert not set(one[:5]) & set(other), "nor is it the same one from elsewhere"


def test_all_shells_agree() -> None:
    assert crash_plan(7, SHELLS[0]) == crash_plan(7, SHELLS[1])
    assert soak_plan(7, SHELLS[0]) == soak_plan(7, SHELLS[1])


def test_two_runs_differ() -> None:
    """Without a seed each run has another one, and says which."""
    source = (TESTS / "soak.py").read_text(encoding="utf-8")
    assert '"--seed", type=int, default=int(time.time())' in source
    assert 'say(f"# seed {args.seed}")' in source


# --- answers ---------------------------------------------------------------------------------

SID = "sbx_" + "0123456789abcdef" * 2
OTHER = "sbx_" + "f" * 32
EXIT = '{"type":"exit","data":%d,"exit_code":%d,"termination_reason":"%s","seq":1,"ts":2}\n'


def whole(status: str, body: str) -> str:
    return f"HTTP/1.1 {status}\r\nDate: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def chunked(*parts: str, end: str = "0\r\n\r\n") -> str:
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + "".join(f"{len(p):x}\r\n{p}\r\n" for p in parts) + end


def said(error: str, code: str) -> str:
    return f'{{"error":"{error}","code":"{code}"}}'


def ran(out: str, code: int, reason: str, err: str = "") -> list[str]:
    lines = ['{"type":"started","seq":0}\n', f'{{"type":"stdout","data":"{out}\\n","seq":0,"ts":1}}\n']
    if err:
        lines.append(f'{{"type":"stderr","data":"{err}\\n","seq":0,"ts":1}}\n')
    return [*lines, EXIT % (code, code, reason)]


READY = f'{{"id":"{SID}","state":"ready","template":"default"}}'
FAILED = said("it ended", "fork_failed")
FORKED = f'{{"children":["{SID}","{OTHER}"],"results":[{READY},{READY}],"pause_us":1}}'
HALF = f'{{"children":[null,"{OTHER}"],"results":[{FAILED},{READY}],"pause_us":1}}'
LINES = ran("42", 0, "exited")
ENDED = ran("", -1, "vm_ended", "podflare: sandbox ended: killed by signal 9")
ANSWERS = {
    "created": ("create", "", whole("200 OK", READY), "good"),
    "created, spaced": ("create", "", whole("200 OK", READY.replace(":", ": ")), "good"),
    "created and ended": ("create", "", whole("200 OK", READY.replace("ready", "ended")), "lie"),
    "created nothing": ("create", "", whole("200 OK", "{}"), "lie"),
    "not created": ("create", "", whole("503 X", said("it did not start", "create_failed")), "error"),
    "no template": ("create", "", whole("503 X", said("killed", "template_failed")), "error"),
    "no word": ("create", "", whole("503 X", said("", "create_failed")), "lie"),
    "no code": ("create", "", whole("503 X", '{"error":"it did not start"}'), "lie"),
    "no JSON": ("create", "", whole("503 X", "<html>"), "lie"),
    "of another request": ("create", "", whole("503 X", said("it has ended", "fork_failed")), "lie"),
    "another status": ("create", "", whole("500 X", said("it did not start", "create_failed")), "lie"),
    "internal": ("run", "42", whole("500 X", said("out of memory", "internal")), "lie"),
    "cut off": ("create", "", whole("200 OK", READY)[:-1], "broken"),
    "no head": ("create", "", "HTTP/1.1 200 OK\r\nContent-", "broken"),
    "nothing": ("create", "", "", "broken"),
    "ran": ("run", "42", chunked(*LINES), "good"),
    "ran, lines cut anywhere": ("run", "42", chunked("".join(LINES)[:50], "".join(LINES)[50:]), "good"),
    "ran, and said nothing": ("run", "42", chunked(*ran("", 0, "exited")), "lie"),
    "ran into an error": ("run", "42", chunked(*ran("", 1, "exited", "Traceback")), "lie"),
    "no exit": ("run", "42", chunked(*LINES[:-1]), "lie"),
    "no end": ("run", "42", chunked(*LINES, end=""), "broken"),
    "half a chunk": ("run", "42", chunked(*LINES, end="ff\r\n{}"), "broken"),
    "its proxy was killed": ("run", "hello", chunked(*ran("", 56, "exited", "curl: (56) x")), "error"),
    "failed without a word": ("run", "hello", chunked(*ran("", 56, "exited")), "lie"),
    "killed": ("run", "42", chunked(*ENDED), "error"),
    "killed, no reason": ("run", "42", chunked(*ran("", -1, "vm_ended")), "lie"),
    "timed out": ("run", "42", chunked(*ran("", 124, "timeout")), "lie"),
    "ended before": ("run", "42", whole("409 X", said("it has ended", "sandbox_ended")), "error"),
    "forked": ("fork", "", whole("200 OK", FORKED), "good"),
    "half forked": ("fork", "", whole("200 OK", HALF), "good"),
    "half forked, no reason": ("fork", "", whole("200 OK", HALF.replace(FAILED, "null")), "lie"),
    "one too few": ("fork", "", whole("200 OK", FORKED.replace(f',"{OTHER}"', "")), "lie"),
    "not forked": ("fork", "", whole("503 X", FAILED), "error"),
    "deleted": ("delete", "", "HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n", "good"),
    "deleted with a body": ("delete", "", whole("200 OK", "{}"), "lie"),
    "not there": ("delete", "", whole("404 X", said("no such sandbox", "sandbox_not_found")), "error"),
    "not deleted": ("delete", "", whole("409 X", said("it has ended", "sandbox_ended")), "lie"),
}


@pytest.mark.parametrize("shell", SHELLS, ids=["sh", "busybox"])
@pytest.mark.parametrize("name", ANSWERS)
def test_verdicts(name: str, shell: list[str], tmp_path: Path) -> None:
    kind, want, reply, verdict = ANSWERS[name]
    (tmp_path / "reply").write_text(reply, encoding="utf-8", newline="")
    if shell[0] == "busybox":  # its awk as well
        (tmp_path / "awk").symlink_to("/bin/busybox")
    script = f'PATH={tmp_path}:$PATH; . ./client; answer "$1" | verdict "$2" "$3"'
    out = run([*shell, "-c", script, "sh"], str(tmp_path / "reply"), kind, want)
    assert out.split()[0] == verdict and out.count("\n") == 1, out


# A stand-in for nc: the daemon answers as told, or is killed meanwhile.
NC = """#!/bin/sh
{meanwhile}
cat {reply}
"""


@pytest.mark.parametrize(
    "before,meanwhile,reply,lies",
    [
        ("", "", "", True),
        ("", "echo 1 >killed; echo down >down", "", False),
        ("", "echo 1 >killed", "", False),
        ("echo down >down", "rm down", "", False),
        ("echo down >down", "", "", False),
        ("", "echo 1 >killed; echo down >down", whole("200 OK", "{}"), True),
        ("", "", whole("200 OK", READY), False),
    ],
)
def test_a_connection_breaks_with_its_daemon_only(
    before: str, meanwhile: str, reply: str, lies: bool, tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text(reply, encoding="utf-8", newline="")
    nc = tmp_path / "bin/nc"
    nc.parent.mkdir()
    nc.write_text(NC.format(meanwhile=meanwhile, reply=tmp_path / "answer"))
    nc.chmod(0o755)
    script = f"""
        URL=http://127.0.0.1:1; WORK={tmp_path}; FATE=$WORK; PATH=$WORK/bin:$PATH
        . ./client
        cd $WORK; mkfifo request; exec 9<>request; echo 0 >killed; {before or ':'}
        asked create POST /v1/sandboxes '{{}}' || :
    """
    run(["sh", "-c", script])
    assert os.path.exists(tmp_path / "lies") == lies, (tmp_path / "verdicts").read_text()


# --- processes that are left -----------------------------------------------------------------

# As the daemon starts VMMs: no environment, a process group of its own; whoever started it ends.
PLANT = """
import os
null = os.open("/dev/null", os.O_RDWR)
for fd in (1, 2):
    os.dup2(null, fd)
os.posix_spawn("/bin/sleep", ["podflare-vmm", "1000"], {}, setpgroup=0)
"""


def test_what_has_no_environment_is_found() -> None:
    process = Process([sys.executable, "-c", PLANT])
    try:
        assert process.wait(30) == 0, process.output()
        assert list(process.descendants().values()) == ["podflare-vmm 1000 "]
    finally:
        process.kill()
    wait_until("it is gone", lambda: not process.descendants(), 10)


def test_what_left_the_session_is_found() -> None:
    process = Process(["sh", "-c", "setsid --fork sleep 1000 >/dev/null 2>&1"])
    try:
        assert process.wait(30) == 0, process.output()
        wait_until("it is there", lambda: list(process.descendants().values()) == ["sleep 1000 "], 10)
    finally:
        process.kill()


# A parent whose child, of this name, lives; and then waits to be reaped.
PARENT = """
import os, sys
pid = os.posix_spawn(sys.argv[1], [sys.argv[1], "1000"], {})
print(pid, flush=True)
sys.stdin.readline()
os.kill(pid, 9)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print("ended", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("name", ["podflare-vmm", "podflare-egress", "podflare-other"])
def test_strays_are_found(name: str, tmp_path: Path) -> None:
    """A daemon's VMMs and proxies are none while they live; those of nobody, and those that nobody reaps,
    are. Others on this machine may be there as well."""
    program = tmp_path / name
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)

    def strays(daemon: int, others: str = "none") -> set[int]:
        script = '. ./common; daemon=$1 others=$2; strays; rm -r "$LOG" "$WORK"'
        return {int(pid) for pid in run(["sh", "-c", script, "sh"], str(daemon), others).split()}

    with subprocess.Popen(
        [sys.executable, "-c", PARENT, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            pid = int(parent.stdout.readline())
            ours = name != "podflare-other"
            assert pid not in strays(parent.pid)
            assert (pid in strays(os.getpid())) == ours
            assert pid not in strays(os.getpid(), f"1\n{pid}")
            print(file=parent.stdin, flush=True)
            assert parent.stdout.readline() == "ended\n"
            assert (pid in strays(parent.pid)) == ours
        finally:
            parent.kill()
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
