"""The rehearsal of a template: seen by nobody, and without harm when it fails."""

import json
from collections.abc import Callable

import pytest

from conftest import Daemon, stdout_of, wait_for


def test_once_a_template(start: Callable[..., Daemon]) -> None:
    """It is gone when the template is ready; creates and forks do not repeat it."""
    d = start()
    d.templates_ready()
    wait_for(lambda: len(d.children()) == 1)
    assert d.http.get("/v1/sandboxes").json()["sandboxes"] == []
    assert d.http.get("/v1/tree").json()["roots"] == []
    sid = d.create()
    d.create()
    d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 2})
    assert d.log_text().count("template rehearsed") == 1
    assert d.http.get("/v1/templates").json()["templates"][0]["vms"][0]["hot_pages"] == 600
    assert "ready_pages=600 call_pages=0" in d.log_text()
    # What it recorded is the template's affair: sandboxes start with nothing of it.
    assert stdout_of(d.exec(sid, "#fake:get recorded")) == "0"


def test_first_call_is_announced(start: Callable[..., Daemon]) -> None:
    """To the VMM: also in a copy of one that was called, and in what was copied, which shares its
    pages again. That one is told of what the agent needs at once, too, once for all copies."""
    d = start()
    sid = d.create()

    def warmed(sid: str) -> list[int]:
        return json.loads(stdout_of(d.exec(sid, "#fake:get warmed")))

    ready, call = 0, 1
    wait_for(lambda: warmed(sid) == [call])  # it comes beside the command, not before it
    child = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 3}).json()["children"][0]
    wait_for(lambda: warmed(child) == [call, call])  # one of these is its parent's
    wait_for(lambda: warmed(sid) == [call, ready, call])
    for _ in range(3):
        assert warmed(sid) == [call, ready, call] and warmed(child) == [call, call]


@pytest.mark.parametrize(
    "how",
    [
        "rehearsal:error",
        "rehearsal:lie zero",
        "rehearsal:child-dies",
        "rehearsal:child-exits",
        "rehearsal:renew-error",
        "rehearsal:renew-close",
        "rehearsal:silent",
        "rehearsal:exec-error",
        "rehearsal:record-error",
        "rehearsal:record-dies",
        "learn-error",
    ],
)
def test_it_fails(start: Callable[..., Daemon], how: str) -> None:
    """The template is used without, and nothing of it is left."""
    d = start(mode=how, env={"PODFLARE_CREATE_TIMEOUT": "2"})
    d.templates_ready()
    assert "template default: no rehearsal: " in d.log_text()
    assert "template rehearsed" not in d.log_text()
    sid = d.create()
    assert stdout_of(d.exec(sid, "echo fine")) == "fine"
    wait_for(lambda: len(d.children()) == 2)


def test_an_answer_too_many(start: Callable[..., Daemon]) -> None:
    d = start(mode="rehearsal:record-twice")
    d.templates_ready()
    assert stdout_of(d.exec(d.create(), "echo fine")) == "fine"


@pytest.mark.parametrize("how", ["learn-dies", "learn-hang"])
def test_the_template_fails(start: Callable[..., Daemon], how: str) -> None:
    """It ends like one that fails earlier, within its time."""
    d = start(mode=how, env={"PODFLARE_TEMPLATE_TIMEOUT": "3"})
    r = d.http.post("/v1/sandboxes")
    assert r.status_code == 503
    assert r.json()["code"] == "template_failed"
    wait_for(lambda: d.children() == [])


def test_stop_meanwhile(start: Callable[..., Daemon]) -> None:
    d = start(mode="rehearsal:silent")
    wait_for(lambda: len(d.children()) == 2)
    assert d.stop() == 0
