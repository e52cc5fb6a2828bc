"""VMMs that their guests have taken over: what they can say and leave behind is bounded."""

from collections.abc import Callable

import pytest

from conftest import Daemon, stdout_of, wait_for


@pytest.mark.parametrize(
    "how,why",
    [
        # Id 0 is that of all children that it was not asked for yet.
        ("nobody", "told of a fork that nobody asked for"),
        # Requests that pile up in its socket hold descriptors, and all VMMs share the kernel's limit.
        ("deaf", "told of a fork before it was asked"),
    ],
)
def test_what_it_was_not_asked(start: Callable[..., Daemon], how: str, why: str) -> None:
    """More forks than are in flight: it ends for what it says, alone, and nothing stays open."""
    d = start()
    other = d.create()
    fds = children = 0
    for i in range(2):
        sid = d.create()
        d.exec(sid, f"#fake:once fork {how}")
        if i == 0:
            fds, children = d.fds(), len(d.children())
        r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 20})
        assert r.status_code >= 400, r.text
        wait_for(lambda: d.http.get(f"/v1/sandboxes/{sid}").json().get("state") != "ready")
    assert d.log_text().count(why) == 2
    assert stdout_of(d.exec(other, "echo alive")) == "alive"
    wait_for(lambda: len(d.children()) < children)
    wait_for(lambda: d.fds() < fds)


def test_one_process_for_two_children(start: Callable[..., Daemon]) -> None:
    """The second is refused at once, not when somebody has waited for its word long enough."""
    d = start(env={"PODFLARE_CREATE_TIMEOUT": "5"})
    sid = d.create()
    for _ in range(2):
        d.exec(sid, "#fake:once fork twice")
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 2})
    assert r.status_code == 503, r.text
    ends = [x for x in d.log_text().splitlines() if "sandbox ended" in x and sid in x]
    assert sum("told of a child that is none" in x for x in ends) == 1, ends
    assert sum("it was not ready after 5 s" in x for x in ends) == 1, ends
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"
    wait_for(lambda: len(d.children()) == 2)
