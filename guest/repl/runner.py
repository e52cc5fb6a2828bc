# SPDX-License-Identifier: Apache-2.0
"""The main loop: takes cells from the control channel, runs them, answers with events and exits.

Everything happens in the main thread, since only it gets KeyboardInterrupt. SIGINT interrupts a cell
while it runs; between cells it does nothing. The states close the gaps: an interrupt that arrives
when a cell was sent but does not run yet (STARTING, or IDLE with frames waiting) interrupts that cell
as soon as it starts, one that arrives after the cell ended (ENDING, IDLE) is dropped. An agent whose
interrupt crossed the EXIT of its cell sends PING and waits for PONG before the next cell: the
interrupt has then been dropped, however late this process was scheduled.

A process forked by a cell runs to the end of that cell and ends there: it never comes back to the
loop, and its channel is closed.
"""

from __future__ import annotations

import _signal
import _thread
import builtins
import faulthandler
import gc
import json
import os
import re
import site
import sys
from types import CodeType, ModuleType
from typing import Any, NoReturn

from . import errors, frames, guard
from .environment import Environment
from .frames import Channel
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401
from .percall import PerCall
from .plots import Plots
from .renew import Renewer
from .rich import Results
from .source import CO_COROUTINE, Compiler
from .streams import Streams

MAX_SOURCE = 64 << 20
MIN_RECURSION = 500
FATAL = 70
_OWN = os.path.dirname(os.path.abspath(__file__))

IDLE, STARTING, RUNNING, ENDING = range(4)
_set_handler = _signal.signal  # the built-in one: see renew.py
_sigmask, _SIGINT, _UNBLOCK = _signal.pthread_sigmask, (_signal.SIGINT,), _signal.SIG_UNBLOCK
_collects, _collect, _keep = gc.isenabled, gc.enable, gc.disable
PLAIN = b"{}"  # a cell without wishes
_parse = json.JSONDecoder().decode  # ours, as what follows, whatever user code does to the modules
_access, _R_OK, _gettrace, _settrace = os.access, os.R_OK, sys.gettrace, sys.settrace
_getprofile, _setprofile = sys.getprofile, sys.setprofile
_getlimit, _setlimit = sys.getrecursionlimit, sys.setrecursionlimit


_COMMAND = ("get_ipython", "system")  # the names in what IPython makes of `!command`

REHEARSALS = 16
REHEARSAL = (b"pass", b"None", b"print(end='')")


class Runner:
    """The interpreter: one per process."""

    def __init__(self, main_module: ModuleType, channel: Channel) -> None:
        """Takes over the process: streams, builtins, hooks, SIGINT and the namespace."""
        self.module = main_module
        self.names: dict[str, Any] = vars(main_module)
        self.channel = channel
        self._modules = sys.modules
        self.compiler = Compiler()
        self.streams = Streams()
        self._exit = os._exit  # the one of streams.py
        self.shell: Any = None
        self.results = Results(self)
        self.plots = Plots(self)
        self.failed = False
        self.status = 0  # of a command that is the last line of the cell
        self._state = IDLE
        self._interrupted = False
        self._collecting = gc.isenabled()
        self._call: PerCall | None = None
        self.environment = Environment()
        self._thread = _thread.get_ident()
        self._user_site: str | None = _missing_user_site()
        self.renewer = Renewer(channel, os.path.dirname(_OWN))
        guard.install({"get_ipython": self._get_ipython, "display": self._display})
        sys.displayhook = self.displayhook
        sys.__displayhook__ = self.displayhook
        _set_handler(_signal.SIGINT, self._on_sigint)
        os.register_at_fork(after_in_child=self._after_fork_in_child)
        _clean_namespace(self.names)

    def serve(self) -> NoReturn:
        """The loop. Ends the process when the agent closes the channel or breaks the protocol."""
        version = sys.version.split()[0]
        ready: dict[str, Any] = {
            "pid": os.getpid(),
            "python": version,
            "ipython": _ipython_version(),
        }
        gc.collect()
        gc.freeze()
        ready["quiet"] = self._rest()
        self.channel.send(frames.READY, json.dumps(ready).encode())
        while True:
            try:
                self.channel.wait()
            except BaseException as error:  # from a signal handler of the user's
                self._report_outside(error)
                continue
            self._state = STARTING
            try:
                self._serve_one()
            except EOFError:
                self._exit(0)
            except BaseException as error:
                self.streams.complain(f"the interpreter's control channel failed: {error!r}\n")
                self._exit(FATAL)
            self._state = IDLE

    def _serve_one(self) -> None:
        kind, payload = self.channel.receive()
        if kind == frames.EXEC:
            request = {} if payload == PLAIN else _parse(payload.decode())
            source = self._receive_source()
            fds = self.channel.take_fds()
            call = None
            if fds or request:
                call = PerCall(request, fds, self.streams, self.environment.given)
            code = self.run_cell(source, call)
            self._state = IDLE  # from here on an interrupt can only be meant for the next cell
            quiet = b"true" if self._rest() else b"false"
            answer = b'{"exit_code":%d,"state":"preserved","quiet":%b}' % (code, quiet)
            self.channel.send(frames.EXIT, answer)
        elif kind == frames.PING:
            self._interrupted = False  # it was meant for a cell that has ended
            self.channel.send(frames.PONG, payload)
        elif kind == frames.RENEW:
            self.renewer.pay()
        elif kind == frames.EGRESS:
            self._take_environment(payload)
        elif kind == frames.WARM:
            self._warm()
            self._interrupted = False
        else:
            raise frames.FrameError(f"unexpected frame type 0x{kind:02x}")

    def _take_environment(self, payload: bytes) -> None:
        try:
            self.environment.take(payload)
        except BaseException as error:  # of what the user has made of os.environ, or a handler
            self._report_outside(error)

    def _receive_source(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            kind, payload = self.channel.receive()
            if kind == frames.END:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            if kind != frames.DATA:
                raise frames.FrameError(f"frame type 0x{kind:02x} inside a cell")
            size += len(payload)
            if size > MAX_SOURCE:
                raise frames.FrameError("the cell is too large")
            parts.append(payload)

    def run_cell(self, source: bytes, call: PerCall | None = None) -> int:
        """Runs one cell and returns its exit code. Whatever the cell does, the interpreter is
        usable afterwards; a process that the cell forked does not return from here."""
        if self._collecting:
            _collect()
        self._prepare()
        self._call = call
        code = -1
        late: BaseException | None = None
        # Interrupts end where SIGINT gets its idle handler back: after that call, none can arrive.
        # Each level takes one that arrives before; the agent sends two at most.
        try:
            try:
                code = self._run_interruptible(source)
                _set_handler(_signal.SIGINT, self._on_sigint)
            except BaseException as error:
                late = error
                _set_handler(_signal.SIGINT, self._on_sigint)
        except BaseException as error:
            late = error
            _set_handler(_signal.SIGINT, self._on_sigint)
        self._state = ENDING
        _sigmask(_UNBLOCK, _SIGINT)  # one that was blocked is dropped now
        if _gettrace() is not None:
            _settrace(None)
        if _getprofile() is not None:
            _setprofile(None)
        if code < 0 and late is not None:
            # It came while an error was being shown, or before the cell had begun.
            code = errors.INTERRUPTED if isinstance(late, KeyboardInterrupt) else 1
            self.streams.complain(type(late).__name__ + "\n")
        self.streams.settle()
        if not self.channel.mine():
            self._exit(code)
        if call is not None:
            call.leave()
            self._call = None
        return code

    def _run_interruptible(self, source: bytes) -> int:
        _set_handler(_signal.SIGINT, _signal.default_int_handler)
        self._state = RUNNING
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        return self._run(source)

    def _run(self, source: bytes) -> int:
        """The part that an interrupt may end: user code, its result's repr, its error's text."""
        failure: BaseException | None = None
        self.failed = False
        self.status = 0
        self.results.before_cell()
        try:
            if self._call is not None:
                self._call.enter()
            self._execute(source)
        except BaseException as error:
            failure = error
        guard.restore(doubt=failure is not None)
        failure = self._show_rest(failure)
        if _getlimit() < MIN_RECURSION:
            _setlimit(MIN_RECURSION)
        if self.shell is not None:
            self.shell.after_cell()
        if failure is not None:
            return errors.report(failure, self.streams.complain, self.emit)
        return 1 if self.failed else self.status

    def _show_rest(self, failure: BaseException | None) -> BaseException | None:
        """Shows what waited for the end of the cell. An error of that is the cell's, if it had none."""
        if not self.is_running_here():
            return failure
        try:
            self.plots.after_cell(failure)
            self.results.after_cell()
        except BaseException as error:
            return failure or error
        return failure

    def _execute(self, source: bytes) -> None:
        names = self.names
        cell = self.compiler.compile(source.decode(), names, self._shell_for)
        shell = self.shell
        if shell is None and (b"IPython" in source or "IPython" in self._modules):
            try:
                shell = self.get_shell()  # so that what IPython.display shows is shown
            except ImportError:  # not installed; the cell may only speak of it
                pass
        if shell is not None:
            shell.before_cell()
        body, last = cell.body, cell.last
        value = None
        if cell.awaits:
            from . import aio

            value = aio.run(_evaluate(body, last, names))
        else:
            if body is not None:
                exec(body, names)
            if last is not None:
                value = eval(last, names)
                if shell is not None and last.co_names == _COMMAND:
                    self.status = shell.last_status()
        if value is not None and not cell.quiet:
            sys.displayhook(value)

    def displayhook(self, value: Any) -> None:
        """sys.displayhook: shows the value of a cell's last expression and keeps it as `_`."""
        if value is None:
            return
        if type(value) is guard.Quit:
            value()
        vars(builtins)["_"] = None
        self.results.show_value(value)
        vars(builtins)["_"] = value

    def is_running(self) -> bool:
        """Whether a cell runs in this process."""
        return self._state == RUNNING and self.channel.mine()

    def is_running_here(self) -> bool:
        """Whether events can be sent: a cell runs, in this process, and this is its thread."""
        return (
            self._state == RUNNING and _thread.get_ident() == self._thread and self.channel.mine()
        )

    def emit(self, payload: bytes) -> None:
        """Sends an event after all output that was made before it."""
        self.streams.flush()
        self.channel.send_event(payload)

    def get_shell(self) -> Any:
        """The IPython shell, made when first asked for."""
        if self.shell is None:
            from . import shell

            self.shell = shell.make(self)
        return self.shell

    def report_shown(self, error: BaseException) -> None:
        """Shows an error that IPython caught on behalf of a magic: the cell has failed."""
        self.failed = True
        here = self.is_running_here()
        errors.report(error, self.streams.complain, self.emit if here else lambda payload: None)

    def _shell_for(self, needed: bool) -> Any:
        return self.get_shell() if needed else self.shell

    def _get_ipython(self) -> Any:
        """get_ipython(): the IPython shell of this interpreter."""
        return self.get_shell()

    def _display(self, *objects: Any, **options: Any) -> Any:
        """display(): shows objects by the richest forms that they have."""
        return self.results.display(*objects, **options)

    def _prepare(self) -> None:
        """Undoes what earlier cells may have broken."""
        self.streams.repair()
        names = self.names
        names["__builtins__"] = builtins
        names.pop("__warningregistry__", None)  # else a line number warns once in all cells
        self._modules["__main__"] = self.module
        if self._user_site is not None:
            self.find_user_site()

    def find_user_site(self) -> None:
        """Adds the user's site-packages to the path when there is one by now."""
        if self._user_site is not None and _access(self._user_site, _R_OK):
            site.addsitedir(self._user_site)
            sys.path_importer_cache.pop(self._user_site, None)
            self._user_site = None

    def _on_sigint(self, signum: int, frame: object) -> None:
        """SIGINT while no cell runs."""
        state = self._state
        if state == STARTING or (state == IDLE and self.channel.pending()):
            self._interrupted = True

    def _report_outside(self, error: BaseException) -> None:
        """An exception between two cells, from a signal handler that the user installed."""
        try:
            if not isinstance(error, (SystemExit, KeyboardInterrupt)):
                errors.report(error, self.streams.complain, lambda payload: None)
        except BaseException:
            pass

    def _rest(self) -> bool:
        """After a cell: whether nothing of the user's runs before the next one. Then no collection
        may call their finalizers either."""
        quiet = not self.streams.audited and self.renewer.quiet()
        self._collecting = _collects()
        if quiet:
            _keep()
        return quiet

    def _warm(self) -> None:
        """Loads IPython ahead of the first cell that needs it."""
        try:
            self.get_shell().transform("!true\n")
        except Exception as error:
            text = json.dumps({"code": "io_error", "message": f"IPython did not load: {error}"})
            self.channel.send(frames.ERROR, text.encode())
            return
        self._rehearse()
        self.renewer.rehearse()
        gc.collect()
        gc.freeze()
        self.channel.send(frames.OK, json.dumps({"quiet": self._rest()}).encode())

    def _rehearse(self) -> None:
        """Runs cells that do nothing until the interpreter has specialised the code that runs cells.
        It writes into that code then: each copy of this process would do so in pages of its own."""
        count = self.compiler.count
        for _ in range(REHEARSALS):
            for source in REHEARSAL:
                self.run_cell(source)
        self.compiler.count = count

    def _after_fork_in_child(self) -> None:
        self.channel.close()
        self._thread = _thread.get_ident()


async def _evaluate(body: CodeType | None, last: CodeType | None, names: dict[str, Any]) -> Any:
    """A cell with await: all of it runs inside the event loop."""
    value = None
    for code in (body, last):
        if code is not None:
            value = eval(code, names)
            if code.co_flags & CO_COROUTINE:
                value = await value
    return value if last is not None else None


def _clean_namespace(names: dict[str, Any]) -> None:
    """Leaves in `__main__` what an interactive interpreter has there."""
    names.clear()
    names.update(
        __name__="__main__",
        __doc__=None,
        __package__=None,
        __loader__=None,
        __spec__=None,
        __annotations__={},
        __builtins__=builtins,
    )


def _missing_user_site() -> str | None:
    """The user's site-packages if it does not exist yet: a first `pip install` makes it."""
    if not site.ENABLE_USER_SITE:
        return None
    path = site.getusersitepackages()
    return None if path in sys.path else path


def _ipython_version() -> str | None:
    """IPython's version without importing it; None when it is not installed."""
    for directory in sys.path:
        try:
            with open(os.path.join(directory, "IPython/core/release.py"), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        parts = re.findall(r"^_version_(?:major|minor|patch) = (\d+)", text, re.M)
        return ".".join(parts)
    return None


def main(main_module: ModuleType) -> NoReturn:
    """Runs the interpreter on the control socket named in REPL_CTL; never returns."""
    number = os.environ.pop("REPL_CTL", "")
    try:
        channel = Channel(int(number))
    except (ValueError, OSError) as error:
        sys.exit(f"repl.py: REPL_CTL must hold the number of the control socket: {error}")
    faulthandler.enable(file=2)
    sys.argv = [""]
    sys.path[0] = ""
    Runner(main_module, channel).serve()
