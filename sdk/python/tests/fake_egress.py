# SPDX-License-Identifier: Apache-2.0
"""What the sandboxes of a fake daemon may reach, with the replies that api/openapi.yaml describes: grants,
their inheritance, decisions, records. Names are compared as they are; that is not what is tested here."""

from __future__ import annotations

from typing import Any, Optional

DEFAULT = ["default.example.com"]
DISABLED = {"error": "egress is switched off here", "code": "egress_disabled"}
UNAVAILABLE = {"error": "the configuration cannot be read", "code": "egress_unavailable"}


class Refused(Exception):
    """A request that is answered with a status and a body."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(body["error"])
        self.status, self.body = status, body


class Grant:
    """Of one sandbox. `inject` has the values: they are on the host."""

    def __init__(self, allow: list[Any], inject: dict[str, Any]) -> None:
        self.allow, self.inject = allow, inject
        self.failure: Optional[str] = None

    @classmethod
    def of(cls, wish: Any) -> "Grant":
        """From the member of a body."""
        if wish is False or wish is None:
            return cls([], {})
        if wish is True:
            return cls(list(DEFAULT), {})
        for one in wish["allow"]:
            if "*" in str(one)[1:]:
                raise Refused(
                    400,
                    {
                        "error": f"egress.allow: {one!r}: a wildcard stands at the beginning",
                        "code": "invalid_request",
                        "field": "egress.allow",
                    },
                )
        return cls(wish["allow"], wish.get("inject", {}))

    def inherited(self, wish: dict[str, Any]) -> "Grant":
        """That of a copy, from the body of the fork."""
        if "egress" in wish:
            return Grant.of(wish["egress"])
        return Grant(self.allow, self.inject if wish.get("inherit_inject") else {})

    def describe(self) -> dict[str, Any]:
        return {
            "allow": self.allow,
            "inject": {host: list(one["headers"]) for host, one in self.inject.items()},
            "state": "failed" if self.failure else "on" if self.allow else "off",
            "reason": self.failure,
        }

    def decide(self, sandbox: str, exec_id: str, host: str, port: int, number: int) -> list[dict]:
        """The records of one connection: its decision, and its end if it was allowed."""
        rule = next((one for one in self.allow if one == host), None)
        decision = {
            "type": "decision",
            "sandbox": sandbox,
            "time": "2026-11-27T10:00:00.000Z",
            "id": number,
            "stream": number + 100,
            "exec": exec_id,
            "proto": "connect",
            "host": host,
            "port": port,
            "method": None,
            "address": "192.0.2.1" if rule else None,
            "rule": rule,
            "verdict": "allow" if rule else "deny",
            "reason": None if rule else "not_allowed",
            "detail": "it is allowed" if rule else "no rule allows this host",
        }
        end = {"bytes_up": 10, "bytes_down": 2000, "duration_ms": 5, "why": None}
        return [decision, {**decision, "type": "end", **end}] if rule else [decision]


def denials(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an exit event says of the records of its call."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in records:
        if one["verdict"] == "deny":
            key = one["host"], one["port"]
            hint = f"ask for {one['host']} to be allowed"
            entry = {"host": key[0], "port": key[1], "reason": one["reason"], "hint": hint}
            found.setdefault(key, {**entry, "count": 0})["count"] += 1
    return list(found.values())
