# SPDX-License-Identifier: Apache-2.0
"""The IPython shell on the user's namespace: magics, !commands, help, display.

Imported only when a cell needs it (or ahead, by a WARM request), since it costs most of a second.
IPython transforms source and owns the magics; running the resulting Python, showing results and
errors stay with the runner, so both kinds of cells behave alike. Commands run as plain child
processes on the real descriptors, by /bin/bash: their output is live and stays on its own stream.
"""

from __future__ import annotations

import builtins
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from typing import Any, Callable

import IPython.core.interactiveshell as interactiveshell
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from IPython.utils.text import LSString, SList
from traitlets import Type
from traitlets.config import Config

from . import magics

_BASH = "/bin/bash"
_TOUCHED = ("_", "__", "___", "__builtin__")  # names that IPython's constructor sets


class _Hook(DisplayHook):
    """Results of code that a magic runs through IPython's own machinery."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        self.shell.results.publish(format_dict)

    def log_output(self, format_dict: dict[str, Any]) -> None:
        pass

    def finish_displayhook(self) -> None:
        pass

    def quiet(self) -> bool:
        return False


class _Publisher(DisplayPublisher):
    """What IPython's display() and its relatives publish."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: Any = None,
        *args: Any,
        transient: Any = None,
        update: bool = False,
        **options: Any,
    ) -> None:
        self._validate_data(data, metadata)
        display_id = transient.get("display_id") if isinstance(transient, dict) else None
        self.shell.results.publish(data, display_id, update)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.results.drop_newer()


class _Formatter(DisplayFormatter):
    """The forms of an object are those that the interpreter finds."""

    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> tuple[Any, Any]:
        data = self.parent.results.forms(obj) or {}
        if include:
            data = {mime: content for mime, content in data.items() if mime in include}
        if exclude:
            data = {mime: content for mime, content in data.items() if mime not in exclude}
        return data, {}


class _Memory(dict[str, Any]):
    """IPython's database (%cd's history, %bookmark, %store) without files."""

    def keys(self, pattern: str | None = None) -> Any:  # type: ignore[override]
        names = super().keys()
        return names if pattern is None else fnmatch.filter(names, pattern)


class Shell(InteractiveShell):
    """IPython as transformer and home of the magics."""

    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)

    def __init__(self, **kwargs: Any) -> None:
        self._runner: Any = kwargs.pop("runner")
        self.results = self._runner.results
        self._custom = False
        self._status = 0
        super().__init__(**kwargs)
        self.db = _Memory()
        self.builtin_trap.auto_builtins = {}
        self.set_hook("show_in_pager", _page)
        self.events.callbacks["pre_execute"].clear()  # the runner resets the warnings
        magics.install(self, self._runner)
        self._cleanups = list(self.input_transformer_manager.cleanup_transforms)
        self._lines = list(self.input_transformer_manager.line_transforms)
        self._plain_text = self.display_formatter.formatters["text/plain"]
        for formatter in self.display_formatter.formatters.values():
            formatter.for_type = self._watched(formatter.for_type)
            formatter.for_type_by_name = self._watched(formatter.for_type_by_name)

    def init_display_formatter(self) -> None:
        self.display_formatter = _Formatter(parent=self)
        self.configurables.append(self.display_formatter)

    def _watched(self, register: Callable[..., Any]) -> Callable[..., Any]:
        def watched(kind: Any, *args: Any) -> Any:
            self._custom = True
            return register(kind, *args)

        return watched

    def has_own_formatters(self) -> bool:
        """Whether the user has registered formatters (sympy.init_printing() does) or a %precision."""
        return self._custom or bool(self._plain_text.float_precision)

    def own_forms(self, value: Any, say: Callable[[str], None]) -> dict[str, Any]:
        """The forms that registered formatters give an object."""
        data: dict[str, Any] = {}
        for mime, formatter in self.display_formatter.formatters.items():
            try:
                make = formatter.lookup(value)
            except KeyError:
                continue
            try:
                if mime == "text/plain":
                    content = _pretty(formatter, value)
                else:
                    content = make(value)
            except Exception as error:
                say(f"{mime} of {type(value).__name__} failed: {type(error).__name__}: {error}")
                continue
            if isinstance(content, tuple) and len(content) == 2:
                content = content[0]
            if content is not None:
                data[mime] = content
        return data

    def wants_every_cell(self) -> bool:
        """Whether the user has registered source transformers, which see every cell."""
        manager = self.input_transformer_manager
        return bool(
            self.input_transformers_post
            or manager.cleanup_transforms != self._cleanups
            or manager.line_transforms != self._lines
        )

    def transform(self, text: str) -> str:
        """IPython source to Python source."""
        return self.transform_cell(text)

    def transform_tree(self, tree: Any) -> Any:
        """Applies the user's AST transformers, if any."""
        return self.transform_ast(tree) if self.ast_transformers else tree

    def before_cell(self) -> None:
        """Runs the user's callbacks (%autoreload is one)."""
        callbacks = self.events.callbacks
        if callbacks["pre_execute"]:
            self.events.trigger("pre_execute")
        if callbacks["pre_run_cell"]:
            info = ExecutionInfo("", False, False, True, self._runner.compiler.name)
            self.events.trigger("pre_run_cell", info)

    def after_cell(self) -> None:
        """Runs the user's callbacks."""
        callbacks = self.events.callbacks
        if callbacks["post_execute"]:
            self.events.trigger("post_execute")
        if callbacks["post_run_cell"]:
            self.events.trigger("post_run_cell", None)

    def init_user_ns(self) -> None:
        """Only what magics need: %cd its directories, %history and %reset their lists."""
        history = self.history_manager
        names = {
            "_ih": history.input_hist_parsed,
            "_oh": history.output_hist,
            "_dh": history.dir_hist,
        }
        self.user_ns_hidden.update(names)
        self.user_ns.update(names)

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """A magic caught an exception of the user's code and wants it shown."""
        error = self._get_exc_info(exc_tuple)[1]
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error
        self._runner.report_shown(error)

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        self._runner.report_shown(self._get_exc_info()[1])

    def show_usage_error(self, exc: BaseException) -> None:
        self._runner.report_shown(exc)

    def ask_exit(self) -> None:
        raise SystemExit(0)

    def enable_gui(self, gui: Any = None) -> None:
        """There is no screen; %gui needs the method."""

    def enable_matplotlib(self, gui: Any = None) -> tuple[str, str]:
        """%matplotlib with whatever: figures come back anyway."""
        import matplotlib.pyplot

        return "inline", matplotlib.get_backend()

    def system(self, cmd: str) -> None:
        """!cmd: the exit status goes to `_exit_code` (negative: the signal that ended it)."""
        self._say_status(self.run_command(self.var_expand(cmd, depth=1)), cmd)

    system_piped = system
    system_raw = system

    def run_command(self, command: str) -> int:
        """Runs a command of bash on the streams of the cell."""
        self._status = subprocess.call(command, shell=True, executable=_BASH)
        self.user_ns["_exit_code"] = self._status
        return self._status

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        """x = !cmd: standard output and error together, as IPython's list or string."""
        command = self.var_expand(cmd, depth=depth + 1)
        done = subprocess.run(
            command,
            shell=True,
            executable=_BASH,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._status = self.user_ns["_exit_code"] = done.returncode
        self._say_status(done.returncode, cmd)
        text = done.stdout.decode("utf-8", "surrogateescape")
        return SList(text.splitlines()) if split else LSString(text)

    def run_script(self, cell: str) -> None:
        """%%bash and %%sh: CalledProcessError when the script fails."""
        done = subprocess.run([_BASH], input=cell.encode("utf-8", "surrogateescape"))
        self._status = self.user_ns["_exit_code"] = done.returncode
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, "bash")

    def last_status(self) -> int:
        """The status of the last command as a shell tells it: 128 + signal when one ended it."""
        return self._status & 0xFF if self._status >= 0 else 128 - self._status

    def _say_status(self, status: int, name: str) -> None:
        if status != 0:
            how = f"with exit code {status}" if status > 0 else f"by signal {-status}"
            self.results.notice(f"!{name.strip()[:200]} ended {how}")


def _page(self: Any, data: Any, start: int = 0, screen_lines: int = 0) -> None:
    text = data.get("text/plain", "") if isinstance(data, dict) else data
    print(text)


def _pretty(formatter: Any, value: Any) -> str:
    """IPython's text of an object, by the printers that the user has registered."""
    before, formatter.pprint = formatter.pprint, True
    try:
        return str(formatter(value))
    finally:
        formatter.pprint = before


def _warn(message: Any, *args: Any, **kwargs: Any) -> None:
    """warnings.warn() but for IPython's advice on how to leave its prompt."""
    if not str(message).startswith("To exit:"):
        warnings.warn(message, *args, **kwargs)


def make(runner: Any) -> Shell:
    """Creates the one shell of this process, without leaving files behind."""
    from . import aio

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.cache_size = 0
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.history_length = 0
    config.InteractiveShell.autocall = 0
    config.PlainTextFormatter.pprint = False
    config.DisplayFormatter.active_types = ["text/plain"]
    interactiveshell.warn = _warn
    hook, excepthook = sys.displayhook, sys.excepthook
    display = vars(builtins).get("display")
    names = runner.names
    kept = {name: names[name] for name in _TOUCHED if name in names}
    directory = tempfile.mkdtemp(prefix="ipython-", dir=_scratch())
    try:
        shell = Shell.instance(
            config=config,
            ipython_dir=directory,
            user_module=runner.module,
            user_ns=names,
            runner=runner,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.displayhook, sys.excepthook = hook, excepthook
    vars(builtins)["display"] = display
    shell.loop_runner = aio.run
    for name in _TOUCHED:
        names.pop(name, None)
    names.update(kept)
    return shell


def _scratch() -> str | None:
    """Memory-backed if possible: IPython insists on a directory while it starts."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
