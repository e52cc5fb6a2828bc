# SPDX-License-Identifier: Apache-2.0
"""Templates: which there are, sizes that are made on demand, and python-datasci."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Iterator

import pytest
from guest import py, sh, together, values

import podflare
from podflare import Client, Sandbox

# A template's first sandbox waits for it: its boot and its warm-up.
pytestmark = pytest.mark.limit(700)

DATASCI = "python-datasci"


def names(client: Client) -> dict[str, podflare.TemplateInfo]:
    return {one.name: one for one in client.templates()}


def test_what_there_is(client: Client, parent: Sandbox):
    default = names(client)["default"]
    vcpus = default.default_vcpus
    assert (default.default_memory_mib, default.default_disk_mib) == (1024, 4096)
    assert vcpus in (1, 2)  # as many as the host has, two at most
    assert default.image_bytes > 50 << 20
    (vm,) = [vm for vm in default.vms if (vm.memory_mib, vm.vcpus, vm.disk_mib) == (1024, vcpus, 4096)]
    assert vm.state == "ready" and vm.boot_ms is not None and vm.boot_ms > 0
    # What its rehearsal has found; a copy of it writes to several hundred pages.
    raw = next(one for one in names(client)["default"].raw["vms"] if one["memory_mib"] == 1024)
    assert 100 < raw["hot_pages"] < 5000
    assert parent.info().template == "default"


def test_38_the_default(client: Client):
    with Sandbox(client=client, template="default") as s:
        assert s.run_code("print(2 + 2)").stdout == "4\n"


def test_one_that_there_is_not(client: Client):
    with pytest.raises(podflare.InvalidRequestError) as e:
        Sandbox(client=client, template="no-such-template")
    assert (e.value.status, e.value.field) == (400, "template")
    for name in names(client):
        assert name in str(e.value), str(e.value)


def test_a_size_is_made_once_however_many_ask_for_it(client: Client):
    """Three ask for a new size at once; all wait for the one template of it."""
    size: dict[str, Any] = {"memory_mib": 320, "vcpus": 1, "disk_mib": 1024}

    def vms() -> list[podflare.TemplateVM]:
        return [
            vm
            for vm in names(client)["default"].vms
            if {"memory_mib": vm.memory_mib, "vcpus": vm.vcpus, "disk_mib": vm.disk_mib} == size
        ]

    assert vms() == []
    made: list[Sandbox] = []
    failures: list[Exception] = []

    def make() -> None:
        try:
            made.append(Sandbox(client=client, **size))
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(daemon=True, target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert not failures, failures
        assert len({s.id for s in made}) == 3
        assert [vm.state for vm in vms()] == ["ready"]
        for s in made:
            info = s.info()
            assert (info.memory_mib, info.vcpus, info.disk_mib) == (320, 1, 1024)
        outs = together(lambda s: sh(s, "nproc; grep MemTotal /proc/meminfo"), made)
        for out in outs:
            cpus, _, kib, _ = out.split()
            assert cpus == "1" and 200 * 1024 < int(kib) <= 320 * 1024
        # From now on a sandbox of this size is a fork, not a boot.
        boot_s = (vms()[0].boot_ms or 0) / 1000
        start = time.monotonic()
        made.append(Sandbox(client=client, **size))
        assert time.monotonic() - start < max(boot_s / 2, 1)
        assert [vm.state for vm in vms()] == ["ready"]
    finally:
        for s in made:
            s.close()


def test_a_created_sandbox_is_new(client: Client, parent: Sandbox):
    """Nothing of one sandbox reaches another that comes from the same template."""
    py(parent, "trace = 1")
    sh(parent, "echo trace > /tmp/trace_of_another")
    with Sandbox(client=client) as other:
        assert py(other, "print('trace' in globals())") == "False\n"
        assert sh(other, "ls /tmp/trace_of_another 2>/dev/null || echo none") == "none\n"
        info = other.info()
        assert (info.parent, info.children) == (None, ())
        assert info.source in ("fork", "pool")


@pytest.fixture(scope="module")
def science(client: Client) -> Iterator[Sandbox]:
    if DATASCI not in names(client):
        pytest.skip(f"the template {DATASCI} has not been built")
    with Sandbox(client=client, template=DATASCI) as sandbox:
        yield sandbox


def test_39_pandas_without_an_import(science: Sandbox):
    r = science.run_code("print(pd.DataFrame({'a': [1, 2, 3]})['a'].sum(), np.arange(4).mean())")
    assert r.stdout == "6 1.5\n", r
    r = science.run_code("""
        import sys
        loaded = [m for m in ("numpy", "pandas", "scipy", "matplotlib.pyplot", "sklearn")
                  if m in sys.modules]
        print(len(loaded), plt.get_backend().lower())
        """)
    assert r.stdout == "5 agg\n", r


def test_a_figure(science: Sandbox):
    r = science.run_code("plt.plot([1, 2, 3]); plt.savefig('/tmp/figure.png'); plt.close()")
    assert r.ok, r
    assert science.download("/tmp/figure.png").startswith(b"\x89PNG")


def test_generators_of_numpy_differ_in_every_copy(science: Sandbox):
    draw = """
    import json
    print(json.dumps({
        "legacy": np.random.random(),
        "legacy integers": np.random.randint(1 << 62),
        "default_rng": np.random.default_rng().random(),
        "shuffled": np.random.permutation(1000)[:8].tolist(),
        "sample": int(pd.Series(range(1 << 20)).sample(1).iloc[0]),
        "RandomState": np.random.RandomState().random_sample(),
    }))
    """
    values(science, draw)
    with science.fork(4) as children:
        draws = together(lambda s: values(s, draw), [science, *children])
    for name in draws[0]:
        assert len({json.dumps(one[name]) for one in draws}) == 5, name
    py(science, "np.random.seed(3)")
    with science.fork(2, reseed=False) as children:
        draws = together(lambda s: values(s, draw), children)
        assert draws[0]["legacy"] == draws[1]["legacy"]
        assert draws[0]["default_rng"] != draws[1]["default_rng"]


def test_a_large_frame_in_every_copy(science: Sandbox):
    """200 MB, made once."""
    r = science.run_code("""
        df = pd.DataFrame({"x": np.arange(12_500_000, dtype="float64"), "y": np.float64(2)})
        print(int(df.memory_usage(index=False).sum()), df["x"].iloc[-1])
        """)
    assert r.stdout == "200000000 12499999.0\n", r
    with science.fork(2) as children:
        # Looked at, partly changed: the pages that are not written stay shared.
        outs = together(
            lambda s: py(s, "print(df['x'].iloc[::1000].sum(), len(df), df['y'].iloc[5])"), children
        )
        assert outs == [f"{float(sum(range(0, 12_500_000, 1000)))} 12500000 2.0\n"] * 2
        py(children[0], "df.loc[5, 'y'] = 7.0")
        assert py(children[0], "print(df['y'].iloc[5])") == "7.0\n"
        assert py(children[1], "print(df['y'].iloc[5])") == "2.0\n"
        assert py(science, "print(df['y'].iloc[5])") == "2.0\n"
    py(science, "del df")
