# SPDX-License-Identifier: Apache-2.0
"""What egress adds to the environment of whatever runs, and what a call has of it."""

from __future__ import annotations

import json
from typing import Any

from egress_host import EgressAgent
from test_percall import argv, node

PEM = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n"
OTHER = PEM.replace("TUlJ", "TUlK")
PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
BUNDLE = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "npm_config_cafile",
]
CA_ONLY = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"]
CA_FILES = ["egress-apt.conf", "egress-bundle.pem", "egress-ca.pem", "egress-wgetrc"]
DUMP = "import json, os; print(json.dumps(dict(os.environ)))"


def wanted(agent: EgressAgent, ca: bool = False) -> dict[str, str]:
    """The variables that egress adds."""
    env = {name: f"http://127.0.0.1:{agent.ports[0]}" for name in PROXIES}
    env.update({name: "localhost,127.0.0.1,::1" for name in ("NO_PROXY", "no_proxy")})
    env["NODE_USE_ENV_PROXY"] = "1"
    env["NODE_OPTIONS"] = f"--require={agent.dir}/repl/egress-node.cjs"
    if ca:
        env.update({name: f"{agent.dir}/egress-bundle.pem" for name in BUNDLE})
        env.update({name: f"{agent.dir}/egress-ca.pem" for name in CA_ONLY})
        env["APT_CONFIG"] = f"{agent.dir}/egress-apt.conf"
        env["WGETRC"] = f"{agent.dir}/egress-wgetrc"
    return env


def environment(agent: EgressAgent, language: str, **extra: Any) -> dict[str, str]:
    """That of a call."""
    with agent.stream() as s:
        if language == "python":
            r = s.python(DUMP, **extra)
        elif language == "bash":
            r = s.bash(f"exec /usr/bin/python3 -c '{DUMP}'", **extra)
        elif language == "argv":
            r = argv(s, "/usr/bin/python3", "-c", DUMP, **extra)
        else:
            r = node(s, "console.log(JSON.stringify(process.env))", **extra)
        assert r.code == 0, r.stderr
        return dict(json.loads(r.stdout))


def added(agent: EgressAgent, language: str, **extra: Any) -> dict[str, str]:
    """What of it is egress's, whatever its value."""
    names = wanted(agent, True)
    return {k: v for k, v in environment(agent, language, **extra).items() if k in names}
