# SPDX-License-Identifier: Apache-2.0
"""The Sandbox: a microVM seen from the outside."""

from __future__ import annotations

import time
from typing import (
    Any,
    BinaryIO,
    Callable,
    Iterable,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    TypeVar,
    Union,
)

from . import _calls, _egress, _fan
from ._base import (
    Closing,
    SandboxBase,
    client_from,
    forkable_wish,
    id_of,
    not_persistent,
    wish_from,
)
from ._calls import Remote
from ._children import Children
from ._client import Client
from ._commands import Commands
from ._contexts import Context
from ._egress import Egress, EgressEntry, EgressInject, EgressRecord
from ._errors import (
    ExecNotFoundError,
    ForkError,
    SandboxEndedError,
)
from ._exec import (
    DEFAULT_TIMEOUT,
    OVERTAKEN_PAUSE,
    OVERTAKEN_TRIES,
    Callbacks,
    LimitAction,
    request,
)
from ._files import Files
from ._http import Call
from ._results import ExecError, ExecResult, Language, RaceResult, Result
from ._streams import ExecStream, collect
from ._transfer import Data, Local, Progress
from ._types import ContextInfo, Diff, ExecInfo, FileInfo, SandboxInfo, TreeNode

T = TypeVar("T")


class Sandbox(SandboxBase[Client], Closing):
    """A microVM of its own, with a Python interpreter that remembers, and without a network: it
    reaches the hosts that it is allowed, and nothing else.

        with Sandbox() as s:
            s.run_code("x = 42")
            print(s.run_code("print(x * 2)").stdout)

    It exists when the constructor returns and is destroyed by `close()`, which the `with` block
    calls also when an exception leaves it. All methods may be called from several threads; the
    commands of one context of a sandbox run one after the other.

    template     which image and warm-up: "default" if not given.
    host, api_key, traceparent   as for Client; or share one by `client`.
    egress_allow what the sandbox may reach (docs/egress.md), a list of entries; nothing if it is not
                 given. "api.example.com" (ports 443 and 80), "api.example.com:8443",
                 "*.example.com" (every name below it), a group such as "pypi", or a dict with
                 "host" and "ports", "methods", "paths", "tls". InvalidRequestError for an entry of
                 which the operator's ceiling allows nothing.
    egress_inject    secrets that the sandbox uses and never sees: for each host, headers that are
                 added to its requests outside. Code speaks to http://HOST.egress/, or to
                 https://HOST/ if that is intercepted.
    egress_intercept hosts whose TLS is ended outside of the sandbox, so that headers can be added,
                 and methods and paths held to the rules. The sandbox trusts a CA of its own for that.
    egress       True grants what the operator has configured as the default (nothing, unless there
                 is one), False nothing, whatever that default is.
    persistent   asks for a sandbox that survives idleness; InvalidRequestError if the daemon has
                 none.
    memory_mib, vcpus, disk_mib   size of the machine; else the template's. The first sandbox of a
                 size waits until the template has booted once more in that size.
    forkable     False for one that is never forked: its process on the host gives up, before its
                 guest runs, the system calls that make, save and fork machines. `fork`, `map`,
                 `race` and `merge_into` raise NotForkableError then; all else works as ever.
    metadata     str to str, kept with the sandbox.
    """

    def __init__(
        self,
        *,
        template: Optional[str] = None,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        client: Optional[Client] = None,
        traceparent: Optional[str] = None,
        egress: Optional[bool] = None,
        egress_allow: Optional[Iterable[EgressEntry]] = None,
        egress_inject: Optional[EgressInject] = None,
        egress_intercept: Iterable[str] = (),
        persistent: Optional[bool] = None,
        memory_mib: Optional[int] = None,
        vcpus: Optional[int] = None,
        disk_mib: Optional[int] = None,
        forkable: bool = True,
        metadata: Optional[Mapping[str, str]] = None,
    ) -> None:
        wish = wish_from(
            template,
            egress,
            egress_allow,
            egress_inject,
            egress_intercept,
            persistent,
            memory_mib,
            vcpus,
            disk_mib,
            forkable,
            metadata,
        )
        self._attach(client, host, api_key, traceparent, Client)
        try:
            reply = self._call(_calls.create(wish))
            self._id = reply["id"]
        except BaseException:
            self._detach()
            raise
        if persistent and not reply.get("persistent"):
            self.close()
            raise not_persistent()

    @classmethod
    def connect(
        cls,
        id: str,
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        client: Optional[Client] = None,
        traceparent: Optional[str] = None,
    ) -> "Sandbox":
        """A sandbox that exists already, by its id. Raises SandboxNotFoundError if there is none
        and SandboxEndedError if it has ended. Closing it destroys it, whoever created it."""
        _calls.check_id(id)
        self = cls.__new__(cls)
        self._attach(client, host, api_key, traceparent, Client)
        self._id = id
        try:
            info = self.info()
            if info.state == "ended":
                raise SandboxEndedError(f"sandbox {id} has ended: {info.ended_reason or 'closed'}")
        except BaseException:
            self._detach()
            raise
        return self

    @staticmethod
    def list(
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        client: Optional[Client] = None,
    ) -> List[SandboxInfo]:
        """Every sandbox that the daemon knows of."""
        shared = client_from(client, host, api_key, Client)
        try:
            return shared.call(_calls.sandboxes())
        finally:
            if client is None:
                shared.close()

    def info(self) -> SandboxInfo:
        """What the daemon knows of this sandbox now."""
        return self._call(_calls.info(self.id))

    # Running code.

    def run_code(
        self,
        code: str,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
        on_result: Optional[Callable[[Result], object]] = None,
        on_error: Optional[Callable[[ExecError], object]] = None,
    ) -> ExecResult:
        """Run code and wait for its end.

        Python runs in an interpreter where names, imports, open files and threads persist between
        calls; bash and javascript (for templates that have node) run in a fresh process each time.
        A block that is indented as a whole is dedented first.

        timeout   seconds that the command may run, from its start (waiting for its turn does not
                  count); 0 or None: as long as it likes. At the deadline it is interrupted, then it
                  and all that it started are killed: a result with `termination_reason` "timeout".
        context   which interpreter: a Context or its id; else "default". For other languages, any
                  name of a queue.
        cwd, env  working directory and additional environment variables, for this call only.
        user      "user" or "root"; for Python it must be that of the context. Default: "user".
        stdin     what the code may read from its standard input, as with `input()`; nothing if it
                  is not given.
        output_limit   bytes that are kept of stdout, and of stderr, 64 KiB to 256 MiB; 16 MiB if not
                  given. Of more the head and the tail are kept; see `ExecResult.truncated`.
        output_limit_action   "truncate" (if not given): it goes on all the same; "end": it is ended, as
                  at its time-out, with the first bytes and `termination_reason` "output_limit".
        queue_timeout   seconds that it may wait for other calls of its context; then it is not run, and
                  the result is "refused". 0: not at all. Any time if not given.
        on_stdout, on_stderr, on_result, on_error   called in this thread, as things happen, with a
                  piece of text, a Result, an ExecError. An exception that one of them raises ends
                  the command and is passed on.

        A command that fails is a result (see `ExecResult.exit_code`), also when it took the whole
        sandbox down (`termination_reason` "vm_ended"). If the connection breaks, StreamBrokenError
        is raised, and RequestTimeoutError if the daemon has not ended the command long after its
        time-out; both have what had arrived.
        """
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        stream = self.run_code_stream(
            code,
            language,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return collect(stream, callbacks)

    def run_code_stream(
        self,
        code: str,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
    ) -> ExecStream:
        """Run code and iterate over its events as they happen; the last one is the exit event. The
        arguments are those of `run_code`; nothing is gathered, so that memory does not grow.

        The command starts when the first event is asked for. Leaving the loop early, or closing
        the stream, ends the command. Reading slowly slows the command down; nothing is lost up to
        half of `output_limit` (of more, the last half of it comes at the end).
        """
        self._check_open()
        wish = request(
            self._id,
            code=code,
            language=language,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return ExecStream(self, wish)

    def exec(
        self,
        argv: Sequence[Remote],
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
    ) -> ExecResult:
        """Run a program with its arguments, without a shell: nothing needs to be quoted.

            s.exec(["grep", "-c", pattern, "/tmp/my file.txt"]).stdout

        The other arguments, and what is raised, as for `run_code`. `context` says only behind which
        commands it waits for its turn; with a name that nothing else uses it does not wait.
        """
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        stream = self.exec_stream(
            argv,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return collect(stream, callbacks)

    def exec_stream(
        self,
        argv: Sequence[Remote],
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
    ) -> ExecStream:
        """`exec` as an iterator of events; see `run_code_stream`."""
        self._check_open()
        wish = request(
            self._id,
            argv=argv,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return ExecStream(self, wish)

    def interrupt(self, exec_id: Optional[str] = None, *, escalate: bool = False) -> bool:
        """Interrupt what runs, as Ctrl-C does; from another thread. Python code gets a
        KeyboardInterrupt and its variables stay; the call ends with `termination_reason`
        "interrupted" and exit code 130, unless the code goes on all the same.

        exec_id    which call, also one of another program (`list_execs`). Without it: those calls
                   of this object that run. One that waits behind them is not touched; it may be
                   named, and then never runs.
        escalate   if the code does not heed the interrupt, kill it.

        Returns whether there was anything to interrupt: True if a call ran or waited, False if it
        had ended by then. Raises ExecNotFoundError for an id that the daemon does not know.
        """
        self._check_open()
        targets = (exec_id,) if exec_id is not None else self._underway.targets()
        hit = False
        for target in targets:
            hit = self._interrupt(target, escalate) or hit
        return hit

    def _interrupt(self, exec_id: str, escalate: bool) -> bool:
        for _ in range(OVERTAKEN_TRIES):
            ours = exec_id in self._underway
            try:
                return self._call(_calls.interrupt(self._id, exec_id, escalate)) != "ended"
            except ExecNotFoundError:
                if not ours:
                    raise
                # It is on its way there.
                time.sleep(OVERTAKEN_PAUSE)
            if exec_id not in self._underway:
                return False
        raise ExecNotFoundError(f"the daemon knows of no call {exec_id}")

    # What it may reach.

    @property
    def egress(self) -> Egress:
        """What this sandbox may reach now, and whether that works; asks the daemon."""
        return self._call(_calls.egress(self.id))

    def update_egress(
        self,
        allow: Union[Literal[False], Iterable[EgressEntry]],
        inject: Optional[EgressInject] = None,
        intercept: Iterable[str] = (),
    ) -> Egress:
        """Replace what this sandbox may reach, all of it, while it runs. Connections that the new
        grant does not allow are cut; the others go on.

        allow       the new list of entries, as `egress_allow` of the class; False or [] for nothing.
        inject      as `egress_inject`. Without it nothing is injected any more, so give it again.
        intercept   as `egress_intercept`.

        Returns the grant as it holds now. Raises InvalidRequestError, which names the entry that
        cannot be understood, or of which the operator's ceiling allows nothing; EgressDisabledError and
        EgressUnavailableError if the daemon grants nothing to anybody. The old grant holds then.
        """
        self._check_open()
        return self._call(
            _calls.update_egress(self._id, _egress.update(allow, inject, intercept))
        )

    def egress_log(self, limit: int = 1000) -> List[EgressRecord]:
        """What this sandbox has tried to reach, the oldest first: the last `limit` records of the
        1000 that are kept."""
        return self._call(_calls.egress_log(self.id, limit))

    def list_execs(self) -> List[ExecInfo]:
        """The calls that run or wait in this sandbox, whoever made them."""
        return self._call(_calls.execs(self.id))

    def create_context(
        self,
        context_id: Optional[str] = None,
        *,
        language: Optional[str] = None,
        cwd: Optional[Remote] = None,
        user: Optional[str] = None,
    ) -> Context:
        """Start another Python interpreter in this sandbox, with variables of its own.

            with s.create_context() as other:
                other.run_code("x = 1")         # not the x of s.run_code

        context_id   1 to 64 letters, digits, _ and -; chosen by the daemon if not given.
        language     "python".
        cwd          where it starts; the user's home directory if not given.
        user         "user" (default) or "root".

        Raises AlreadyExistsError for an id that is taken, RateLimitedError beyond 8 contexts.
        """
        self._check_open()
        return Context(
            self, self._call(_calls.create_context(self._id, context_id, language, cwd, user))
        )

    def list_contexts(self) -> List[ContextInfo]:
        """The contexts of this sandbox; "default" is always among them."""
        return self._call(_calls.contexts(self.id))

    @property
    def commands(self) -> Commands:
        """Commands, also in the background: run, list, connect."""
        return Commands(self)

    # Files.

    @property
    def files(self) -> Files:
        """Files of the sandbox: read, write, list, stat, upload_dir and so on."""
        return Files(self)

    def upload(
        self,
        data: Union[Data, Remote],
        path: Union[Remote, Data],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
    ) -> FileInfo:
        """Write a file in the sandbox. The file is there completely, or not at all.

        data   bytes, a binary file object (read from where it stands), or a pathlib.Path of a
               local file; files are streamed, never read whole.
        path   where to, in the sandbox; relative to the working directory of its Python
               interpreter. Missing directories are made.
        resume  go on where it was when the connection breaks, up to eight times without a byte more. What
               has arrived is kept in the sandbox, so that a later call for the same bytes, or the
               same unchanged local file, goes on there as well. Not for what cannot seek.
        progress   called with the number of bytes sent so far, and how many there are in all (None
               if the file object cannot tell).

        The two may come in the other order, `upload("data.csv", b"...")`, as some programs have
        it. Two str cannot be told apart: encode the text, or use `files.write`.
        """
        return self.files.upload(data, path, resume=resume, progress=progress)

    def download(self, path: Remote) -> bytes:
        """The contents of a file in the sandbox."""
        return self.files.read(path)

    def download_to(
        self,
        path: Remote,
        file: Union[Local, BinaryIO],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
    ) -> int:
        """Copy a file from the sandbox, streaming, to a local path or a binary file object.
        Returns its size in bytes. A local path is written only if the whole file arrived.

        resume     keep what has arrived when the transfer breaks, in a hidden file beside the local
                   path, and go on from there in the next call with `resume=True`, provided that the
                   file in the sandbox has not changed since. Needs a local path.
        progress   called with the number of bytes that are here, and how many there are in all (None
                   if the daemon does not say).
        """
        return self.files.download_to(path, file, resume=resume, progress=progress)

    # Forks.

    def fork(
        self,
        n: int = 1,
        *,
        reseed: bool = True,
        forkable: bool = True,
        egress: Union[None, Literal[False], Iterable[EgressEntry]] = None,
        egress_inject: Optional[EgressInject] = None,
        egress_intercept: Iterable[str] = (),
        inherit_inject: bool = False,
    ) -> Children:
        """Copy the running sandbox n times: memory, processes, the interpreter with all it knows,
        and the disk. Each copy is a sandbox of its own, ready when this returns, and closing one
        closes no other.

            with s.fork(3) as copies:
                for plan, copy in zip(plans, copies):
                    copy.run_code(plan)

        The sandbox itself stands still for a moment and goes on; calls that run in it are not
        disturbed. In the copies they run on with nobody listening, and the first call of a copy
        waits for them.

        reseed   False leaves the random generators of programs (`random`, numpy) as they are, so
                 that every copy draws the same numbers. The kernel's generator, and with it
                 os.urandom, secrets and uuid4, differs in every copy all the same.
        forkable False for copies that cannot be forked in their turn, as of the class. They may be
                 the winner of `merge_into`.
        egress   what each copy may reach: None for what this sandbox may, without its injections;
                 False for nothing; or a list of entries, as `egress_allow` of the class.
        egress_inject, egress_intercept   with such a list: as those of the class.
        inherit_inject   the copies inherit the injections as well. Ask for it only if whatever runs
                 in them may use the secrets.

        Connections of this sandbox go on; a copy's own are reset.

        Raises ForkError if not all of them came to be; it carries those that did, open.
        NotForkableError if this sandbox was made with `forkable=False`: nothing was done to it.
        """
        self._check_open()
        try:
            reply = self._call(
                _calls.fork(
                    self._id,
                    n,
                    reseed,
                    forkable_wish(forkable),
                    _egress.inheritance(egress, egress_inject, egress_intercept, inherit_inject),
                )
            )
        except ForkError as exc:
            _calls.none_forked(exc, n)
            raise
        children = Children(
            map(self._sibling, reply.ids), pause_us=reply.pause_us, ready_us=reply.ready_us
        )
        error = reply.error(self._id, children)
        if error is not None:
            raise error
        return children

    def merge_into(self, winner: Union["Sandbox", str]) -> None:
        """Go on as `winner`: its machine takes this sandbox's place and id, and what this sandbox
        had done since they parted is gone.

        The winner is a fork of this sandbox, or any other of the same lineage. Its own id is dead
        afterwards; its object counts as closed, and closing it does nothing. Calls that still run
        in this sandbox end with the reason "closed". Its other forks live on.

        Whether this sandbox can be forked afterwards is as it was with the winner. One that was
        made with `forkable=False` keeps its machine: NotForkableError.
        """
        self._check_open()
        self._call(_calls.merge(self._id, id_of(winner)))
        if isinstance(winner, Sandbox):
            winner._detach()

    def diff(self, other: Union["Sandbox", str], paths: Optional[Iterable[Remote]] = None) -> Diff:
        """Compare the files of two sandboxes of one lineage: what is added, removed or modified in
        `other` against this one. Costs what the two have written, not what they have.

        paths   absolute paths to look at, with all that is below: /home/user, /root and /tmp if
                not given.
        """
        self._check_open()
        return self._call(_calls.diff(self._id, id_of(other), paths))

    def tree(self) -> TreeNode:
        """The family of this sandbox: its first ancestor, with everything that descends from it.
        (`Client.tree` has all families.)"""
        return _calls.family(self.id, self._client.tree())

    def map(
        self,
        codes: Iterable[str],
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        reseed: bool = True,
    ) -> List[ExecResult]:
        """Run each code in a copy of this sandbox, all at once, and return the results in order.
        The copies are closed; this sandbox is as it was. `timeout` is for each code, in seconds.

        A code that fails is a result like any other. If a copy is lost (StreamBrokenError), or not
        all of them come to be (ForkError), all are closed and the exception is raised.
        """
        return _fan.map(self, codes, language, timeout, reseed)

    def race(
        self,
        codes: Iterable[str],
        until: Optional[Callable[[ExecResult], object]] = None,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        reseed: bool = True,
    ) -> RaceResult:
        """Run each code in a copy of this sandbox, all at once. The first whose result satisfies
        `until` wins: this sandbox goes on as that copy (`merge_into`), the others are ended.

            r = s.race(plans, until=lambda r: r.ok and float(r.text) < 0.1)

        until     called with each result as it comes, in the calling thread; the default is that the
                  code succeeded, `lambda r: r.ok`.
        timeout   seconds for each code.

        Without a winner all copies are closed and this sandbox is as it was. The same holds when
        `until` raises: its exception is passed on. Raises only if not all copies come to be
        (ForkError) or if running broke off in every one of them.
        """
        return _fan.race(self, codes, until, language, timeout, reseed)

    def close(self) -> None:
        """Destroy the sandbox and all that is in it; its forks live on. Calling it again does
        nothing, nor does it for one that was merged into another."""
        if self._closed:
            return
        with _calls.gone_is_fine():
            self._call(_calls.delete(self._id))
        self._detach()

    def _call(self, call: Call[T], **kw: Any) -> T:
        """One request of this sandbox."""
        return self._client.call(call, traceparent=self._traceparent, **kw)

    def _detach(self) -> None:
        if self._let_go():
            self._client.close()
