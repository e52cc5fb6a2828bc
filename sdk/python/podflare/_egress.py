# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may reach: the grant, its records and denials. Also how a grant is asked for; no I/O in
here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Literal, Mapping, Optional, Tuple, Union

# A name, a wildcard, a group; or an object with "host" and "ports", "methods", "paths", "tls".
EgressEntry = Union[str, Mapping[str, Any]]
# For each host, the headers that the daemon's side adds.
EgressInject = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Egress:
    """What a sandbox may reach at this moment.

    allow    the allowlist in its normal form, entry by entry; empty: nothing.
    inject   for each host, the names of the headers that are added to requests there. Their values
             never come back.
    state    "off" (nothing is granted), "on", or "failed": granted, and not to be had at the moment.
    reason   a sentence that says why it failed, else None.
    """

    allow: Tuple[EgressEntry, ...] = ()
    inject: Mapping[str, Tuple[str, ...]] = field(default_factory=dict)
    state: str = "off"
    reason: Optional[str] = None

    @property
    def on(self) -> bool:
        """True if what is allowed can be reached."""
        return self.state == "on"

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "Egress":
        """Read the daemon's JSON object."""
        inject = reply.get("inject") or {}
        return cls(
            allow=tuple(reply["allow"]),
            inject={host: tuple(names) for host, names in inject.items()},
            state=reply.get("state", "off"),
            reason=reply.get("reason"),
        )


@dataclass(frozen=True)
class EgressRecord:
    """One line of the audit: a decision about one connection or request, or its end.

    type        "decision", or "end" of what was allowed; both have the same `id`.
    time        RFC 3339, UTC, with milliseconds.
    sandbox     id of the sandbox, as it was then: a merge gives it another one.
    id          number of the decision within the sandbox.
    exec_id     the call that ran when the connection was opened, if it was one.
    proto       "connect" or "socks" (tunnels), "http", "gateway", or "intercept" (a request within an
                intercepted tunnel).
    host, port  as they were asked for, in normal form where there is one.
    method      of the request; None for a tunnel. There is never a path: it may hold a secret.
    address     which was dialled; None if it did not come to that.
    rule        the entry that allowed it, else None.
    verdict     "allow" or "deny".
    reason      a word that says why it was denied or cut, such as "not_allowed"; else None.
    detail      the same as a sentence.
    bytes_up, bytes_down   bytes to the destination and from it, of an end; else None.
    duration_ms            milliseconds from the decision to its end, of an end; else None.
    why         of an end: what ended it, None if it ended as things end.
    raw         the daemon's whole record.
    """

    type: str
    time: str
    sandbox: str
    id: int
    exec_id: Optional[str]
    proto: str
    host: str
    port: int
    method: Optional[str]
    address: Optional[str]
    rule: Optional[str]
    verdict: str
    reason: Optional[str]
    detail: Optional[str]
    bytes_up: Optional[int] = None
    bytes_down: Optional[int] = None
    duration_ms: Optional[int] = None
    why: Optional[str] = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def allowed(self) -> bool:
        """True if the verdict was "allow"."""
        return self.verdict == "allow"

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "EgressRecord":
        """Read one line of the daemon's."""
        return cls(
            type=reply["type"],
            time=reply["time"],
            sandbox=reply.get("sandbox", ""),
            id=reply["id"],
            exec_id=reply.get("exec"),
            proto=reply.get("proto", ""),
            host=reply.get("host") or "",
            port=reply.get("port") or 0,
            method=reply.get("method"),
            address=reply.get("address"),
            rule=reply.get("rule"),
            verdict=reply["verdict"],
            reason=reply.get("reason"),
            detail=reply.get("detail"),
            bytes_up=reply.get("bytes_up"),
            bytes_down=reply.get("bytes_down"),
            duration_ms=reply.get("duration_ms"),
            why=reply.get("why"),
            raw=reply,
        )


@dataclass(frozen=True)
class Denied:
    """Something that a call tried to reach and was not let to. `str()` of it is a sentence that a model
    can act on.

    reason   a word, such as "not_allowed", "port", "address", "sni_mismatch"; docs/egress.md has
             them all.
    hint     what can be done about it.
    count    how often it was tried during the call.
    """

    host: str
    port: int
    reason: str
    hint: str = ""
    count: int = 1

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "Denied":
        """Read one member of the daemon's list."""
        return cls(
            host=str(reply.get("host") or ""),
            port=int(reply.get("port") or 0),
            reason=str(reply.get("reason") or ""),
            hint=str(reply.get("hint") or ""),
            count=int(reply.get("count") or 1),
        )

    def __str__(self) -> str:
        times = f", {self.count} times" if self.count > 1 else ""
        hint = f": {self.hint}" if self.hint else ""
        return f"egress to {self.host}:{self.port} was denied ({self.reason}{times}){hint}"


def entries(what: str, allow: Iterable[EgressEntry]) -> List[Union[str, Dict[str, Any]]]:
    """The list of entries as it is sent; TypeError for what cannot be meant. What an entry may say is
    the daemon's business."""
    if isinstance(allow, (str, bytes, Mapping)):
        raise TypeError(f"{what} is a list of entries, not one: [{allow!r}]")
    sent: List[Union[str, Dict[str, Any]]] = []
    for one in allow:
        if isinstance(one, Mapping):
            sent.append({key: _sendable(value) for key, value in one.items()})
        elif isinstance(one, str):
            sent.append(one)
        else:
            raise TypeError(f"each entry of {what} is a str or a dict, not {type(one).__name__}")
    return sent


def _sendable(value: Any) -> Any:
    """A list of what JSON has no word for."""
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _injections(
    inject: Optional[EgressInject], intercept: Iterable[str]
) -> Dict[str, Dict[str, Any]]:
    if isinstance(intercept, (str, bytes)):
        raise TypeError(f"egress_intercept is a list of hosts, not one: [{intercept!r}]")
    if inject is not None and not isinstance(inject, Mapping):
        raise TypeError(f"egress_inject is a dict of hosts, not {type(inject).__name__}")
    sent: Dict[str, Dict[str, Any]] = {}
    for host, headers in (inject or {}).items():
        if not isinstance(headers, Mapping):
            raise TypeError(f"the headers for {host} are a dict, not {type(headers).__name__}")
        for name, value in headers.items():
            # Neither is shown: somebody may have put the secret into the wrong place.
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"names and values of the headers for {host} are str")
        sent[host] = {"headers": dict(headers), "intercept": False}
    for host in intercept:
        sent.setdefault(host, {"headers": {}})["intercept"] = True
    return sent


def grant(
    allow: Iterable[EgressEntry],
    inject: Optional[EgressInject] = None,
    intercept: Iterable[str] = (),
    what: str = "allow",
) -> Dict[str, Any]:
    """The object that asks for a grant."""
    wish: Dict[str, Any] = {"allow": entries(what, allow)}
    injections = _injections(inject, intercept)
    if injections:
        wish["inject"] = injections
    return wish


def wish(
    egress: Optional[bool],
    allow: Optional[Iterable[EgressEntry]],
    inject: Optional[EgressInject],
    intercept: Iterable[str],
) -> Union[Dict[str, Any], bool, None]:
    """What a create asks for: None for the daemon's default, which is nothing."""
    if egress is not None and not isinstance(egress, bool):
        raise TypeError("egress is a bool; a list of what is allowed is egress_allow")
    if allow is None:
        if inject or _injections(inject, intercept):
            raise ValueError("egress_inject and egress_intercept need egress_allow")
        return egress
    if egress is False:
        raise ValueError("egress=False and egress_allow contradict each other")
    return grant(allow, inject, intercept, "egress_allow")


def update(
    allow: Union[bool, Iterable[EgressEntry]],
    inject: Optional[EgressInject],
    intercept: Iterable[str],
) -> Union[Dict[str, Any], Literal[False]]:
    """What an update asks for."""
    if isinstance(allow, bool):
        if allow:
            raise TypeError("allow is a list of entries, or False to take the grant away")
        if _injections(inject, intercept):
            raise ValueError("without anything allowed there is nothing to inject into")
        return False
    return grant(allow, inject, intercept)


def inheritance(
    egress: Union[None, bool, Iterable[EgressEntry]],
    inject: Optional[EgressInject],
    intercept: Iterable[str],
    inherit_inject: bool,
) -> Dict[str, Any]:
    """Members of a fork's body."""
    if egress is None:
        if _injections(inject, intercept):
            raise ValueError("egress_inject and egress_intercept need egress, a list of entries")
        return {"inherit_inject": True} if inherit_inject else {}
    if inherit_inject:
        raise ValueError(
            "inherit_inject is for copies that inherit; these get a grant of their own"
        )
    if isinstance(egress, bool):
        if egress:
            raise TypeError("egress is None (inherit), False or a list of entries")
        if _injections(inject, intercept):
            raise ValueError("egress=False and egress_inject contradict each other")
        return {"egress": False}
    return {"egress": grant(egress, inject, intercept, "egress")}
