# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else wrote, made fit to be shown in a message, as src/lib/plain.h does it for the
daemon: what a terminal could take for a command, a reader for the end of a line, or what turns the
direction of what stands beside it, is spelled out."""

from __future__ import annotations

import re

# C0 but for the end of a line, C1, U+2028, U+2029, the marks, embeddings, overrides and isolates of
# direction; and halves of surrogate pairs, which stand for bytes that are no UTF-8 and cannot be printed.
_NOT_PLAIN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: str) -> str:
    """The text with its line ends, and nothing else that is more than a character."""
    return _NOT_PLAIN.sub(_spelled, text.replace("\r\n", "\n"))


def flat(text: str) -> str:
    """The same on one line: for what a sandbox says in the middle of a sentence of ours."""
    return plain(text).strip("\n").replace("\n", " ")


def _spelled(found: "re.Match[str]") -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
