# SPDX-License-Identifier: Apache-2.0
"""The shapes of programs that users write, one test each; the numbers are those of the list in the
project's description of the published API."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest
from guest import py, sh

import podflare
from podflare import Client, Sandbox


@pytest.mark.limit(400)
def test_01_pip_install_is_refused_quickly_and_python_runs_and_the_block_destroys(client: Client):
    with Sandbox(client=client) as s:
        start = time.monotonic()
        r = s.run_code("pip install requests", language="bash")
        assert time.monotonic() - start < 90  # some 5 s of Python in the emulated host
        assert r.exit_code != 0
        assert "no network" in r.stderr
        r = s.run_code("import statistics; print(statistics.mean([1, 2, 6]))")
        assert r.stdout == "3\n"
        id = s.id
    with pytest.raises(podflare.SandboxNotFoundError):
        Sandbox.connect(id, client=client)
    assert all(one.id != id for one in Sandbox.list(client=client) if one.state == "ready")


def test_02_three_calls_build_on_each_other(shared: Sandbox):
    shared.run_code("import csv, io")
    shared.run_code("rows = list(csv.DictReader(io.StringIO('a,b,c\\n1,2,3\\n4,5,6\\n')))")
    assert shared.run_code("print((len(rows), len(rows[0])))").stdout == "(2, 3)\n"


def test_05_state_persists_between_two_calls(shared: Sandbox):
    shared.run_code("x = 42\nimport json")
    assert shared.run_code("print(x, json.dumps({'ok': True}))").stdout == '42 {"ok": true}\n'


def test_06_a_linux_of_its_own(shared: Sandbox):
    words = sh(shared, "uname -a").split()
    assert words[0] == "Linux" and "x86_64" in words
    assert words[2].startswith("6.1.")


def test_07_globals_and_imports_are_shared(shared: Sandbox):
    shared.run_code("import json as j7\nversion = j7.__version__\ndef f(n): return n * 2")
    assert shared.run_code(
        "print(type(version).__name__, f(21), j7.__version__ == version)"
    ).stdout == ("str 42 True\n")


def test_09_an_exception_does_not_poison_the_repl(shared: Sandbox):
    shared.run_code("kept = 'still here'")
    r = shared.run_code("def inner():\n    raise ValueError('boom')\ninner()")
    assert r.exit_code == 1 and r.termination_reason == "exited"
    assert "Traceback" in r.stderr and "ValueError: boom" in r.stderr and "inner" in r.stderr
    assert r.error is not None and (r.error.name, r.error.value) == ("ValueError", "boom")
    assert shared.run_code("this is no python").exit_code == 1
    assert shared.run_code("print(kept)").stdout == "still here\n"


@pytest.mark.parametrize(
    "code, exit_code",
    [
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(256 + 5)", 5),
    ],
)
def test_10_system_exit_is_the_exit_code_and_the_repl_lives(shared: Sandbox, code, exit_code):
    shared.run_code("before_exit = 1")
    assert shared.run_code(code).exit_code == exit_code
    assert shared.run_code("print(before_exit)").stdout == "1\n"


def test_10_system_exit_with_a_text(shared: Sandbox):
    r = shared.run_code("raise SystemExit('it is over')")
    assert r.exit_code == 1 and "it is over" in r.stderr


def test_11_bash_calls_do_not_share_variables_but_files(shared: Sandbox):
    sh(shared, 'X=foo; export X; echo "$X" > /tmp/x11')
    assert sh(shared, 'echo "[${X:-}]"; cat /tmp/x11') == "[]\nfoo\n"


def test_12_a_popen_child_outlives_its_call(shared: Sandbox):
    py(
        shared,
        """
        import subprocess
        child = subprocess.Popen(["sleep", "1000"])
        ended = subprocess.run(["sleep", "0"])
        """,
    )
    assert py(shared, "print(child.poll(), ended.returncode)") == "None 0\n"
    assert py(shared, "child.kill(); print(child.wait())") == "-9\n"


def test_13_two_commands_at_once_run_one_after_the_other(shared: Sandbox):
    sh(shared, "rm -f /tmp/order")
    code = """
        import time
        with open("/tmp/order", "a") as f:
            print("start", file=f, flush=True)
            time.sleep(0.5)
            print("end", file=f, flush=True)
    """
    results: list[podflare.ExecResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(shared.run_code(code))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.exit_code for r in results] == [0, 0]
    assert sh(shared, "cat /tmp/order").split() == ["start", "end", "start", "end"]


def test_14_plain_http_exec(http: httpx.Client, shared: Sandbox):
    before = int(time.time() * 1000)
    with http.stream(
        "POST", f"/v1/sandboxes/{shared.id}/exec", json={"code": "print(6*7)"}
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("application/x-ndjson")
        body = response.read()
    assert body.endswith(b"\n")
    out, end = [json.loads(line) for line in body.splitlines()]
    assert set(out) == set(end) == {"type", "data", "seq", "ts"}
    assert (out["type"], out["data"], out["seq"]) == ("stdout", "42", 0)
    assert (end["type"], end["data"], end["seq"]) == ("exit", 0, 1)
    # Milliseconds since 1970; the emulated host's clock may be a little off.
    assert abs(out["ts"] - before) < 600_000 and out["ts"] <= end["ts"]


def test_15_streaming(shared: Sandbox):
    out, code = "", None
    for event in shared.run_code_stream("for i in range(3): print(i)"):
        if event.type == "stdout":
            out += event.data
        elif event.type == "stderr":
            raise AssertionError(event.data)
        elif event.type == "exit":
            code = event.code
    assert (out, code) == ("0\n1\n2\n", 0)


def test_16_sum(shared: Sandbox):
    r = shared.run_code("print(sum(range(10)))")
    assert r.exit_code == 0
    assert r.stdout.strip() == "45"


def test_17_readme(shared: Sandbox):
    shared.run_code("x = 42")
    assert shared.run_code("print(x * 2)").stdout == "84\n"


def test_27_upload_json_and_read_it(shared: Sandbox):
    weather = {"temp": 61, "condition": "Foggy", "city": "Zürich"}
    shared.upload(json.dumps(weather).encode(), "/tmp/weather.json")
    r = shared.run_code(
        """
        import json
        data = json.load(open('/tmp/weather.json'))
        print(f"Temperature: {data['temp']}°F, Condition: {data['condition']}, {data['city']}")
        """
    )
    assert r.stdout == "Temperature: 61°F, Condition: Foggy, Zürich\n"


def test_28_upload_to_a_relative_path_path_first(shared: Sandbox):
    py(shared, "import os; os.chdir('/home/user')")
    shared.upload("data.csv", b"a,b\n1,2\n")
    assert py(shared, "import csv; print(list(csv.reader(open('data.csv'))))") == (
        "[['a', 'b'], ['1', '2']]\n"
    )
    assert sh(shared, "cat /home/user/data.csv") == "a,b\n1,2\n"


def test_30_download_a_result(shared: Sandbox):
    py(shared, "with open('/tmp/result.bin', 'wb') as f: n = f.write(bytes(range(256)) * 100)")
    assert shared.download("/tmp/result.bin") == bytes(range(256)) * 100


@pytest.mark.limit(400)
def test_33_34_38_egress_false_shared_client_template_and_sizes(client: Client, shared: Sandbox):
    with Sandbox(
        client=client,
        template="default",
        egress=False,
        persistent=False,
        memory_mib=384,
        vcpus=1,
        metadata={"purpose": "test", "ü": "é"},
    ) as s:
        assert s.id != shared.id and s.id.startswith("sbx_") and len(s.id) == 36
        info = s.info()
        assert (info.state, info.template, info.memory_mib, info.vcpus) == (
            "ready",
            "default",
            384,
            1,
        )
        assert info.metadata == {"purpose": "test", "ü": "é"}
        assert info.egress == podflare.Egress()
        assert s.run_code("print(2 + 2)").stdout == "4\n"
        assert sh(s, "nproc") == "1\n"
        total_kib = int(sh(s, "awk '/MemTotal/ {print $2}' /proc/meminfo"))
        assert 256 * 1024 < total_kib <= 384 * 1024
        r = s.run_code("import socket; socket.create_connection(('192.0.2.1', 80), timeout=60)")
        assert r.error is not None and "unreachable" in r.error.value
        # What the two do is not seen by the other.
        s.run_code("mine = 1")
        assert shared.run_code("print('mine' in globals())").stdout == "False\n"
        listed = {one.id: one for one in Sandbox.list(client=client)}
        assert listed[s.id].state == listed[shared.id].state == "ready"
        # The same sandbox through another client and its explicit host.
        again = Sandbox.connect(s.id, host=client.host)
        assert again.run_code("print(mine)").stdout == "1\n"
        assert (again.info().exec_count or 0) >= 5
        again.close()
        with pytest.raises(podflare.SandboxNotFoundError):
            s.run_code("print(1)")


def test_35_traceparent_is_in_the_log(daemon, shared: Sandbox, monkeypatch):
    if daemon.log() is None:
        pytest.skip("the log of a daemon that was not started here is unknown")
    traces = {}
    for number, way in enumerate(("sandbox", "client", "environment"), start=1):
        trace_id, span_id = f"{number:032x}", f"{number:016x}"
        value = f"00-{trace_id}-{span_id}-01"
        traces[way] = (trace_id, span_id)
        if way == "sandbox":
            Sandbox.connect(shared.id, host=daemon.url, traceparent=value).info()
        elif way == "client":
            with Client(host=daemon.url, traceparent=value) as client:
                Sandbox.list(client=client)
        else:
            monkeypatch.setenv("PODFLARE_TRACEPARENT", value)
            Sandbox.list(host=daemon.url)

    def lines_of(way: str) -> list[str]:
        return [line for line in daemon.log().splitlines() if traces[way][0] in line]

    deadline = time.monotonic() + 20
    while not all(lines_of(way) for way in traces) and time.monotonic() < deadline:
        time.sleep(0.1)
    for way, (trace_id, span_id) in traces.items():
        lines = lines_of(way)
        assert lines, f"{way}: {trace_id} is not in the log"
        for line in lines:
            assert span_id in line and "http_request" in line and "/v1/sandboxes" in line
