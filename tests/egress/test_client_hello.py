# SPDX-License-Identifier: Apache-2.0
"""The name in TLS has to be the name that was asked for: what else there may be in a tunnel is
refused, with an alert, before a byte of it has reached the destination."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import hellos
import pytest
from conftest import Proxy, recv_all, recv_exactly, until
from servers import Tcp, TlsServer

HRR_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

CCS = bytes([20, 3, 3, 0, 1, 1])


class Sink(Tcp):
    """Takes what comes, and says nothing."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        super().__init__(lambda s: self.got.append(recv_all(s)))


def refused(proxy: Proxy, sent: bytes) -> dict:
    """Sends it through a tunnel for a.test. It has to be answered with an alert and the end of the
    connection, and nothing of it may get through. The record of the denial."""
    with Sink() as sink:
        proxy.policy([f"a.test:{sink.port}"])
        reply = proxy.connect("a.test", sink.port)
        assert reply.status == 200
        assert proxy.decision()["verdict"] == "allow"
        reply.socket.sendall(sent)
        assert recv_all(reply.socket) == hellos.ALERT_DENIED
        told = proxy.decision()
        assert told["verdict"] == "deny" and told["host"] == "a.test"
        end = proxy.end()
        assert end["why"] == told["reason"]
        until(lambda: sink.got)
    assert sink.got == [b""]
    return told


def passes(proxy: Proxy, pieces: list[bytes]) -> None:
    """Sends it through a tunnel for a.test, where it has to arrive as it is."""
    with Sink() as sink:
        proxy.policy([f"a.test:{sink.port}"])
        reply = proxy.connect("a.test", sink.port)
        for piece in pieces:
            reply.socket.sendall(piece)
        reply.socket.shutdown(socket.SHUT_WR)
        assert recv_all(reply.socket) == b""
        until(lambda: sink.got)
    assert sink.got == [b"".join(pieces)]


def test_the_right_name_passes(proxy: Proxy) -> None:
    passes(proxy, [hellos.hello()])


def test_the_name_in_capitals_passes(proxy: Proxy) -> None:
    passes(proxy, [hellos.hello(b"A.Test")])


def test_byte_by_byte(proxy: Proxy) -> None:
    passes(proxy, [bytes([b]) for b in hellos.hello() + CCS + hellos.records(bytes(9), kind=23)])


@pytest.mark.parametrize("size", [1, 3, 40, 200])
def test_spread_over_records(proxy: Proxy, size: int) -> None:
    good = hellos.message(hellos.server_name(b"a.test"))
    passes(proxy, [hellos.records(good, size)])


@pytest.mark.jail
def test_large_but_not_too_large(proxy: Proxy) -> None:
    padding = hellos.extension(21, bytes(60000))
    passes(proxy, [hellos.hello(more=padding)])


def test_old_versions_in_the_record(proxy: Proxy) -> None:
    good = bytearray(hellos.hello())
    good[2] = 3
    passes(proxy, [bytes(good)])


@pytest.mark.jail
def test_another_name(proxy: Proxy) -> None:
    told = refused(proxy, hellos.hello(b"b.test"))
    assert told["reason"] == "sni_mismatch"
    assert "b.test" in told["detail"]


@pytest.mark.parametrize(
    "name", [b"a.test.", b"x.a.test", b"a.tes", b"test", b"*.test", b"127.0.0.1"]
)
def test_names_that_are_nearly_it(proxy: Proxy, name: bytes) -> None:
    assert refused(proxy, hellos.hello(name))["reason"] == "sni_mismatch"


@pytest.mark.parametrize(
    "name", [b"a.test\0", b"a.test\0.b.test", b"\0", b"a.test\r\n", b" a.test", b"\xc3\xa4.test"]
)
def test_names_that_are_none(proxy: Proxy, name: bytes) -> None:
    assert refused(proxy, hellos.hello(name))["reason"] == "not_tls"


def test_no_name(proxy: Proxy) -> None:
    without = hellos.records(hellos.message(hellos.extension(10, b"\0\2\0\x1d")))
    assert refused(proxy, without)["reason"] == "sni_missing"


def test_no_extensions(proxy: Proxy) -> None:
    assert refused(proxy, hellos.records(hellos.message(None)))["reason"] == "sni_missing"


@pytest.mark.parametrize("kind", [hellos.ECH, hellos.ESNI])
def test_encrypted_client_hello(proxy: Proxy, kind: int) -> None:
    told = refused(proxy, hellos.hello(more=hellos.extension(kind, bytes(40))))
    assert told["reason"] == "ech"


def bad_messages() -> dict[str, bytes]:
    name = hellos.server_name(b"a.test")
    good = hellos.message(name)
    return {
        "two-names": hellos.message(hellos.server_name(b"a.test", b"b.test")),
        "name-twice": hellos.message(name + name),
        "other-kind-of-name": hellos.message(hellos.server_name(b"a.test", kind=1)),
        "empty-name": hellos.message(hellos.server_name(b"")),
        "empty-list": hellos.message(hellos.extension(0, b"\0\0")),
        "empty-extension": hellos.message(hellos.extension(0, b"")),
        "list-shorter": hellos.message(hellos.extension(0, b"\0\x09\0\0\6a.test\0")),
        "list-longer": hellos.message(hellos.extension(0, b"\0\xff\0\0\6a.test")),
        "extension-longer": hellos.message(name[:2] + b"\xff\xff" + name[4:]),
        "behind-extensions": good[:1] + hellos.vector(3, good[4:] + b"\0"),
        "cut": good[:1] + hellos.vector(3, good[4:-1]),
        "two-messages": good + good,
        "trailing": good + b"\0",
        "not-a-hello": hellos.message(name, kind=2),
        "version": hellos.message(name, version=b"\2\0"),
        "too-long": hellos.message(name + hellos.extension(21, bytes(65500))),
        "says-too-long": good[:1] + b"\xff\xff\xff" + good[4:],
        "any-extension-twice": hellos.message(name + hellos.extension(9, b"") * 2),
    }


@pytest.mark.parametrize("case", bad_messages())
def test_malformed_message(proxy: Proxy, case: str) -> None:
    assert refused(proxy, hellos.records(bad_messages()[case]))["reason"] == "not_tls"


def bad_records() -> dict[str, bytes]:
    good = hellos.message(hellos.server_name(b"a.test"))
    whole = hellos.records(good)
    return {
        "http": b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
        "sslv2": b"\x80\x2e\x01\x03\x01" + bytes(40),
        "zeros": bytes(100),
        "alert": hellos.records(b"\1\0", kind=21),
        "data": hellos.records(good, kind=23),
        "major": bytes([22, 2, 1]) + whole[3:],
        "minor": bytes([22, 3, 9]) + whole[3:],
        "empty-record": bytes([22, 3, 1, 0, 0]) + whole,
        "record-too-long": bytes([22, 3, 1, 0x40, 1]) + bytes(0x4001),
        "alert-between": hellos.records(good[:50]) + hellos.records(b"\1\0", kind=21)
        + hellos.records(good[50:]),
        "empty-record-between": hellos.records(good[:50]) + bytes([22, 3, 1, 0, 0])
        + hellos.records(good[50:]),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_records())
def test_malformed_records(proxy: Proxy, case: str) -> None:
    assert refused(proxy, bad_records()[case])["reason"] == "not_tls"


def test_the_first_byte_is_enough(proxy: Proxy) -> None:
    assert refused(proxy, b"G")["reason"] == "not_tls"


def test_tls_false_takes_anything(proxy: Proxy) -> None:
    with Sink() as sink:
        proxy.policy([{"host": "a.test", "ports": [sink.port], "tls": False}])
        s = proxy.connect("a.test", sink.port).socket
        s.sendall(b"not TLS at all")
        s.shutdown(socket.SHUT_WR)
        assert recv_all(s) == b""
        until(lambda: sink.got)
    assert sink.got == [b"not TLS at all"]


def test_ceiling_keeps_tls(proxy: Proxy) -> None:
    """A grant without TLS does not go beyond a ceiling with it."""
    with Sink() as sink:
        allow = [{"host": "a.test", "ports": [sink.port], "tls": False}]
        proxy.policy(allow, ceiling=[f"a.test:{sink.port}"])
        s = proxy.connect("a.test", sink.port).socket
        s.sendall(b"not TLS at all")
        assert recv_all(s) == hellos.ALERT_DENIED
        until(lambda: sink.got)
    assert sink.got == [b""]


def test_an_alert_is_shown_by_clients(proxy: Proxy, tls: TlsServer, ca: Path) -> None:
    proxy.policy([f"a.test:{tls.port}"])
    s = proxy.connect("a.test", tls.port).socket
    context = ssl.create_default_context(cafile=str(ca / "ca.pem"))
    with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
        context.wrap_socket(s, server_hostname="b.test")
    assert tls.names == []


# A server may ask for a second ClientHello.


def server_hello(random: bytes) -> bytes:
    body = b"\3\3" + random + b"\0" + b"\x13\x01" + b"\0" + b"\0\0"
    return hellos.records(b"\2" + hellos.vector(3, body))


class Asks(Tcp):
    """Answers a ClientHello with what it was given, and keeps what comes behind it."""

    def __init__(self, answer: bytes, first: bytes) -> None:
        self.got: list[bytes] = []
        self.answer, self.first = answer, first
        super().__init__(self.speak)

    def speak(self, s: socket.socket) -> None:
        assert recv_exactly(s, len(self.first)) == self.first
        s.sendall(self.answer)
        self.got.append(recv_all(s))


def second(proxy: Proxy, answer: bytes, then: bytes, wait: bool = True) -> tuple[bytes, bytes]:
    """The first ClientHello, the server's answer, and then something: what the server and what the
    client got behind that."""
    first = hellos.hello()
    with Asks(answer, first) as server:
        proxy.policy([f"a.test:{server.port}"])
        s = proxy.connect("a.test", server.port).socket
        s.sendall(first)
        if wait:
            assert recv_exactly(s, len(answer)) == answer
        s.sendall(then)
        s.shutdown(socket.SHUT_WR)
        rest = recv_all(s)
        until(lambda: server.got)
    return server.got[0], rest


@pytest.mark.parametrize("before", [b"", CCS, hellos.records(b"early data", kind=23)])
def test_second_hello_with_the_same_name(proxy: Proxy, before: bytes) -> None:
    then = before + hellos.hello() + CCS + hellos.records(bytes(100), kind=23)
    assert second(proxy, server_hello(HRR_RANDOM), then) == (then, b"")


@pytest.mark.parametrize("before", [b"", CCS, hellos.records(b"early data", kind=23)])
@pytest.mark.parametrize("size", [16384, 1, 60])
def test_second_hello_with_another_name(proxy: Proxy, before: bytes, size: int) -> None:
    other = hellos.records(hellos.message(hellos.server_name(b"b.test")), size)
    got, rest = second(proxy, server_hello(HRR_RANDOM), before + other)
    assert rest == hellos.ALERT_DENIED
    assert not got.endswith(other)
    told = proxy.decision(verdict="deny")
    assert told["reason"] == "sni_mismatch"


@pytest.mark.parametrize("extra", [None, b"", hellos.extension(hellos.ECH, bytes(9))])
def test_second_hello_without_a_name(proxy: Proxy, extra: bytes) -> None:
    other = hellos.records(hellos.message(extra))
    _, rest = second(proxy, server_hello(HRR_RANDOM), other)
    assert rest == hellos.ALERT_DENIED


def test_second_hello_before_it_is_asked_for(proxy: Proxy) -> None:
    first = hellos.hello()
    with Sink() as sink:
        proxy.policy([f"a.test:{sink.port}"])
        s = proxy.connect("a.test", sink.port).socket
        s.sendall(first + hellos.hello(b"b.test"))
        assert recv_all(s) == hellos.ALERT_DENIED
        until(lambda: sink.got)
    assert b"b.test" not in sink.got[0]


def test_handshake_of_tls12_goes_on(proxy: Proxy) -> None:
    """What a client of TLS 1.2 sends after the server's hello is no ClientHello."""
    then = hellos.records(b"\x10" + hellos.vector(3, bytes(33))) + CCS + hellos.records(bytes(40))
    assert second(proxy, server_hello(bytes(32)), then) == (then, b"")


def test_what_is_not_tls_behind_the_hello(proxy: Proxy) -> None:
    with Sink() as sink:
        proxy.policy([f"a.test:{sink.port}"])
        s = proxy.connect("a.test", sink.port).socket
        s.sendall(hellos.hello() + b"no record")
        assert recv_all(s) == hellos.ALERT_DENIED
        assert proxy.decision(verdict="deny")["reason"] == "sni_mismatch"


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_real_handshakes(proxy: Proxy, ca: Path, most: ssl.TLSVersion) -> None:
    with TlsServer(ca, most) as server:
        proxy.policy([f"a.test:{server.port}"])
        s = proxy.connect("a.test", server.port).socket
        context = ssl.create_default_context(cafile=str(ca / "ca.pem"))
        with context.wrap_socket(s, server_hostname="a.test") as t:
            assert recv_exactly(t, 13) == b"hello a.test\n"
            assert t.version() == most.name.replace("v1_", "v1.")


@pytest.mark.jail
def test_real_second_hello(proxy: Proxy, ca: Path) -> None:
    """A server that takes another group than the client guessed asks again."""
    with TlsServer(ca) as server:
        server.context.set_ecdh_curve("secp384r1")
        proxy.policy([f"a.test:{server.port}"])
        s = proxy.connect("a.test", server.port).socket
        context = ssl.create_default_context(cafile=str(ca / "ca.pem"))
        with context.wrap_socket(s, server_hostname="a.test") as t:
            assert recv_exactly(t, 13) == b"hello a.test\n"
    # Both hellos were seen by the server: it looks at the name of each.
    assert set(server.names) == {"a.test"}
