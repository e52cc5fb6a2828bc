#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The long test: many creates, forks and copies, and whether all that was taken is given back.

    tests/soak.py [--build DIR] [--quick] [--only PART ...] [--cycles N] [--forks N] [--children N]
                  [--depth N] [--idle N] [--kills N] [--crashes N] [--group-crashes N]
                  [--emulators N] [--seed N]

Parts, in order:
  unique   CHILDREN copies at once, and every source of random numbers in each of them
  depth    a lineage of DEPTH forks
  host     beside the daemon (tests/soak.sh): CYCLES times create and close, FORKS times fork and
           close, IDLE children alive at once with their memory, KILLS times kill -9 during a fork;
           processes, descriptors, memory and disk come back to where they were
  crash    beside the daemon (tests/crash.sh): CRASHES times kill -9 of the daemon, a template, a
           sandbox or an egress proxy while clients work
  groups   the same GROUP-CRASHES times, with a delegated control group for each VM (as root)
  emulator EMULATORS times kill -9 of the emulated host's QEMU, while it starts or clients work; each
           start is on what the one before has left (tests/e2e/emulator.py)

SEED decides what is killed and when; it is printed, and the same one repeats a run's plan.

Progress appears as it is made; a line for each check; at the end `N passed, N failed`. In the
emulated host all of it takes long; --quick does a tenth of everything.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "sdk" / "python"), str(ROOT / "tests" / "e2e")]

import emulator  # noqa: E402
from guest import py, sh, together, values  # noqa: E402
from served import Process, Served, free_port  # noqa: E402
from test_uniqueness import PREPARE, assert_distinct  # noqa: E402

from podflare import Client, Sandbox  # noqa: E402

NUMPY = """
before_numpy = draw
def draw():
    import numpy
    return {
        **before_numpy(),
        "numpy legacy": numpy.random.random(),
        "numpy default_rng": numpy.random.default_rng().random(),
        "numpy RandomState": numpy.random.RandomState().random_sample(),
    }
for _ in range(3):
    draw()
"""


def say(text: str) -> None:
    print(text, flush=True)


class Checks:
    """What passed and what failed."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def ok(self, text: str) -> None:
        self.passed += 1
        say(f"ok - {text}")

    def not_ok(self, text: str) -> None:
        self.failed += 1
        say(f"not ok - {text}")

    def run(self, what: str, check: Callable[[], str]) -> None:
        """One check; what it returns is added to its line."""
        start = time.monotonic()
        try:
            more = check()
        except Exception:
            traceback.print_exc()
            self.not_ok(what)
        else:
            self.ok(f"{what}{more} ({time.monotonic() - start:.0f} s)")


def unique(client: Client, template: str, children: int) -> str:
    """All copies at once, asked twice."""
    with Sandbox(client=client, template=template) as parent:
        py(parent, PREPARE)
        if py(parent, "import importlib.util as u; print(u.find_spec('numpy') is not None)") == "True\n":
            py(parent, NUMPY)
        with parent.fork(children) as copies:
            say(f"# {children} copies of {template} in {(copies.ready_us or 0) / 1e6:.1f} s")
            everyone = [*copies, parent]
            sources = 0
            for _ in range(2):
                draws = together(lambda s: values(s, "print(json.dumps(draw()))"), everyone)
                assert_distinct(draws)
                sources = len(draws[0])
            say(f"# {sources} sources, twice: all distinct")
            names = together(lambda s: sh(s, "hostname; cat /etc/machine-id"), everyone)
            assert len(set(names)) == len(everyone)
    return f": {sources} sources"


def lineage(client: Client, depth: int) -> str:
    """Each level knows what all before it did; every second one ends before its child's child."""
    taken = []
    with Sandbox(client=client) as root:
        py(root, "levels = [0]")
        sh(root, "mkdir /home/user/levels && echo 0 > /home/user/levels/00")
        line = [root]
        try:
            for level in range(1, depth + 1):
                start = time.monotonic()
                child = line[-1].fork()[0]
                taken.append(time.monotonic() - start)
                if level % 2 == 0:
                    line[-1].close()
                line.append(child)
                py(child, f"levels.append({level})")
                sh(child, f"echo {level} > /home/user/levels/{level:02}; sync")
                if level % 8 == 0:
                    say(f"# level {level} of {depth}, this fork took {taken[-1] * 1000:.0f} ms")
            last = line[-1]
            assert py(last, "print(levels)") == f"{list(range(depth + 1))}\n"
            assert sh(last, "cat /home/user/levels/*").split() == [
                str(level) for level in range(depth + 1)
            ]
            assert last.info().generation == root.info().generation + depth
            assert py(root, "print(levels)") == "[0]\n"
        finally:
            for one in line[1:]:
                one.close()
    quarter = max(1, depth // 4)
    early, late = sum(taken[:quarter]) / quarter, sum(taken[-quarter:]) / quarter
    return f": a fork took {early * 1000:.0f} ms at its beginning, {late * 1000:.0f} ms at its end"


def nothing_left(client: Client) -> str:
    left = Sandbox.list(client=client)
    assert not left, left
    return ""


def ended(served: Served) -> str:
    served.stop()
    return ""


def from_outside(args: argparse.Namespace, checks: Checks, state: Path) -> None:
    """The parts that need a daemon and the SDK only."""
    env = {
        "PODFLARE_MAX_FORK": str(max(32, args.children)),
        # A hundred shells at once on one emulated processor are slow, not dead.
        "PODFLARE_PONG_WITHIN": "300",
    }
    served = Served(args.build, state, env=env)
    try:
        served.wait_ready()
        with Client(host=served.url) as client:
            if "unique" in args.only:
                for template in (one.name for one in client.templates()):
                    checks.run(
                        f"{args.children} copies of {template} are nobody's twins",
                        lambda: unique(client, template, args.children),
                    )
            if "depth" in args.only:
                checks.run(f"a lineage of {args.depth}", lambda: lineage(client, args.depth))
            checks.run("no sandbox is left", lambda: nothing_left(client))
    finally:
        checks.run("the daemon ends, and all it started", lambda: ended(served))


def emulators(args: argparse.Namespace, checks: Checks, state: Path) -> None:
    """The machine around the daemon, killed again and again."""
    ids: list[str] = []
    for n in range(1, args.emulators + 1):

        def once() -> str:
            nonlocal ids
            when, ids = emulator.life(args.build, state, args.seed + n, ids)
            return f": {when}"

        checks.run(f"kill {n} of {args.emulators} of QEMU (seed {args.seed + n})", once)

    def last() -> str:
        emulator.last_life(args.build, state, ids)
        return ""

    checks.run("the start behind them works, and stops in good order", last)


def beside_the_daemon(
    args: argparse.Namespace, checks: Checks, scratch: Path, name: str, values: list[object]
) -> None:
    """A script of tests/ with its arguments, where the VMMs are."""
    script, box = ROOT / "tests" / name, ROOT / "tests" / "e2e" / "box"
    arguments = [str(one) for one in values]
    if args.emulated:
        added = [f"--add={box / file}" for file in ("common", "client", "egress.json")]
        argv = [str(args.build / "podflare"), "box", "run", *added]
        process = Process([*argv, str(script), *arguments])
    else:
        port = free_port()
        applets = scratch / "applets"
        applets.mkdir(exist_ok=True)
        for applet in ("wget", "nc"):
            (applets / applet).unlink(missing_ok=True)
            (applets / applet).symlink_to("/bin/busybox")
        daemon = [
            str(args.build / "podflared"),
            f"--addr=127.0.0.1:{port}",
            f"--state={scratch / 'host'}",
            f"--guest={args.build / 'guest'}",
            f"--vmm={args.build / 'podflare-vmm'}",
            f"--egress-config={box / 'egress.json'}",
        ]
        process = Process(
            ["sh", str(script), *arguments],
            {
                "DAEMON": shlex.join(daemon),
                "URL": f"http://127.0.0.1:{port}",
                "STATE": str(scratch / "host"),
                "PATH": f"{applets}:{os.environ['PATH']}",
            },
            cwd=box,
        )
    shown, over = 0, False
    try:
        while not over:
            over = process.process.poll() is not None
            if over:
                process.wait(10)
            else:
                time.sleep(0.5)
            text = process.output()
            whole = len(text) if over else text.rfind("\n") + 1
            for line in text[shown:whole].splitlines():
                say(line)
                checks.passed += line.startswith("ok - ")
                checks.failed += line.startswith("not ok - ")
            shown = whole
        if process.process.returncode and not process.output().count("\nnot ok - "):
            checks.not_ok(f"the script ended with status {process.process.returncode}")
    finally:
        process.kill()


def emulated(build: Path) -> bool:
    """Whether guests can run in the emulated host only."""
    facts = subprocess.run(
        [str(build / "podflare"), "doctor", "--json"], capture_output=True, text=True, check=False
    )
    return bool(json.loads(facts.stdout)["mode"] != "hardware")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("unique", "depth", "host", "crash", "groups", "emulator")
    defaults = {
        "cycles": 1000,
        "forks": 200,
        "children": 100,
        "depth": 32,
        "idle": 200,
        "kills": 200,
        "crashes": 200,
        "group_crashes": 100,
        "emulators": 10,
    }
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="build directory")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="only these parts")
    for name, number in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{number} if not given")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the clock if not given")
    args = parser.parse_args()
    args.build = args.build.resolve()
    for name, number in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, max(2, number // 10) if args.quick else number)
    args.emulated = emulated(args.build)

    checks = Checks()
    say(f"# seed {args.seed}")
    say(f"# guests run in {'the emulated host' if args.emulated else 'hardware'}")
    with tempfile.TemporaryDirectory() as scratch:
        if "unique" in args.only or "depth" in args.only:
            from_outside(args, checks, Path(scratch, "state"))
        if "host" in args.only:
            numbers = [args.cycles, args.forks, args.idle, args.kills, args.seed]
            beside_the_daemon(args, checks, Path(scratch), "soak.sh", numbers)
        if "crash" in args.only:
            beside_the_daemon(args, checks, Path(scratch), "crash.sh", [args.crashes, args.seed])
        if "groups" in args.only and not args.emulated and os.geteuid() != 0:
            say("# groups: left out, as only root can delegate a control group")
        elif "groups" in args.only:
            beside_the_daemon(
                args, checks, Path(scratch), "crash.sh", [args.group_crashes, args.seed, "cgroups"]
            )
        if "emulator" in args.only and not args.emulated:
            say("# emulator: left out, as guests run in hardware")
        elif "emulator" in args.only:
            emulators(args, checks, Path(scratch, "emulator"))
    say(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed or not checks.passed else 0


if __name__ == "__main__":
    sys.exit(main())
