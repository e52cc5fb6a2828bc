#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Install a package into a sandbox that can reach the package index, and nothing else.

    pip_install.py [PACKAGE] [--index URL]

The sandbox has no network: no interface, no route, no DNS. `egress_allow` lets its programs reach the hosts of
a list, through a proxy outside of it that decides about every connection. What else they try is denied at
once, and told: to them, in the result, and in the log.

Without --index it is the public index, pypi.org, by the group "pypi".

Needs a running daemon (`build/podflare serve`) at http://127.0.0.1:7070 or PODFLARE_HOSTD_URL, and
the SDK: PYTHONPATH=sdk/python python3 examples/pip_install.py humanize
"""

import argparse
import shlex
from urllib.parse import urlsplit

from podflare import Sandbox


def main() -> int:
    parser = argparse.ArgumentParser(description="installs a package through an allowlist")
    parser.add_argument("package", nargs="?", default="humanize")
    parser.add_argument("--index", help="another index that speaks the simple API")
    args = parser.parse_args()

    allow, options = ["pypi"], ""
    if args.index:
        url = urlsplit(args.index)
        allow = [url.netloc]  # HOST or HOST:PORT: a name alone is good for 443 and 80
        options = f"--index-url {shlex.quote(args.index)} --trusted-host {url.hostname} "

    with Sandbox(egress_allow=allow) as s:
        print(f"this sandbox may reach: {', '.join(map(str, s.egress.allow))}\n")

        r = s.run_code(f"!pip install --no-cache-dir {options}{shlex.quote(args.package)}")
        print(r)
        if "Successfully installed" not in r.stdout:
            return 1

        # Anything else is denied, and the result says so in words that a model can act on.
        r = s.run_code("import urllib.request; urllib.request.urlopen('https://example.com/')")
        print(f"\nanother host: {r.error.name if r.error else 'reached!'}")
        for one in r.denied:
            print(f"  {one}")

        print("\nwhat the proxy has decided:")
        for record in s.egress_log():
            if record.type == "decision":
                print(
                    f"  {record.verdict:5} {record.host}:{record.port}  {record.rule or record.reason}"
                )
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
