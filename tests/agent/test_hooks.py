# SPDX-License-Identifier: Apache-2.0
"""Hooks that a renewal runs: those of the image, and functions of the session."""

from __future__ import annotations

import os
import time
from pathlib import Path

import broken_directories
import pytest
from agent_client import THAW, begun
from conftest import Agent
from copies import freeze, renew, stands_still, ticks


def test_python_hook_that_raises(own: Agent) -> None:
    with own.stream() as s:
        s.python("def bad(g): raise ValueError('no key')\npodflare.on_fork(bad);")
    ticking = own.stream()
    ticking.start("print('on', flush=True)\nwhile True: open('t', 'a').write('x\\n'); time.sleep(0.01)",
                  "python")
    begun(ticking)
    freeze(own)
    error = renew(own)
    assert error["code"] == "io_error"
    assert "in bad" in str(error["message"]) and "ValueError: no key" in str(error["message"])
    with own.stream() as s:
        assert s.status()["frozen"] is True
        assert s.ask(THAW)["code"] == "bad_request"
        r = s.bash("true")
        assert r.error is not None and r.error["code"] == "busy"
    assert stands_still(own.home / "t")
    assert "ValueError" in str(renew(own, generation=2)["message"])


def test_hooks(own: Agent) -> None:
    log = own.dir / "hooks.log"
    text = f'echo "{{0}} $PODFLARE_FORK_GENERATION $PODFLARE_FORK_KIND $PODFLARE_SANDBOX_ID $(id -u)" >>{log}\n'
    own.hook("20-second", text.format("second"))
    own.hook("10-first", text.format("first") + "sleep 0.2\n")
    own.hook(".hidden", "exit 1")
    own.hook("30-off", "exit 1")
    (own.hooks / "30-off").chmod(0o644)
    with own.stream() as s:
        s.python(f"podflare.on_fork(lambda g: open('hook.log', 'a').write('python\\n'));")
    freeze(own)
    assert renew(own, generation=5, kind="create") == {}
    uid = os.geteuid()
    assert log.read_text().splitlines() == [
        f"first 5 create sbx_0123456789abcdef {uid}",
        f"second 5 create sbx_0123456789abcdef {uid}",
    ]
    assert (own.home / "hook.log").read_text() == "python\n"


def test_session_waits_for_the_hooks(own: Agent) -> None:
    """Not one line of the user's code runs before the hooks have ended."""
    own.hook("10-slow", f"wc -l <{own.home}/t >{own.dir}/a; sleep 0.5; wc -l <{own.home}/t >{own.dir}/b")
    ticking = own.stream()
    ticking.start("print('on', flush=True)\nfor n in range(400):\n"
                  "    open('t', 'a').write('x\\n'); time.sleep(0.005)", "python")
    begun(ticking)
    time.sleep(0.2)
    freeze(own)
    before = ticks(own.home / "t")
    assert renew(own) == {}
    ticking.close()
    assert int((own.dir / "a").read_text()) == int((own.dir / "b").read_text()) == before
    with own.stream() as s:
        assert s.python("print('on')").stdout == b"on\n"
    assert ticks(own.home / "t") == 400


def test_hook_that_fails(own: Agent) -> None:
    own.hook("10-good", f"echo x >>{own.dir}/good")
    own.hook("20-bad", "echo 'the reason' >&2; exit 3")
    own.hook("30-never", f"echo x >>{own.dir}/never")
    freeze(own)
    error = renew(own)
    assert error["code"] == "io_error"
    assert error["message"] == "the hook 20-bad failed with exit status 3: the reason"
    assert not (own.dir / "never").exists()
    with own.stream() as s:
        assert s.status()["frozen"] is True and s.ask(THAW)["code"] == "bad_request"
    own.hook("20-bad", "true")
    assert renew(own) == {}
    assert ticks(own.dir / "good") == 2
    with own.stream() as s:
        assert s.bash("echo on").stdout == b"on\n"
        assert s.python("print(1)").stdout == b"1\n"


def test_hook_that_does_not_end(own: Agent) -> None:
    own.hook("10-slow", "echo waiting >&2; sleep 60")
    freeze(own)
    began = time.monotonic()
    error = renew(own)
    assert 9 < time.monotonic() - began < 14
    assert "10-slow did not end within 10 s: waiting" in str(error["message"])


def test_hook_that_leaves_something_behind(own: Agent) -> None:
    own.hook("10-server", f"(while :; do echo x >>{own.dir}/t; sleep 0.05; done) &")
    freeze(own)
    assert renew(own) == {}
    assert not stands_still(own.dir / "t")
    if not own.cgroup:
        os.system(f"pkill -f {own.dir}/t")


def test_a_directory_of_hooks_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that is left out would be a copy that is not its own."""
    broken_directories.load(tmp_path, monkeypatch)
    agent = Agent()
    try:
        place = broken_directories.make(agent.etc)
        agent.hooks.rmdir()
        agent.hooks.symlink_to(place)
        freeze(agent)
        error = renew(agent)
        assert error["code"] == "io_error" and "cannot take the hooks in" in error["message"]
    finally:
        agent.stop()
