# SPDX-License-Identifier: Apache-2.0
"""End-to-end tests: a real daemon, real microVMs, spoken to through the SDK and by plain HTTP.

With PODFLARE_HOSTD_URL the tests use the daemon there; else they start `podflare serve` from the
build directory (PODFLARE_BUILD, by default build/) once, and at the end look that nothing of it is
left. On a machine without usable virtualization `serve` runs in its emulated host, where everything is
ten to twenty times slower and a template takes ten or twenty seconds to boot, once for each size that
is asked for: most tests share one sandbox or its forks, those that need another size use the same
(guest.SMALL), and no test asserts a short time tightly.

The daemon has an operator's configuration of egress, so that sandboxes can be allowed to reach the servers
of egress_world.py, and nothing else in the world; a sandbox that asks for nothing has no network, as ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "sdk" / "python"), str(HERE), str(HERE.parent)]

import httpx  # noqa: E402
import egress_content  # noqa: E402
import egress_world  # noqa: E402
from egress_world import World  # noqa: E402
from guest import SMALL  # noqa: E402
from served import Daemon, ExternalDaemon, Served  # noqa: E402

from podflare import Client, PodflareError, Sandbox  # noqa: E402

# The daemons under test are on loopback, where no proxy would find them.
for variable in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(variable, None)
    os.environ.pop(variable.upper(), None)

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """Beside a failure stands what the daemon said last."""
    report = (yield).get_result()
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and daemon is not None and (log := daemon.log()):
        report.sections.append(("end of the daemon's log", "\n".join(log.splitlines()[-40:])))


@pytest.fixture(scope="session")
def build() -> Path:
    """The build directory; a test that needs its programs fails clearly without it."""
    path = Path(os.environ.get("PODFLARE_BUILD", ROOT / "build")).resolve()
    if not (path / "podflare").exists():
        pytest.fail(f"{path}/podflare does not exist: run make first", pytrace=False)
    return path


@pytest.fixture(scope="session")
def world(build: Path, tmp_path_factory: Any) -> Iterator[World]:
    """What sandboxes could reach, with all that it has to offer."""
    told = subprocess.run(
        [str(build / "podflare"), "doctor", "--json"], capture_output=True, check=False
    )
    emulated = json.loads(told.stdout)["mode"] == "emulated"
    for world in egress_world.opened(tmp_path_factory.mktemp("world"), emulated):
        for server in (world.http, world.https):
            egress_content.serve_index(server)
        egress_content.serve_registry(world.http, f"http://npm.test:{world.http.port}")
        world.commit = egress_content.serve_repository(
            world.https, tmp_path_factory.mktemp("repository")
        )
        yield world


@pytest.fixture(scope="session")
def daemon(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Daemon]:
    """The daemon that all tests share, without API keys."""
    url = os.environ.get("PODFLARE_HOSTD_URL")
    if url:
        yield ExternalDaemon(url)
        return
    build = request.getfixturevalue("build")
    operator = tmp_path_factory.mktemp("operator") / "egress.json"
    operator.write_text(json.dumps(request.getfixturevalue("world").config()))
    served = Served(
        build,
        tmp_path_factory.mktemp("state"),
        env={
            "PODFLARE_LOG_FORMAT": "json",
            "PODFLARE_EGRESS_CONFIG": str(operator),
            # A halted guest is found out sooner than by default.
            "PODFLARE_PING_AFTER": "5",
            "PODFLARE_PONG_WITHIN": "60",
            # Copies of a busy sandbox with two vCPUs share one emulated processor with it.
            "PODFLARE_CREATE_TIMEOUT": "300",
        },
    )
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="session")
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(host=daemon.url) as client:
        yield client


@pytest.fixture(scope="session")
def http(daemon: Daemon) -> Iterator[httpx.Client]:
    """Plain HTTP to the daemon, for what the SDK would not send."""
    with httpx.Client(base_url=daemon.url, timeout=httpx.Timeout(120, connect=5)) as client:
        yield client


@pytest.fixture(scope="session")
def shared(client: Client) -> Iterator[Sandbox]:
    """The sandbox that most tests use; they must leave it alive."""
    with Sandbox(client=client) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def parent(client: Client) -> Iterator[Sandbox]:
    """The sandbox that the tests of one file fork; they must leave it alive."""
    with Sandbox(client=client) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def outside(daemon: Daemon, world: World) -> World:
    """The world, for tests that reach for it: a daemon that is not ours does not know of it."""
    if isinstance(daemon, ExternalDaemon):
        pytest.skip("the daemon under test has another configuration of egress")
    return world


@pytest.fixture(scope="session")
def granted(client: Client, outside: World) -> Iterator[Sandbox]:
    """A sandbox that may reach all of the world that answers; the tests leave its grant as it is."""
    with Sandbox(client=client, egress_allow=outside.everything()) as sandbox:
        sandbox.upload(outside.ca.encode(), "/tmp/ca.pem")
        yield sandbox


@pytest.fixture(scope="session")
def emulated(daemon: Daemon) -> bool:
    """Whether sandboxes run in the emulated host; yes if nobody knows: its bounds are wider."""
    return daemon.emulated if isinstance(daemon, Served) else True


@pytest.fixture
def fresh(client: Client) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes that are closed after the test."""
    made: list[Sandbox] = []

    def make(**kw: Any) -> Sandbox:
        made.append(Sandbox(client=client, **kw))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


@pytest.fixture(scope="module")
def box(parent: Sandbox) -> Iterator[Sandbox]:
    """One sandbox for most tests of a file: what they break is its own."""
    with parent.fork(1) as copies:
        yield copies[0]


@pytest.fixture(scope="module")
def smalls(client: Client) -> Iterator[list[Sandbox]]:
    """The ones of `small`, the last of which is used."""
    made: list[Sandbox] = []
    yield made
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def small(client: Client, smalls: list[Sandbox]) -> Sandbox:
    """One to be exhausted; another when a test has broken it, so that only that test fails."""
    if smalls:
        try:
            answer = smalls[-1].run_code("echo well", "bash", timeout=5).stdout
        except PodflareError:
            answer = ""
        if answer == "well\n":
            return smalls[-1]
        smalls.pop().close()
    smalls.append(Sandbox(client=client, **SMALL))
    return smalls[-1]


@pytest.fixture
def nothing_arrives(outside: World) -> Iterator[None]:
    """Around a test: no server was touched, no name was asked for."""
    untouched, asked = outside.untouched(), len(outside.dns.asked)
    yield
    assert untouched(), "something arrived at a server"
    assert outside.dns.asked[asked:] == []
