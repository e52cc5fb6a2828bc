# SPDX-License-Identifier: Apache-2.0
"""A client of TLS 1.3 that asks for new keys whenever a test wants, which Python's own cannot. It
works on a blocking socket."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket

_lib = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
for _name in ("SSL_CTX_new", "SSL_new", "TLS_client_method"):
    getattr(_lib, _name).restype = ctypes.c_void_p

_SET_NAME, _MODE, _MOVING_BUFFER = 55, 33, 2
_UPDATE_REQUESTED = 1


class Client:
    """Nothing of the server's is verified: it is the proxy that is tested."""

    def __init__(self, s: socket.socket, name: str) -> None:
        self.socket = s  # stays open as long as this
        self.ctx = ctypes.c_void_p(_lib.SSL_CTX_new(ctypes.c_void_p(_lib.TLS_client_method())))
        self.ssl = ctypes.c_void_p(_lib.SSL_new(self.ctx))
        _lib.SSL_ctrl(self.ssl, _SET_NAME, ctypes.c_long(0), name.encode())
        _lib.SSL_ctrl(self.ssl, _MODE, ctypes.c_long(_MOVING_BUFFER), None)
        s.setblocking(True)
        _lib.SSL_set_fd(self.ssl, s.fileno())
        assert _lib.SSL_connect(self.ssl) == 1

    def update(self) -> bool:
        """New keys of both sides, with what is written next; False: the connection has ended."""
        return bool(_lib.SSL_key_update(self.ssl, _UPDATE_REQUESTED) == 1)

    def flush(self) -> bool:
        return bool(_lib.SSL_do_handshake(self.ssl) == 1)

    def write(self, data: bytes) -> bool:
        return bool(_lib.SSL_write(self.ssl, data, len(data)) == len(data))

    def read_until(self, end: bytes) -> bytes:
        got, piece = b"", ctypes.create_string_buffer(4096)
        while not got.endswith(end):
            n = _lib.SSL_read(self.ssl, piece, len(piece))
            if n <= 0:
                raise EOFError(got)
            got += piece.raw[:n]
        return got

    def close(self) -> None:
        _lib.SSL_free(self.ssl)
        _lib.SSL_CTX_free(self.ctx)
        self.socket.close()
