#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The main job: a program fetches data with its own network and has it worked on in a sandbox that
has none.

Needs a running daemon (`build/podflare serve`) at http://127.0.0.1:7070 or PODFLARE_HOSTD_URL, and
the SDK: PYTHONPATH=sdk/python python3 examples/weather.py
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx

from podflare import Sandbox

CITIES = {
    "sf": {"city": "San Francisco", "temp": 61, "condition": "Foggy"},
    "berlin": {"city": "Berlin", "temp": 48, "condition": "Drizzle"},
}


class Weather(BaseHTTPRequestHandler):
    """A small weather service: GET /current?city=sf"""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        report = CITIES.get(parse_qs(url.query).get("city", [""])[0])
        if url.path != "/current" or report is None:
            self.send_error(404)
            return
        body = json.dumps(report).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(port: int) -> None:
    # The network of the program that uses Podflare. (trust_env: a proxy would not find loopback.)
    url = f"http://127.0.0.1:{port}/current?city=sf"
    weather = httpx.get(url, trust_env=False).json()

    with Sandbox() as s:
        s.upload(json.dumps(weather).encode(), "/tmp/weather.json")
        r = s.run_code(
            """
            import json
            data = json.load(open('/tmp/weather.json'))
            print(f"Temperature: {data['temp']}°F, Condition: {data['condition']}")
        """
        )
        print(r.stdout)
        s.run_code("total = 6 * 7")
        print(s.run_code("print(total)").stdout)  # the REPL remembers
        # A Linux of its own, and no interface but lo:
        print(s.run_code("uname -a; ls /sys/class/net", language="bash").stdout)
        print(s.download("/tmp/weather.json"))


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Weather) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            main(server.server_address[1])
        finally:
            server.shutdown()
