# SPDX-License-Identifier: Apache-2.0
"""The Sandbox: a microVM seen from the outside."""

from __future__ import annotations

from typing import BinaryIO, Callable, Iterable, List, Literal, Mapping, Optional, Union

from . import _calls, _egress, _fan
from ._base import Closing, client_from, forkable_wish, id_of, not_persistent, wish_from
from ._calls import Remote
from ._children import Children
from ._client import Client
from ._commands import Commands
from ._egress import Egress, EgressEntry, EgressInject, EgressRecord
from ._errors import ForkError, SandboxEndedError
from ._exec import DEFAULT_TIMEOUT
from ._files import Files
from ._results import ExecResult, Language, RaceResult
from ._running import Running
from ._transfer import Data, Local, Progress
from ._types import Diff, FileInfo, SandboxInfo, TreeNode


class Sandbox(Running, Closing):
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
            self._made(reply["id"], reply)
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
            self._made(id, info.raw)
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
        """What this sandbox has tried to reach, the oldest first: the last `limit` records of those
        that are kept: 256 KiB of them, 1000 at most. The daemon's file has all."""
        return self._call(_calls.egress_log(self.id, limit))

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

    def download(self, path: Remote, *, max_bytes: Optional[int] = None) -> bytes:
        """The contents of a file in the sandbox. TooLargeError for more than `max_bytes`, 2 GiB if
        that is not given."""
        return self.files.read(path, max_bytes=max_bytes)

    def download_to(
        self,
        path: Remote,
        file: Union[Local, BinaryIO],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
        max_bytes: Optional[int] = None,
    ) -> int:
        """Copy a file from the sandbox, streaming, to a local path or a binary file object.
        Returns its size in bytes. A local path is written only if the whole file arrived.

        resume     keep what has arrived when the transfer breaks, in a hidden file beside the local
                   path, and go on from there in the next call with `resume=True`, provided that the
                   file in the sandbox has not changed since. Needs a local path.
        progress   called with the number of bytes that are here, and how many there are in all (None
                   if the daemon does not say).
        max_bytes  TooLargeError for a larger file; nothing of it is kept, but for what a file object
                   has been given by then. If it is not given, what the disk of the sandbox holds (1
                   GiB at least; 64 GiB where the daemon does not say how large that is).
        """
        return self.files.download_to(
            path, file, resume=resume, progress=progress, max_bytes=max_bytes
        )

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

    def _detach(self) -> None:
        if self._let_go():
            self._client.close()
