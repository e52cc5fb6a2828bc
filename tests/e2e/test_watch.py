# SPDX-License-Identifier: Apache-2.0
"""files.watch and uploads that are resumed, against a real sandbox."""

from __future__ import annotations

import os

from guest import sh

from podflare import FileEvent, Sandbox


def test_changes_are_told(box: Sandbox):
    sh(box, "mkdir -p w/old; echo x >w/old/f")
    at = "/home/user/w"
    with box.files.watch("w", timeout=120) as changes:
        sh(box, "mkdir -p w/a/b; echo x >w/a/b/f; mv w/old w/new; echo y >w/new/f; rm w/a/b/f; mkdir w/last")
        told = []
        while not told or told[-1].path != f"{at}/last":
            told.append(next(changes))
        kinds = [(event.type, event.path) for event in told if event.type != "modified"]
        assert kinds.count(("created", f"{at}/a")) == kinds.count(("created", f"{at}/a/b")) == 1
        assert kinds.count(("created", f"{at}/a/b/f")) == kinds.count(("deleted", f"{at}/a/b/f"))
        assert ("modified", f"{at}/new/f") in [(event.type, event.path) for event in told]
        # The root is an overlay, where a directory of the disk moves as one.
        assert FileEvent("moved", f"{at}/new", True, f"{at}/old") in told
        # A copy has no part in it, and its own watch.
        with box.fork(1) as copies:
            with copies[0].files.watch("w", timeout=120) as others:
                sh(copies[0], "mkdir w/there; pgrep -fc repl/watch.py")
                assert next(others).path == f"{at}/there"
            sh(box, "mkdir w/here")
            assert next(changes) == FileEvent("created", f"{at}/here", is_dir=True)
        sh(box, "rm -r w")
        assert [event for event in changes][-1] == FileEvent("deleted", at, is_dir=True)


def test_an_upload_that_is_resumed(box: Sandbox):
    data = os.urandom(3_000_000)
    assert box.upload(data, "/tmp/resumed/f", resume=True).size == len(data)
    assert box.download("/tmp/resumed/f") == data
    assert sh(box, "ls -A /tmp/resumed") == "f\n"
