# SPDX-License-Identifier: Apache-2.0
"""What sandboxed code made, as HTML that a notebook may show.

A notebook runs the scripts of the HTML that it is given, with the rights of the notebook. So the
sandbox's HTML is never passed on: it is read, and written anew with nothing in it but tags and
attributes that are known to be harmless. SVG becomes an image, in which no script runs."""

from __future__ import annotations

import html
import re
from typing import Dict, FrozenSet, List, Optional

_TAGS = frozenset(
    "b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i ins"
    " kbd li ol p pre s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul"
    " var".split()
)
_VOID = frozenset("br col hr".split())
# Their content is no text for people.
_DROPPED = frozenset(
    "script style template iframe object noscript noembed noframes svg math title textarea"
    " select xmp plaintext head".split()
)
_ATTRIBUTES: Dict[str, FrozenSet[str]] = {
    "col": frozenset({"span"}),
    "colgroup": frozenset({"span"}),
    "ol": frozenset({"start"}),
    "table": frozenset({"border", "class"}),
    "td": frozenset({"align", "colspan", "rowspan", "valign"}),
    "th": frozenset({"align", "colspan", "rowspan", "scope", "valign"}),
    "tr": frozenset({"align", "valign"}),
}
_MAX_DEPTH = 200
_MAX_ATTRIBUTES = 1000

# A tag ends before the next "<", also within quotes: so that nothing is looked at more than once.
_TAG = re.compile(r"""<(/?)([A-Za-z][A-Za-z0-9]*)((?:[^<>"']|"[^"<]*"|'[^'<]*')*)>""")
_DECLARATION = re.compile(r"<[!?][^<>]*>")
_ATTRIBUTE = re.compile(r"""([A-Za-z]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""")
_ENDINGS = {tag: re.compile(rf"</{tag}\b[^<>]*>?", re.IGNORECASE) for tag in _DROPPED}
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Cleaner:
    """Writes what it reads, as far as that is allowed. Every tag that it opens it closes. It takes time
    in proportion to the text, whatever that is (the parser of the standard library does not)."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._out: List[str] = []
        self._open: List[str] = []

    def run(self) -> str:
        """All of it. What looks like no tag is text."""
        source, at = self._source, 0
        while at < len(source):
            end = source.find("<", at)
            end = len(source) if end < 0 else end
            self._text(source[at:end])
            at = end if end == len(source) else self._after_tag(end)
        self._out.extend(f"</{tag}>" for tag in reversed(self._open))
        return "".join(self._out)

    def _after_tag(self, at: int) -> int:
        """Take what begins with the "<" there; where the text goes on."""
        source = self._source
        if source.startswith("<!--", at):
            end = source.find("-->", at + 4)
            return len(source) if end < 0 else end + 3
        found = _TAG.match(source, at) or _DECLARATION.match(source, at)
        if found is None:
            self._out.append("&lt;")
            return at + 1
        if found.re is _DECLARATION:
            return found.end()
        closing, tag = found[1], found[2].lower()
        if closing:
            self._end(tag)
        elif tag in _DROPPED:
            ending = _ENDINGS[tag].search(source, found.end())
            return len(source) if ending is None else ending.end()
        elif tag in _TAGS:
            self._start(tag, found[3])
        return found.end()

    def _start(self, tag: str, attributes: str) -> None:
        if len(self._open) >= _MAX_DEPTH:
            return
        allowed = _ATTRIBUTES.get(tag)
        kept = ""
        if allowed and len(attributes) <= _MAX_ATTRIBUTES:
            for name, value in _ATTRIBUTE.findall(attributes):
                value = _unescape(value.strip("\"'"))
                if name.lower() in allowed and (name.lower() != "class" or value == "dataframe"):
                    kept += f' {name.lower()}="{html.escape(value)}"'
        self._out.append(f"<{tag}{kept}>")
        if tag not in _VOID:
            self._open.append(tag)

    def _end(self, tag: str) -> None:
        if tag in self._open:
            while True:
                last = self._open.pop()
                self._out.append(f"</{last}>")
                if last == tag:
                    break

    def _text(self, text: str) -> None:
        self._out.append(html.escape(_unescape(text), quote=False))


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # the number of a character with thousands of digits
        return text


def clean(text: str) -> str:
    """The same HTML with harmless tags and attributes only: tables, lists, headings, plain markup. No
    scripts, styles, links, images or forms; text is kept."""
    return _Cleaner(text).run()


def preformatted(text: str, color: Optional[str] = None) -> str:
    """Text as it would stand in a terminal."""
    style = "margin: 0" + (f"; color: {color}" if color else "")
    return f'<pre style="{style}">{html.escape(printable(text), quote=False)}</pre>'


def image(mime: str, base64: str) -> str:
    """An image with its data in it."""
    return f'<img src="data:{mime};base64,{base64}">'


def printable(text: str) -> str:
    """The text with all control characters but newline and tab spelled out, so that it cannot give
    orders to a terminal."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))
