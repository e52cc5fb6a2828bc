# SPDX-License-Identifier: Apache-2.0
"""What the egress tests run in a guest: a small library for scripts that speak to the relay by hand, byte
by byte where it matters, as root where that could matter. A script prints one line of JSON."""

from __future__ import annotations

from typing import Any

from guest import probe

from podflare import Sandbox

# Nothing may hang: what has not come after this long is "timeout", which no test expects. It is long
# because the emulated host is slow, and is not waited for otherwise.
LIB = r'''
import errno, json, os, socket, ssl, struct, sys
WAIT = 100
HTTP, SOCKS = 3128, 1080

def outcome(exc):
    if isinstance(exc, (socket.timeout, TimeoutError)):
        return "timeout"
    if isinstance(exc, ssl.SSLError):
        return "ssl"
    if isinstance(exc, OSError) and exc.errno:
        return errno.errorcode.get(exc.errno, str(exc.errno))
    return type(exc).__name__

def dial(port=HTTP):
    s = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s

def exactly(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return data

def read_reply(s):
    """One HTTP reply: status, headers, body; and what a denial says."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(s, 1)
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    fields = {k.lower(): v.strip() for k, v in (l.split(":", 1) for l in lines[1:] if l)}
    body = b""
    if fields.get("transfer-encoding", "").lower() == "chunked":
        while size := int(read_line(s).split(b";")[0], 16):
            body += exactly(s, size)
            exactly(s, 2)
        read_line(s)
    elif "content-length" in fields:
        body = exactly(s, int(fields["content-length"]))
    reply = {"status": status, "fields": fields, "body": body.decode("latin-1")}
    if fields.get("content-type", "").startswith("application/json"):
        try:
            told = json.loads(body)
        except ValueError:
            told = None
        if isinstance(told, dict) and told.get("code") == "egress_denied":
            reply["denial"] = told
    return reply

def read_line(s):
    line = b""
    while not line.endswith(b"\n"):
        line += exactly(s, 1)
    return line

def raw(data, port=HTTP):
    """Bytes to the proxy, and its reply; {"outcome"} if there is none."""
    try:
        with dial(port) as s:
            s.sendall(data)
            return read_reply(s)
    except (OSError, EOFError) as exc:
        return {"outcome": outcome(exc)}

def get(url, host=None, *headers):
    """A request in absolute form. host: the Host header, if it is to be another."""
    if host is None:
        host = url.split("//", 1)[1].split("/", 1)[0].rpartition("@")[2]
    lines = [f"GET {url} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    return raw("\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n")

def connect(host, port):
    """CONNECT, and its reply."""
    target = f"{host}:{port}".encode("utf-8", "surrogateescape")
    return raw(b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n")

def socks(host, port, kind=3):
    """The code of the reply to a request for a host, or what else happened."""
    try:
        with dial(SOCKS) as s:
            s.sendall(b"\x05\x01\x00")
            if exactly(s, 2) != b"\x05\x00":
                return "method"
            data = bytes([len(host)]) + host if kind == 3 else host
            s.sendall(b"\x05\x01\x00" + bytes([kind]) + data + struct.pack(">H", port))
            return exactly(s, 10)[1]
    except (OSError, EOFError) as exc:
        return outcome(exc)

def tunnel(host, port):
    """A socket behind a CONNECT that was answered with 200."""
    s = dial()
    s.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    reply = read_reply(s)
    assert reply["status"] == 200, reply
    return s

def context(ca="/tmp/ca.pem"):
    c = ssl.create_default_context(cafile=ca)
    return c

def hello(name, ca="/tmp/ca.pem"):
    """The bytes of a ClientHello, and the objects that go on with it. name: None for no SNI."""
    c = context(ca)
    c.check_hostname = name is not None
    inbox, outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = c.wrap_bio(inbox, outbox, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outbox.read(), tls, inbox, outbox

def with_extension(record, kind, body):
    """The ClientHello with one more extension."""
    assert record[0] == 22 and record[5] == 1
    at = 5 + 4 + 2 + 32
    at += 1 + record[at]
    at += 2 + struct.unpack_from(">H", record, at)[0]
    at += 1 + record[at]
    (size,) = struct.unpack_from(">H", record, at)
    more = struct.pack(">HH", kind, len(body)) + body
    end = at + 2 + size
    assert end == len(record)
    record = bytearray(record[:at] + struct.pack(">H", size + len(more)) + record[at + 2:] + more)
    struct.pack_into(">H", record, 3, len(record) - 5)
    record[6:9] = (len(record) - 9).to_bytes(3, "big")
    return bytes(record)

def after_tunnel(host, port, data):
    """What comes back for the first bytes in a tunnel: "nothing" if it is closed without a byte."""
    try:
        with tunnel(host, port) as s:
            s.sendall(data)
            got = s.recv(4096)
            return "nothing" if not got else "handshake" if got[0] == 22 else "alert" if got[0] == 21 else "bytes"
    except (OSError, EOFError) as exc:
        return outcome(exc)

def https(host, port, name=None, path="/json"):
    """A request within a tunnel; name: the SNI, if it is to be another."""
    try:
        with tunnel(host, port) as s, context().wrap_socket(s, server_hostname=name or host) as t:
            t.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            return read_reply(t)
    except (OSError, EOFError) as exc:
        return {"outcome": outcome(exc)}

def say(value):
    print(json.dumps(value))
'''


def ask(sandbox: Sandbox, code: str, root: bool = True) -> Any:
    """Run a script with that library in it, as root unless told otherwise, in a process of its own.
    What it "says" last."""
    return probe(sandbox, f"{LIB}\n{code}\n", root)


def reason(reply: Any) -> str:
    """Why a reply is a denial, after a look at its form; what it is instead, if it is none."""
    if "denial" not in reply:
        return str(reply.get("outcome") or f"HTTP {reply.get('status')}")
    denial = reply["denial"]
    assert set(denial) == {"code", "host", "port", "reason", "detail", "hint"}, denial
    assert denial["detail"] and denial["hint"], denial
    assert reply["status"] in (400, 403, 502), reply
    return str(denial["reason"])


def by_all_ways(sandbox: Sandbox, host: str, port: int) -> dict[str, str]:
    """Why a host is denied by an HTTP request, a CONNECT, SOCKS with it as a name. (The code of SOCKS: 2
    is "not allowed by ruleset".)"""
    told = ask(
        sandbox,
        f"""
host, port = {host!r}, {port}
say([get(f"http://{{host}}:{{port}}/json"), connect(host, port), socks(host.encode(), port)])
""",
    )
    return {
        "http": reason(told[0]),
        "connect": reason(told[1]),
        "socks": "denied" if told[2] == 2 else f"SOCKS {told[2]}",
    }


def denied(*reasons: str) -> Any:
    """Equal to what by_all_ways says of a host that is denied for one of these reasons."""

    class Denied:
        def __eq__(self, ways: object) -> bool:
            assert isinstance(ways, dict)
            return (
                ways["socks"] == "denied" and ways["http"] in reasons and ways["connect"] in reasons
            )

        def __repr__(self) -> str:
            return f"denied for one of {reasons} in every way"

    return Denied()
