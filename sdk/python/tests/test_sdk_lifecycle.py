# SPDX-License-Identifier: Apache-2.0
"""Creating, finding and closing sandboxes."""

from __future__ import annotations

import pytest

import podflare
from fake_daemon import DESCRIPTION, SANDBOX_ID, FakeDaemon
from podflare import Client, Sandbox

DELETED = ("DELETE", f"/v1/sandboxes/{SANDBOX_ID}")


def calls(daemon: FakeDaemon) -> list[tuple[str, str]]:
    return [(r.method, r.path) for r in daemon.requests]


def test_create_sends_only_what_was_asked(daemon: FakeDaemon):
    Sandbox()
    Sandbox(persistent=False)
    Sandbox(
        template="default",
        egress=False,
        memory_mib=256,
        vcpus=2,
        metadata={"a": "b"},
    )
    assert [r.json for r in daemon.requests] == [
        {},
        {},
        {
            "template": "default",
            "egress": False,
            "memory_mib": 256,
            "vcpus": 2,
            "metadata": {"a": "b"},
        },
    ]


def test_persistent_is_given_or_refused_but_never_ignored(daemon: FakeDaemon):
    with pytest.raises(podflare.InvalidRequestError, match="persistent"):
        Sandbox(persistent=True)
    assert calls(daemon)[-1] == DELETED
    reply = {**DESCRIPTION, "persistent": True}
    daemon.on("POST", "/v1/sandboxes", lambda r: r.reply(200, reply))
    assert Sandbox(persistent=True).id == SANDBOX_ID
    assert daemon.requests[-1].json == {"persistent": True}


def test_arguments_are_by_name_only(daemon: FakeDaemon):
    with pytest.raises(TypeError):
        Sandbox("default")  # type: ignore[misc]


def test_context_manager_closes(daemon: FakeDaemon):
    with Sandbox() as s:
        assert s.id == SANDBOX_ID
        assert "open" in repr(s)
    assert "closed" in repr(s)
    assert calls(daemon)[-1] == DELETED


def test_context_manager_closes_on_exception_and_lets_it_out(daemon: FakeDaemon):
    with pytest.raises(ZeroDivisionError):
        with Sandbox():
            1 / 0
    assert calls(daemon)[-1] == DELETED


def test_a_failing_close_does_not_hide_the_exception(daemon: FakeDaemon):
    daemon.on(*DELETED, lambda r: r.reply(500, {"error": "no"}))
    with pytest.raises(ZeroDivisionError):
        with Sandbox():
            1 / 0
    with pytest.raises(podflare.ServerError):
        with Sandbox():
            pass


def test_close_is_idempotent_and_forgives_a_sandbox_that_is_gone(daemon: FakeDaemon):
    s = Sandbox()
    s.close()
    s.close()
    assert calls(daemon).count(DELETED) == 1
    s = Sandbox()
    daemon.on(*DELETED, lambda r: r.reply(404, {"error": "sandbox not found"}))
    s.close()


def test_close_that_failed_can_be_tried_again(daemon: FakeDaemon):
    s = Sandbox()
    daemon.on(*DELETED, lambda r: r.reply(500, {"error": "no"}))
    with pytest.raises(podflare.ServerError):
        s.close()
    daemon.on(*DELETED, lambda r: r.reply(204))
    s.close()
    assert calls(daemon).count(DELETED) == 2


def test_shared_client_outlives_its_sandboxes(daemon: FakeDaemon):
    with Client() as client:
        with Sandbox(client=client), Sandbox(client=client):
            pass
        assert Sandbox(client=client).info().state == "ready"
    with pytest.raises(ValueError, match="client="):
        Sandbox(client=client, host="http://127.0.0.1:1")


def test_connect(daemon: FakeDaemon):
    s = Sandbox.connect(SANDBOX_ID)
    assert s.id == SANDBOX_ID
    s.close()
    assert calls(daemon) == [("GET", DELETED[1]), DELETED]
    with pytest.raises(podflare.SandboxNotFoundError):
        Sandbox.connect("sbx_" + "f" * 32)
    ended = {**DESCRIPTION, "state": "ended", "ended_reason": "the guest powered itself off"}
    daemon.on("GET", DELETED[1], lambda r: r.reply(200, ended))
    with pytest.raises(podflare.SandboxEndedError, match="powered itself off"):
        Sandbox.connect(SANDBOX_ID)


def test_info_and_list(daemon: FakeDaemon):
    reply = {**DESCRIPTION, "exec_count": 3, "metadata": {"k": "v"}, "of_tomorrow": 1}
    daemon.on("GET", DELETED[1], lambda r: r.reply(200, reply))
    daemon.on("GET", "/v1/sandboxes", lambda r: r.reply(200, {"sandboxes": [reply, DESCRIPTION]}))
    info = Sandbox().info()
    assert (info.id, info.state, info.exec_count) == (SANDBOX_ID, "ready", 3)
    assert info.metadata == {"k": "v"} and info.egress == podflare.Egress()
    assert info.raw["of_tomorrow"] == 1
    assert [one.exec_count for one in Sandbox.list()] == [3, None]
