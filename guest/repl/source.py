# SPDX-License-Identifier: Apache-2.0
"""From the text of a cell to code objects: dedent, parse, find out whether IPython is needed.

Plain Python never touches IPython. A cell goes to IPython's transformer only when Python cannot
parse it and something in it looks like IPython's syntax (`%magic`, `!cmd`, `name?`, pasted prompts),
or when it is one line that starts with a command that IPython runs without a percent sign (`ls`,
`pip install x`) and is no name of the user's. The transformer's output is ordinary Python, which
then takes the same way as any other cell.
"""

from __future__ import annotations

import __future__ as future
import linecache
import re
import textwrap
from collections import deque
from types import CodeType
from typing import Any, Callable

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

CO_COROUTINE = 0x80  # inspect.CO_COROUTINE
_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST, without importing ast
_TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_FUTURES = 0
for _name in future.all_feature_names:
    _FUTURES |= getattr(future, _name).compiler_flag

KEPT_CELLS = 500
KEPT_BYTES = 16 << 20

_INDENTED = re.compile(r"(?:[ \t\f]*(?:#[^\n]*)?\n)*[ \t]+[^\s#]")
_IPYTHON = re.compile(r"^\s*(?:[%!?]|>>> |In ?\[\d+\]:)|[\w\])]\s*=\s*[%!]|\?\s*(?:#.*)?$", re.M)
_AUTOMAGIC = re.compile(
    r"\s*(autoreload|cat|cd|conda|cp|env|ldir|ll|load_ext|ls|matplotlib|mkdir|mv|pip|pwd|reload_ext"
    r"|rm|rmdir|run|time|timeit|who|whos)(?:[ \t]+(?![-+*/%&|^<>=!]*=)[^(<>=,\s][^\n]*)?\s*\Z"
)


class Cell:
    """A compiled cell: `body` runs for its effect, the value of `last` is the result."""

    __slots__ = ("body", "last", "quiet", "awaits")

    def __init__(self, body: CodeType | None, last: CodeType | None, quiet: bool) -> None:
        self.body = body
        self.last = last
        self.quiet = quiet
        flags = (body.co_flags if body else 0) | (last.co_flags if last else 0)
        self.awaits = bool(flags & CO_COROUTINE)


class Compiler:
    """Compiles cells, keeps their text for tracebacks, carries `from __future__` on."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self._flags = _TOP_LEVEL_AWAIT
        self._kept: deque[tuple[str, int]] = deque()
        self._kept_bytes = 0

    def compile(self, text: str, names: dict[str, Any], get_shell: Callable[[bool], Any]) -> Cell:
        """Compiles `text`. get_shell(False) is the IPython shell if it exists; get_shell(True)
        makes it. SyntaxError and the other errors of compile() pass through."""
        self.count += 1
        name = self.name = f"<cell {self.count}>"
        text = normalize(text)
        shell = get_shell(False)
        if shell is not None and shell.wants_every_cell():
            text = shell.transform(text)
        elif is_automagic(text, names):
            text = get_shell(True).transform(text)
        self._keep(text)
        tree, error = self._try_parse(text)
        if error is not None and (_IPYTHON.search(text) or _AUTOMAGIC.match(text)):
            shell = get_shell(True)
            transformed = shell.transform(text)
            if transformed != text:
                text = transformed
                self._keep(text)
                tree, error = self._try_parse(text)
        if error is not None:
            raise error
        if shell is not None:
            tree = shell.transform_tree(tree)
        return self._generate(tree, text, name)

    def _try_parse(self, text: str) -> tuple[Any, SyntaxError | None]:
        """The tree, or the error: raised later, so that no other error seems to follow from it."""
        try:
            return compile(text, self.name, "exec", self._flags | _ONLY_AST, True), None
        except SyntaxError as problem:
            error = problem
        if isinstance(error, IndentationError) and _INDENTED.match(text):
            tree = self._parse_block(text)
            if tree is not None:
                return tree, None
        return None, error

    def _parse_block(self, text: str) -> Any:
        """Parses text that is indented although dedent() found no common margin, because a string
        or a comment in it starts further left."""
        try:
            tree = compile("if 1:\n" + text, self.name, "exec", self._flags | _ONLY_AST, True)
        except SyntaxError:
            return None
        block = tree.body[0]
        if len(tree.body) != 1 or block.orelse:
            return None
        import ast

        tree.body = block.body
        return ast.increment_lineno(tree, -1)

    def _generate(self, tree: Any, text: str, name: str) -> Cell:
        statements = tree.body
        last = None
        if statements and type(statements[-1]).__name__ == "Expr":
            last = statements.pop()
        body_code = last_code = None
        if statements:
            body_code = compile(tree, name, "exec", self._flags, True)
            self._flags |= body_code.co_flags & _FUTURES
        if last is None:
            return Cell(body_code, None, True)
        expression = _Expression(last.value)
        last_code = compile(expression, name, "eval", self._flags, True)
        return Cell(body_code, last_code, _ends_with_semicolon(text, last))

    def _keep(self, text: str) -> None:
        """Remembers the text for tracebacks and inspect, and forgets the oldest cells."""
        kept, name = self._kept, self.name
        if kept and kept[-1][0] == name:
            self._kept_bytes -= kept.pop()[1]
        lines = (text if text.endswith("\n") else text + "\n").splitlines(True)
        if type(linecache.cache) is not dict:  # the user's doing
            linecache.cache = {}
        linecache.cache[name] = (len(text), None, lines, name)
        kept.append((name, len(text)))
        self._kept_bytes += len(text)
        while len(kept) > KEPT_CELLS or (self._kept_bytes > KEPT_BYTES and len(kept) > 1):
            old, size = kept.popleft()
            self._kept_bytes -= size
            linecache.cache.pop(old, None)


def _expression_class() -> type:
    """ast.Expression, without importing ast."""
    return type(compile("0", "", "eval", _ONLY_AST))


_Expression = _expression_class()


def normalize(text: str) -> str:
    """Unix line ends, no byte order mark, and no common indent when the code is indented."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.startswith("\ufeff"):
        text = text[1:]
    if "\0" in text:
        raise SyntaxError("source code contains a null byte")
    if _INDENTED.match(text):
        text = textwrap.dedent(text)
    return text


def is_automagic(text: str, names: dict[str, Any]) -> bool:
    """Whether the cell is one line such as `ls -l` whose first word is no name of the user's."""
    if len(text) > 1000:
        return False
    match = _AUTOMAGIC.match(text)
    return match is not None and match.group(1) not in names


def _ends_with_semicolon(text: str, statement: Any) -> bool:
    """Whether a semicolon after the last expression asks for no result."""
    lines = text.splitlines()
    if ";" not in lines[statement.end_lineno - 1]:
        return False
    tail = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :]
    return bool(tail.lstrip().startswith(b";"))
