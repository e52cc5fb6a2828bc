"""Values of injected headers: in the proxy's policy, and nowhere else."""

import os
import subprocess
from pathlib import Path

import pytest

from conftest import SANITIZED, Daemon, wait_for
from egress import CANARY, ask, grant, inject, log, mode, notes, policies, put, wait_no_proxy

# Made by the stand-in proxy (fake_egress.py), base64 of CANARY-CA-KEY.
CA_KEY = "Q0FOQVJZLUNBLUtFWQ"


def files_with(where: Path, text: str) -> list[str]:
    """Every file below that has it."""
    out = subprocess.run(["grep", "-rlaF", text, str(where)], capture_output=True, text=True, check=False)
    return out.stdout.split()


def test_the_canary(daemon: Daemon) -> None:
    """State directory, log, every reply: none has it. The policy has it, so the test could fail."""
    replies: list[str] = []
    daemon.http.event_hooks["response"].append(lambda r: replies.append((r.read(), r.text)[1] + str(r.headers)))

    def value(*allow: str, **headers: str) -> dict:
        return grant(*allow, inject=inject(allow[0], True, **headers))

    sid = daemon.create(egress=value("allowed.test", Authorization=f"Bearer {CANARY}"))
    ask(daemon, sid)
    put(daemon, sid, value("allowed.test", "b.test", Authorization=f"{CANARY}-2"))
    daemon.http.get(f"/v1/sandboxes/{sid}")
    daemon.http.get("/v1/sandboxes")
    daemon.http.get(f"/v1/sandboxes/{sid}/egress")
    daemon.http.get("/v1/tree")
    daemon.http.get("/v1/metrics")
    for body in ({}, {"inherit_inject": True}, {"egress": value("c.test", Cookie=f"{CANARY}-3")}):
        r = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json=body)
        for child in r.json()["children"]:
            ask(daemon, child, "denied.test")
    # Refusals.
    for bad in (
        value("allowed.test", **{f"Authorization: {CANARY}": "x"}),
        value("allowed.test", Host=CANARY),
        value("allowed.test", A=f"{CANARY}\n"),
        grant("x.test", inject=inject("y.test", A=CANARY)),
        grant("127.0.0.1", inject=inject("y.test", A=CANARY)),
        {"allow": ["a.test"], "inject": {"a.test": {"headers": {"A": CANARY}, "intercept": 5}}},
    ):
        assert daemon.http.post("/v1/sandboxes", json={"egress": bad}).status_code == 400
        assert put(daemon, sid, bad).status_code == 400
    assert daemon.http.put(f"/v1/sandboxes/{sid}/egress", content=f'{{"inject": "{CANARY}').status_code == 400
    assert daemon.http.post("/v1/sandboxes", content=f'{{"x": "{CANARY}" {CANARY}').status_code == 400
    daemon.http.post("/v1/policy/test", json={"host": "allowed.test", "sandbox": sid})
    # One that fails.
    mode(daemon, "exit 9")
    put(daemon, sid, False)
    assert put(daemon, sid, value("allowed.test", Authorization=CANARY)).json()["state"] == "failed"
    log(daemon, sid)
    daemon.exec(sid, "#fake:info")
    daemon.exec(sid, '#fake:guest {"op": "state"}')
    daemon.http.get(f"/v1/sandboxes/{sid}/console")
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    daemon.stop()
    secrets = {p["inject"].get("allowed.test", {}).get("headers", {}).get("Authorization") for p in policies(daemon)}
    assert secrets >= {f"Bearer {CANARY}", f"{CANARY}-2"}, "it was there to be found"
    assert files_with(daemon.proxies, CANARY) and files_with(daemon.proxies, CA_KEY)
    for secret in (CANARY, CA_KEY):
        assert files_with(daemon.state, secret) == []
        assert secret not in daemon.log_text()
        assert not [x for x in replies if secret in x]
    assert len(replies) > 30


def test_it_is_in_no_vmm(daemon: Daemon) -> None:
    """Neither in the memory nor in what it was started with: a VMM is what a guest may take over."""
    sid = daemon.create(egress=grant("allowed.test", inject=inject("allowed.test", Authorization=CANARY)))
    ask(daemon, sid)
    found = 0
    for pid in daemon.children():
        who = Path(f"/proc/{pid}/cmdline").read_text()
        text = Path(f"/proc/{pid}/environ").read_bytes() + who.encode()
        assert CANARY.encode() not in text
        has = CANARY.encode() in memory(pid)
        assert has == ("fake_egress" in who)
        found += has
    assert found == 1, "the proxy has it"


def memory(pid: int) -> bytes:
    """All that a process can write to."""
    out = b""
    with open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, perms = line.split()[:2]
            if not perms.startswith("rw"):
                continue
            start, end = (int(x, 16) for x in where.split("-"))
            try:
                mem.seek(start)
                out += mem.read(end - start)
            except OSError:
                pass
    return out


@pytest.mark.bounds
@pytest.mark.skipif(SANITIZED, reason="keeps what was freed")
def test_the_daemon_forgets(daemon: Daemon) -> None:
    """With the sandbox its memory has no secret any more: neither the request's text nor the grant."""
    canary = f"{CANARY}-{os.getpid()}".encode()
    sid = daemon.create(egress=grant("allowed.test", inject=inject("allowed.test", Authorization=canary.decode())))
    ask(daemon, sid)
    assert canary in memory(daemon.proc.pid)
    assert notes(daemon, "policy")
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(daemon)
    wait_for(lambda: canary not in memory(daemon.proc.pid))
