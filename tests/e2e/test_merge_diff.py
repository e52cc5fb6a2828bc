# SPDX-License-Identifier: Apache-2.0
"""merge_into: a fork takes its ancestor's place. diff: what two of one lineage have written apart."""

from __future__ import annotations

import base64
import threading
from typing import Any

import httpx
import pytest
from guest import py, sh, together
from served import wait_until

import podflare
from podflare import Client, Sandbox

pytestmark = pytest.mark.limit(300)

GONE = "sbx_" + "0" * 32


def test_22_the_winner_takes_the_place(client: Client, parent: Sandbox):
    py(parent, "x = 'parent'")
    (s,) = parent.fork()
    children = s.fork(3)
    try:
        py(children[1], "x = 'winner'")
        sh(children[1], "echo winner > /tmp/who")
        py(s, "x = 'lost'")
        sh(s, "echo lost > /tmp/lost")
        before, winner_id = s.info(), children[1].id
        s.merge_into(children[1])

        assert py(s, "print(x)") == "winner\n"
        assert sh(s, "cat /tmp/who; ls /tmp/lost 2>/dev/null || echo none") == "winner\nnone\n"
        info = s.info()
        assert (info.id, info.state, info.parent) == (before.id, "ready", before.parent)
        assert info.metadata == before.metadata
        # The winner's own id is dead, its object closed, and closing it does nothing.
        with pytest.raises(podflare.SandboxNotFoundError):
            Sandbox.connect(winner_id, client=client)
        with pytest.raises(podflare.SandboxEndedError):
            children[1].run_code("print(1)")
        children[1].close()
        assert py(s, "print(x)") == "winner\n"
        # A second merge of the same one, and one into itself.
        with pytest.raises(podflare.SandboxEndedError, match=winner_id):
            s.merge_into(children[1])
        with pytest.raises(podflare.SandboxNotFoundError, match=f"^sandbox not found: {winner_id}$"):
            s.merge_into(winner_id)
        with pytest.raises(podflare.InvalidRequestError):
            s.merge_into(s)
        # Its siblings live on.
        assert together(lambda c: py(c, "print(x)"), [children[0], children[2]]) == ["parent\n"] * 2
        assert set(s.info().children) == {children[0].id, children[2].id}
        # The sandbox goes on as any other: fork, merge.
        with s.fork(2) as again:
            py(again[0], "x = 'again'")
            s.merge_into(again[0])
        assert py(s, "print(x)") == "again\n"
    finally:
        children.close()
        s.close()
    assert py(parent, "print(x)") == "parent\n"


@pytest.mark.parametrize("skip_the_winner", [False, True])
def test_23_closing_all_or_all_but_the_winner(parent: Sandbox, client: Client, skip_the_winner):
    (s,) = parent.fork()
    children = s.fork(2)
    try:
        s.merge_into(children[0])
    finally:
        for child in children:
            if not (skip_the_winner and child is children[0]):
                child.close()
    assert py(s, "print('alive')") == "alive\n"
    assert s.info().children == ()
    s.close()
    ids = {one.id for one in Sandbox.list(client=client)}
    assert not ids & {s.id, *(child.id for child in children)}


def test_merge_by_plain_http(http: httpx.Client, parent: Sandbox):
    with parent.fork() as (s,), s.fork(1) as (winner,):
        url = f"/v1/sandboxes/{s.id}/merge_into"
        reply = http.post(f"{url}/{s.id}")
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
        for path in (f"{url}/{GONE}", f"/v1/sandboxes/{GONE}/merge_into/{s.id}"):
            reply = http.post(path)
            assert (reply.status_code, reply.json()["code"]) == (404, "sandbox_not_found")
        reply = http.post(f"{url}/{winner.id}")
        assert (reply.status_code, reply.content) == (204, b"")
        dead = f"/v1/sandboxes/{winner.id}"
        for method, path, body in (
            ("GET", dead, None),
            ("POST", f"{dead}/exec", {"code": "1"}),
            ("POST", f"{dead}/fork", {"n": 1}),
            ("POST", f"{url}/{winner.id}", None),
            ("GET", f"/v1/sandboxes/{s.id}/diff/{winner.id}", None),
        ):
            reply = http.request(method, path, json=body)
            assert (reply.status_code, reply.json()["code"]) == (404, "sandbox_not_found"), path
        assert http.delete(dead).status_code == 204
        assert py(s, "print('alive')") == "alive\n"


def test_merge_with_calls_under_way(parent: Sandbox):
    """Those of the sandbox that gives way end with that reason; those of the winner go on."""
    with parent.fork() as (s,), s.fork() as (winner,):
        ending: list[podflare.Event] = []
        going: list[podflare.ExecResult] = []
        stream = s.run_code_stream("echo begun; sleep 1000", "bash")
        assert next(stream).data == "begun\n"
        threads = [
            threading.Thread(daemon=True, target=lambda: ending.extend(stream)),
            threading.Thread(
                daemon=True,
                target=lambda: going.append(
                    winner.run_code("touch /tmp/begun; sleep 3; echo through", "bash")
                ),
            ),
        ]
        for thread in threads:
            thread.start()
        wait_until("the winner's call runs", lambda: "begun" in _names(winner), 60)
        s.merge_into(winner)
        for thread in threads:
            thread.join()
        assert (ending[-1].type, ending[-1].code) == ("exit", -1)
        assert ending[-1].extra["termination_reason"] == "closed"
        assert (going[0].stdout, going[0].exit_code) == ("through\n", 0)
        assert py(s, "print('alive')") == "alive\n"


def _names(sandbox: Sandbox) -> list[str]:
    """Which of a few files are there; answered also while a call runs."""
    try:
        sandbox.download("/tmp/begun")
        return ["begun"]
    except FileNotFoundError:
        return []


def test_merge_of_others_than_children(parent: Sandbox, client: Client):
    """A grandchild, a sibling, an ancestor: one lineage is enough. A stranger is refused."""
    (s,) = parent.fork()
    py(s, "who = 's'")
    first, second = s.fork(2)
    (grandchild,) = first.fork()
    try:
        py(grandchild, "who = 'grandchild'")
        s.merge_into(grandchild)
        assert py(s, "print(who)") == "grandchild\n"
        py(first, "who = 'first'")
        second.merge_into(first)
        assert py(second, "print(who)") == "first\n"
        with Sandbox(client=client) as stranger:
            with pytest.raises(podflare.OtherLineageError) as e:
                s.merge_into(stranger)
            assert (e.value.status, e.value.code) == (409, "other_lineage")
            with pytest.raises(podflare.OtherLineageError):
                s.diff(stranger)
            assert py(stranger, "print(1)") == "1\n" and py(s, "print(2)") == "2\n"
    finally:
        for one in (grandchild, first, second, s):
            one.close()


def entries(diff: podflare.Diff) -> dict[str, podflare.DiffEntry]:
    return {entry.path: entry for entry in diff.entries}


def test_24_two_children_after_different_writes(parent: Sandbox):
    sh(
        parent,
        "mkdir -p /tmp/d && cd /tmp/d && echo same > same && echo old > changed && echo x > gone && "
        "echo mode > mode && chmod 644 mode && sudo sh -c 'echo root > /root/of_root'",
    )
    with parent.fork(2) as (a, b):
        assert a.diff(b).empty
        sh(a, "echo only-a > /tmp/d/only_a; echo another > /home/user/in_home")
        sh(
            b,
            "cd /tmp/d && echo only-b > only_b && echo newer > changed && rm gone && chmod 600 mode && "
            "echo same > same && mkdir -p new/er && echo 1 > new/er/file && ln -s only_b link && "
            "sudo sh -c 'echo changed > /root/of_root; rm -f /root/nothing'",
        )
        diff = a.diff(b)
        assert diff["added"] == [
            "/tmp/d/link",
            "/tmp/d/new",
            "/tmp/d/new/er",
            "/tmp/d/new/er/file",
            "/tmp/d/only_b",
        ]
        assert diff["removed"] == ["/home/user/in_home", "/tmp/d/gone", "/tmp/d/only_a"]
        # The same bytes written again are no change.
        assert diff["modified"] == ["/root/of_root", "/tmp/d/changed", "/tmp/d/mode"]
        assert set(diff.paths) == {"/home/user", "/root", "/tmp"}
        seen = entries(diff)
        assert (seen["/tmp/d/changed"].size, seen["/tmp/d/changed"].old_size) == (6, 4)
        assert (seen["/tmp/d/mode"].mode, seen["/tmp/d/mode"].old_mode) == (0o600, 0o644)
        assert seen["/tmp/d/link"].type == "link" and seen["/tmp/d/new"].type == "dir"
        assert seen["/tmp/d/only_b"].type == "file" and seen["/tmp/d/only_b"].size == 7
        # The other way round, and only some of it.
        back = b.diff(a)
        assert (back["added"], back["removed"]) == (diff["removed"], diff["added"])
        assert back["modified"] == diff["modified"]
        assert a.diff(b, paths=["/tmp/d/new", "/root"]) == {
            "added": ["/tmp/d/new", "/tmp/d/new/er", "/tmp/d/new/er/file"],
            "removed": [],
            "modified": ["/root/of_root"],
        }
        assert a.diff(b, paths=["/tmp/d/changed"])["modified"] == ["/tmp/d/changed"]
        assert a.diff(b, paths=["/no/such/place", "/usr/bin"]).empty
        # Against the parent, and against itself.
        assert parent.diff(a)["added"] == ["/home/user/in_home", "/tmp/d/only_a"]
        assert a.diff(a).empty


def test_diff_of_what_the_image_has(parent: Sandbox):
    """Files and directories of the read-only image, removed, replaced, renamed."""
    with parent.fork(2) as (a, b):
        sh(
            b,
            "sudo rm /etc/debian_version; sudo sh -c 'echo new > /etc/issue'; "
            "sudo chmod 600 /etc/profile; sudo mv /etc/skel /etc/skeleton; "
            "sudo rm -r /etc/alternatives; sudo mkdir /etc/alternatives",
        )
        diff = a.diff(b, paths=["/etc"])
        assert "/etc/debian_version" in diff["removed"]
        assert {"/etc/issue", "/etc/profile"} <= set(diff["modified"])
        assert "/etc/skeleton" in diff["added"] and "/etc/skeleton/.bashrc" in diff["added"]
        # One entry, whatever the image has in it: looking there would cost what exists.
        assert "/etc/skel" in diff["removed"] and "/etc/skel/.bashrc" not in diff["removed"]
        alternatives = [path for path in diff["removed"] if path.startswith("/etc/alternatives/")]
        assert len(alternatives) == int(sh(a, "ls -A /etc/alternatives | wc -l"))
        seen = entries(diff)
        assert (seen["/etc/profile"].mode, seen["/etc/profile"].old_mode) == (0o600, 0o644)
        assert seen["/etc/issue"].size == 4


NAMES = ["with space", "new\nline", "ünïcödé", "quote\"'\\", "-dash", "tab\t", "%41?&#", "日本🎈"]


def test_diff_of_odd_names(parent: Sandbox, http: httpx.Client):
    with parent.fork(2) as (a, b):
        py(
            b,
            f"""
            import os
            os.makedirs("/tmp/odd", exist_ok=True)
            for name in {NAMES!r}:
                open("/tmp/odd/" + name, "w").close()
            open(b"/tmp/odd/\\xff\\xfe", "w").close()
            """,
        )
        diff = a.diff(b, paths=["/tmp/odd"])
        assert {entry.raw_path for entry in diff.entries} == {
            b"/tmp/odd",
            b"/tmp/odd/\xff\xfe",
            *(f"/tmp/odd/{name}".encode() for name in NAMES),
        }
        reply = http.get(f"/v1/sandboxes/{a.id}/diff/{b.id}", params={"path": "/tmp/odd"})
        odd = [one for one in reply.json()["added"] if "path_base64" in one]
        assert [base64.b64decode(one["path_base64"]) for one in odd] == [b"/tmp/odd/\xff\xfe"]
        assert all("path" not in one for one in odd)


@pytest.mark.parametrize("path", ["", "relative", "x" * 5000, "/tmp/\0"])
def test_diff_paths_that_are_none(http: httpx.Client, parent: Sandbox, path: Any):
    reply = http.get(f"/v1/sandboxes/{parent.id}/diff/{parent.id}", params={"path": path})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request"), reply.text
    assert reply.json()["field"] == "path"


def test_diff_while_both_are_busy(parent: Sandbox):
    """A comparison needs no turn in the queue of calls."""
    with parent.fork(2) as (a, b):
        sh(b, "echo 1 > /home/user/quick")
        streams = [s.run_code_stream("echo begun; sleep 1000", "bash") for s in (a, b)]
        for stream in streams:
            assert next(stream).data == "begun\n"
        assert a.diff(b)["added"] == ["/home/user/quick"]
        for stream in streams:
            stream.close()


def test_tree(parent: Sandbox, client: Client):
    with parent.fork() as (s,):
        middle = s.fork()[0]
        with middle.fork(2) as leaves:
            middle.close()
            node = s.tree().find(s.id)
            assert node is not None and [one.id for one in node.children] == [middle.id]
            assert node.children[0].state == "ended"
            assert {one.id for one in node.children[0].children} == {one.id for one in leaves}
            assert {one.state for one in node.children[0].children} == {"ready"}
            assert any(root.find(s.id) for root in client.tree())
        # What has ended and has no living descendant is not shown.
        node = s.tree().find(s.id)
        assert node is not None and node.children == ()
