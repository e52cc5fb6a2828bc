# SPDX-License-Identifier: Apache-2.0
"""fork, merge_into, diff, tree, templates; race and map."""

from __future__ import annotations

import base64
import threading
import time

import pytest

import podflare
from fake_fleet import FakeFleet
from podflare import Client, Sandbox


def asked(fleet: FakeFleet, method: str, end: str) -> list:
    return [r for r in fleet.requests if r.method == method and r.path.endswith(end)]


def threads_of_helpers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if "_run" in t.name]


def test_disk_mib_is_asked_for_and_told(fleet: FakeFleet):
    with Sandbox(disk_mib=64) as s:
        assert fleet.requests[0].json == {"disk_mib": 64}
        info = s.info()
        assert (info.disk_mib, info.parent, info.children, info.generation) == (64, None, (), 0)
        assert (info.disk_errors, info.source, info.ready_us) == (0, "pool", 1234)


def test_fork(fleet: FakeFleet):
    with Sandbox(metadata={"a": "b"}) as s:
        children = s.fork(3)
        assert asked(fleet, "POST", "/fork")[0].json == {"n": 3, "reseed": True}
        assert isinstance(children, list) and len({c.id for c in children} | {s.id}) == 4
        assert (children.pause_us, children.ready_us) == (800, 5000)
        assert s.info().children == tuple(c.id for c in children)
        for child in children:
            info = child.info()
            assert (info.parent, info.generation, info.source) == (s.id, 1, "fork")
            assert info.metadata == {"a": "b"}
        (grandchild,) = children[0].fork()
        assert grandchild.info().generation == 2
        s.fork(reseed=False)
        assert asked(fleet, "POST", "/fork")[-1].json == {"n": 1, "reseed": False}


def test_not_forkable(fleet: FakeFleet):
    """Asked for by one word, which every other sandbox goes without."""
    with Sandbox(forkable=False) as s, Sandbox(forkable=True) as other:
        wishes = asked(fleet, "POST", "/sandboxes")
        assert [r.json if r.body else {} for r in wishes] == [{"forkable": False}, {}]
        assert (s.info().forkable, other.info().forkable) == (False, True)
        assert s.run_code("print here").stdout == "here\n"
        attempts = [
            lambda: s.fork(),
            lambda: s.fork(3, forkable=False),
            lambda: s.map(["print 1"]),
            lambda: s.race(["print 1"]),
        ]
        for attempt in attempts:
            with pytest.raises(podflare.NotForkableError) as e:
                attempt()
            assert (e.value.status, e.value.code) == (409, "not_forkable")
            assert e.value.hint and isinstance(e.value, podflare.InvalidRequestError)
        assert s.info().children == ()
        assert s.run_code("print here").stdout == "here\n"


def test_copies_that_are_not_forkable(fleet: FakeFleet):
    with Sandbox() as s:
        a, b = s.fork(2, forkable=False)
        assert asked(fleet, "POST", "/fork")[-1].json == {"n": 2, "reseed": True, "forkable": False}
        assert [one.info().forkable for one in (s, a, b)] == [True, False, False]
        with pytest.raises(podflare.NotForkableError):
            a.fork()
        with pytest.raises(podflare.NotForkableError):
            a.merge_into(b)
        s.merge_into(a)  # one of them may win
        assert s.info().forkable is False
        with pytest.raises(podflare.NotForkableError):
            s.fork()
        b.close()


@pytest.mark.parametrize("value", [None, 0, 1, "no", []])
def test_forkable_is_true_or_false(fleet: FakeFleet, value: object):
    """What is meant to lock a sandbox down must not be taken for something else."""
    with pytest.raises(TypeError, match="forkable is True or False"):
        Sandbox(forkable=value)  # type: ignore[arg-type]
    assert not fleet.boxes
    with Sandbox() as s:
        with pytest.raises(TypeError, match="forkable is True or False"):
            s.fork(forkable=value)  # type: ignore[arg-type]
        assert s.info().children == ()


def test_forkable_of_an_ended_sandbox(fleet: FakeFleet):
    info = podflare.SandboxInfo.from_reply({"id": "x", "state": "ended"})
    assert info.forkable is None


def test_children_outlive_their_parent_and_its_client(fleet: FakeFleet):
    s = Sandbox()
    children = s.fork(2)
    grandchild = children[0].fork()[0]
    s.close()
    children[0].close()
    assert children[1].run_code("print here").stdout == "here\n"
    http = grandchild._client._http
    children[1].close()
    assert grandchild.run_code("print here").stdout == "here\n" and not http.is_closed
    grandchild.close()
    # The last one closed the client that the first one had made.
    assert http.is_closed and fleet.living == set()


def test_a_given_client_is_left_open(fleet: FakeFleet):
    with Client() as client:
        with Sandbox(client=client) as s, s.fork(2):
            pass
        assert fleet.living == set() and client.templates()


def test_children_as_a_with_block(fleet: FakeFleet):
    with Sandbox() as s:
        with pytest.raises(ZeroDivisionError):
            with s.fork(2) as children:
                1 / 0
        assert fleet.living == {s.id}
        with s.fork(2) as children:
            fleet.on("DELETE", f"/v1/sandboxes/{children[0].id}", lambda r: r.reply(500))
            with pytest.raises(podflare.ServerError):
                children.close()
            assert fleet.living == {s.id, children[0].id}  # the other one is closed
            fleet._answers.clear()
        assert fleet.living == {s.id}


@pytest.mark.parametrize("n", [0, -1, 33])
def test_fork_out_of_range(fleet: FakeFleet, n):
    with Sandbox() as s:
        with pytest.raises(podflare.InvalidRequestError) as e:
            s.fork(n)
        assert e.value.field == "n" and fleet.living == {s.id}


def test_partial_failure_of_fork(fleet: FakeFleet):
    with Sandbox() as s:
        fleet.fail_forks = {1, 3}
        with pytest.raises(podflare.ForkError, match="2 of 4 copies.*copy 1: no memory") as e:
            s.fork(4)
        assert [error and error.message for error in e.value.errors] == [
            None,
            "copy 1: no memory",
            None,
            "copy 3: no memory",
        ]
        assert [c.run_code("print ok").ok for c in e.value.sandboxes] == [True, True]
        for sandbox in e.value.sandboxes:
            sandbox.close()
        assert fleet.living == {s.id}


def test_full_failure_of_fork(fleet: FakeFleet):
    with Sandbox() as s:
        fleet.fail_forks = {0, 1}
        with pytest.raises(podflare.ForkError, match="no memory") as e:
            s.fork(2)
        assert isinstance(e.value, podflare.ServerError) and e.value.status == 503
        assert e.value.sandboxes == [] and len(e.value.errors) == 2
        assert all(error is not None and "no memory" in str(error) for error in e.value.errors)
        assert s.run_code("print on").stdout == "on\n"
        # A 200 in which nothing came to be means the same.
        reply = {"children": [None], "results": [{"error": "why", "code": "fork_failed"}]}
        fleet.on("POST", f"/v1/sandboxes/{s.id}/fork", lambda r: r.reply(200, reply))
        with pytest.raises(podflare.ForkError, match="1 of 1.*why") as e:
            s.fork()
        assert e.value.sandboxes == []


def test_a_daemon_that_answers_with_ids_only(fleet: FakeFleet):
    with Sandbox() as s:
        ids = [fleet.make(fleet.boxes[s.id]).id for _ in range(2)]
        fleet.on("POST", f"/v1/sandboxes/{s.id}/fork", lambda r: r.reply(200, {"children": ids}))
        children = s.fork(2)
        assert [c.id for c in children] == ids and children.pause_us is None
        children.close()


def test_merge(fleet: FakeFleet):
    with Sandbox() as s:
        children = s.fork(3)
        children[1].run_code("write /tmp/x winner")
        winner_id = children[1].id
        s.merge_into(children[1])
        assert "closed" in repr(children[1])
        assert fleet.boxes[s.id].files == {"/tmp/x": b"winner"}
        assert s.run_code("print on").stdout == "on\n"
        with pytest.raises(podflare.SandboxEndedError):
            children[1].run_code("print x")
        before = len(fleet.requests)
        children[1].close()
        assert len(fleet.requests) == before
        with pytest.raises(podflare.SandboxEndedError, match=f"{winner_id} has been closed"):
            s.merge_into(children[1])
        with pytest.raises(podflare.SandboxNotFoundError):
            s.merge_into(winner_id)
        with pytest.raises(podflare.InvalidRequestError) as e:
            s.merge_into(s)
        assert s.id not in e.value.message  # it is there
        assert s.info().state == "ready"
        assert children[0].run_code("print here").ok
        # Closing all of them, the winner included, is what many programs do.
        for child in children:
            child.close()
        assert fleet.living == {s.id}


def test_merge_by_id_and_of_strangers(fleet: FakeFleet):
    with Sandbox() as s, Sandbox() as stranger:
        (child,) = s.fork()
        s.merge_into(child.id)
        child.close()  # its object knows nothing, and it does no harm
        with pytest.raises(podflare.OtherLineageError):
            s.merge_into(stranger)
        with pytest.raises(podflare.OtherLineageError):
            s.diff(stranger)
        with pytest.raises(podflare.SandboxNotFoundError, match="no id looks like"):
            s.merge_into("a/b")
        with pytest.raises(TypeError):
            s.diff(7)  # type: ignore[arg-type]
        assert stranger.run_code("print on").ok


def test_merge_ends_calls_with_a_reason(fleet: FakeFleet):
    with Sandbox() as s:
        (child,) = s.fork()
        stream = s.run_code_stream("wait")
        results: list[podflare.Event] = []
        thread = threading.Thread(target=lambda: results.extend(stream))
        thread.start()
        while fleet.boxes[s.id].exec_count == 0:
            time.sleep(0.01)
        s.merge_into(child)
        thread.join()
        assert (results[-1].code, results[-1].extra["termination_reason"]) == (-1, "closed")


def test_diff(fleet: FakeFleet):
    with Sandbox() as s:
        s.run_code("write /tmp/kept 1\nwrite /tmp/changed 1\nwrite /root/gone 1\nwrite /etc/x 1")
        (child,) = s.fork()
        box = fleet.boxes[child.id]
        del box.files["/root/gone"]
        child.run_code("write /tmp/changed 222\nwrite /tmp/new 4444\nwrite /etc/y 1")
        diff = s.diff(child)
        assert diff == {
            "added": ["/tmp/new"],
            "removed": ["/root/gone"],
            "modified": ["/tmp/changed"],
        }
        assert isinstance(diff, dict) and not diff.empty
        assert diff.paths == ("/home/user", "/root", "/tmp")
        assert [(e.path, e.change, e.size, e.old_size, e.type) for e in diff.entries] == [
            ("/root/gone", "removed", 1, None, "file"),
            ("/tmp/changed", "modified", 3, 1, "file"),
            ("/tmp/new", "added", 4, None, "file"),
        ]
        assert (diff.entries[1].mode, diff.entries[1].old_mode) == (0o644, 0o600)
        assert child.diff(s)["added"] == ["/root/gone"]
        assert s.diff(child, paths=["/etc", "/tmp"])["added"] == ["/etc/y", "/tmp/new"]
        assert fleet.requests[-1].queries == {"path": ["/etc", "/tmp"]}
        assert s.diff(child.id, paths="/etc")["added"] == ["/etc/y"]
        assert s.diff(s).empty


def test_diff_of_names_that_are_no_text(fleet: FakeFleet):
    with Sandbox() as s:
        name = b"/tmp/\xff\xfe"
        entry = {"path_base64": base64.b64encode(name).decode(), "type": "file", "size": 1}
        reply = {"added": [{**entry, "mode": 420}], "removed": [], "modified": [], "paths": []}
        fleet.on("GET", f"/v1/sandboxes/{s.id}/diff/{s.id}", lambda r: r.reply(200, reply))
        diff = s.diff(s)
        assert diff["added"] == ["/tmp/\ufffd\ufffd"]
        assert diff.entries[0].raw_path == name


def test_tree(fleet: FakeFleet):
    with Client() as client:
        s = Sandbox(client=client)
        other = Sandbox(client=client)
        children = s.fork(2)
        (grandchild,) = children[0].fork()
        children[0].close()
        roots = client.tree()
        assert [root.id for root in roots] == [s.id, other.id]
        tree = grandchild.tree()
        assert tree == roots[0] == s.tree()
        assert [(n.id, n.state, n.generation) for n in tree.walk()] == [
            (s.id, "ready", 0),
            (children[0].id, "ended", 1),
            (grandchild.id, "ready", 2),
            (children[1].id, "ready", 1),
        ]
        found = tree.find(grandchild.id)
        assert found is not None and found.children == () and found.template == "default"
        assert tree.find(other.id) is None
        assert str(tree).splitlines()[:3] == [
            s.id,
            f"  {children[0].id} (ended)",
            f"    {grandchild.id}",
        ]
        for one in (s, other, children[1], grandchild):
            one.close()
        with pytest.raises(podflare.SandboxNotFoundError):
            s.tree()


def test_templates(fleet: FakeFleet):
    with Client() as client:
        default, datasci = client.templates()
        assert (default.name, default.default_memory_mib, default.default_disk_mib) == (
            "default",
            1024,
            4096,
        )
        assert [(vm.disk_mib, vm.state, vm.boot_ms) for vm in default.vms] == [
            (4096, "ready", 900),
            (64, "booting", None),
        ]
        assert (datasci.name, datasci.vms) == ("python-datasci", ())
        with pytest.raises(podflare.InvalidRequestError, match="default, python-datasci") as e:
            Sandbox(client=client, template="no-such")
        assert e.value.field == "template"


def test_template_that_cannot_be_made(fleet: FakeFleet):
    reply = {"error": "the warm-up of x failed", "code": "template_failed", "hint": "its console"}
    fleet.on("POST", "/v1/sandboxes", lambda r: r.reply(503, reply))
    with pytest.raises(podflare.TemplateFailedError, match="warm-up.*its console") as e:
        Sandbox()
    assert isinstance(e.value, podflare.CreateFailedError)


def test_map(fleet: FakeFleet):
    with Sandbox() as s:
        results = s.map(["sleep 0.2\nprint a", "print b\nexit 3", "print c"])
        assert [(r.stdout, r.exit_code) for r in results] == [("a\n", 0), ("b\n", 3), ("c\n", 0)]
        assert fleet.living == {s.id} and not threads_of_helpers()
        assert s.map([]) == []
        assert s.map(iter(["print x"]), "bash", reseed=False)[0].stdout == "x\n"
        assert asked(fleet, "POST", "/exec")[-1].json["language"] == "bash"
        assert asked(fleet, "POST", "/fork")[-1].json == {"n": 1, "reseed": False}


def test_map_with_a_copy_that_breaks_off(fleet: FakeFleet, monkeypatch):
    def run(box, code):
        if code == "break":
            raise ConnectionResetError
        return FakeFleet.run(fleet, box, code)

    monkeypatch.setattr(fleet, "run", run)
    with Sandbox() as s:
        with pytest.raises(podflare.StreamBrokenError):
            s.map(["wait", "break", "wait"])
        assert fleet.living == {s.id} and not threads_of_helpers()


@pytest.mark.parametrize("helper", ["map", "race"])
def test_helpers_when_not_all_copies_come_to_be(fleet: FakeFleet, helper):
    with Sandbox() as s:
        fleet.fail_forks = {1}
        with pytest.raises(podflare.ForkError):
            getattr(s, helper)(["print a", "print b", "print c"])
        assert fleet.living == {s.id}
        for codes, kind in (("print a", TypeError), ([1], TypeError), ([], ValueError)):
            if (helper, codes) != ("map", []):
                with pytest.raises(kind):
                    getattr(s, helper)(codes)
        assert len(asked(fleet, "POST", "/fork")) == 1


def test_race(fleet: FakeFleet):
    with Sandbox() as s:
        start = time.monotonic()
        r = s.race(["wait", "sleep 0.1\nwrite /tmp/x won\nprint 1", "exit 1"])
        assert time.monotonic() - start < 5
        assert r.won and r.winner == 1 and r.result is not None and r.result.stdout == "1\n"
        assert r.results[0] is None and r.results[1] is r.result
        assert r.results[2] is not None and r.results[2].exit_code == 1
        assert r.errors == (None, None, None)
        assert fleet.living == {s.id} and not threads_of_helpers()
        assert fleet.boxes[s.id].files == {"/tmp/x": b"won"}
        # The sandbox goes on, and can be forked and raced again.
        r = s.race(["print 5", "print 7"], until=lambda r: int(r.stdout) > 6, language="bash")
        assert (r.winner, asked(fleet, "POST", "/exec")[-1].json["language"]) == (1, "bash")


def test_race_without_a_winner(fleet: FakeFleet):
    with Sandbox() as s:
        r = s.race(["write /tmp/x 1\nexit 1", "exit 2"])
        assert (r.won, r.winner, r.result) == (False, None, None)
        assert [one and one.exit_code for one in r.results] == [1, 2]
        assert fleet.living == {s.id} and fleet.boxes[s.id].files == {}


def test_race_whose_condition_raises(fleet: FakeFleet):
    with Sandbox() as s:
        with pytest.raises(ZeroDivisionError):
            s.race(["print 1", "wait"], until=lambda r: 1 / 0)
        assert fleet.living == {s.id} and not threads_of_helpers()
        assert not asked(fleet, "POST", "merge_into")


def test_race_with_copies_that_break_off(fleet: FakeFleet, monkeypatch):
    def run(box, code):
        if code == "break":
            raise ConnectionResetError
        return FakeFleet.run(fleet, box, code)

    monkeypatch.setattr(fleet, "run", run)
    with Sandbox() as s:
        r = s.race(["break", "sleep 0.2"])
        assert r.winner == 1 and isinstance(r.errors[0], podflare.StreamBrokenError)
        with pytest.raises(podflare.StreamBrokenError):
            s.race(["break", "break"])
        assert fleet.living == {s.id}


def test_race_whose_merge_fails(fleet: FakeFleet, monkeypatch):
    with Sandbox() as s:

        def no(winner):
            raise podflare.ServerError("no")

        monkeypatch.setattr(s, "merge_into", no)
        with pytest.raises(podflare.ServerError, match="no"):
            s.race(["print 1", "wait"])
        assert fleet.living == {s.id} and not threads_of_helpers()


def test_use_after_close(fleet: FakeFleet):
    s = Sandbox()
    (child,) = s.fork()
    s.close()
    for use in (s.fork, lambda: s.merge_into(child), lambda: s.diff(child), lambda: s.map(["x"])):
        with pytest.raises(podflare.SandboxEndedError):
            use()
    child.close()
