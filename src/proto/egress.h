/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is spoken around podflare-egress.
 *
 * Guest to proxy, one stream a connection (vsock port GUEST_EGRESS_PORT): the
 * first byte tells the protocol. 0x05: SOCKS5 (RFC 1928, no authentication,
 * CONNECT with a domain name). "CONNECT ": an HTTP tunnel. Anything else: an
 * HTTP/1.1 request in absolute form, or one to the gateway
 * (http://HOST.egress/..., for which the proxy speaks TLS to HOST).
 *
 * Daemon to proxy: a SOCK_SEQPACKET socket, descriptor EGRESS_FD of the proxy.
 * A message is one JSON object of at most EGRESS_MSG_MAX bytes, told apart by
 * "type", with at most one descriptor. Closing the socket ends the proxy. One
 * proxy serves one sandbox.
 *
 *   daemon -> proxy
 *   {"type":"policy","serial":N}       fd: sealed memfd with the policy (below), at most
 *                                      EGRESS_POLICY_MAX bytes. Replaces the one before, whole;
 *                                      connections that it does not allow are cut.
 *   {"type":"stream","id":N,"exec":"exec_..."|null}   fd: a connection of the guest
 *   {"type":"test","serial":N,"host":"...","port":N,"method":"GET"|null,"path":"/..."|null}
 *         with method and path, port 80: plain HTTP, another one: a request that goes on by TLS
 *   {"type":"used","bytes":N}          what the sandbox has sent and received beside what this
 *                                      process counts: by those before it. Replaces the last N
 *
 *   proxy -> daemon
 *   {"type":"policy","serial":N,"error":null|"sentence","ca":{"cert_pem","key_pem"}|null}
 *         error: nothing is allowed until there is another policy. ca: only when the policy has an
 *         interception; the daemon keeps it, and gives it back in later policies.
 *   {"type":"decision", ...}  a record of the audit, sent before the guest can see the verdict
 *   {"type":"end", ...}       the same record when what was allowed is over
 *   {"type":"test","serial":N,"verdict":"allow"|"deny","reason","rule","detail","hint",
 *         "addresses":[{"address":"192.0.2.1","allowed":true,"why":"..."}]}
 *   {"type":"used","bytes":N}  what this process has counted by now, ends included; where there is
 *         a limit of bytes: after each sixteenth of it, 16 MiB at most
 *
 * Record (decision and end): "time" (RFC 3339, UTC, milliseconds), "id" (of the request, counts
 * from 1), "stream", "exec", "proto" ("connect", "socks", "http", "gateway", "intercept"), "host",
 * "port", "method" (or null; never a path: it may hold a secret), "address" (or null), "rule" (or
 * null), "verdict" ("allow", "deny"), "reason" (enum egress_reason as text, or null), "detail" (a
 * sentence). A denial may have a "hint", which the daemon tells to the command and does not keep.
 * An end also has "bytes_up", "bytes_down" (of requests: heads and bodies as they are between here
 * and the destination, without TLS), "duration_ms", "why". The daemon adds the sandbox.
 * Records never hold headers or bodies.
 *
 * Policy: {"sandbox": id,
 *   "allow": [entry...],                 as the request gave them (egress/rules.h)
 *   "groups": {"pypi": [entry...]},
 *   "ceiling": [entry...]|null,          null: no ceiling. [] allows nothing
 *   "inject": {"host": {"headers": {"Name": "value"}, "intercept": bool}},
 *   "ca": {"cert_pem","key_pem"}|null,
 *   "allow_ranges": ["192.0.2.0/24"],    addresses that are allowed although they are not public
 *   "own_ranges": ["192.0.2.1/32"],      refused as this host's own addresses are, but
 *                                        for those that allow_ranges has alone
 *   "resolve": {"name": ["address"]},    answers instead of a resolver's; for these names only
 *   "resolvers": ["192.0.2.53:53"]|null, null: those of the host
 *   "upstream_ca_pem": "..."|null,       trusted beside the host's
 *   "limits": {"connections": 64,        at one time
 *              "bytes": null,            of all connections of the sandbox, both ways
 *              "bytes_per_s": null,      the same, in a second
 *              "idle_s": 300,            of a connection without bytes, or a guest with its request
 *              "total_s": 86400}}        of a connection; numbers here are what null and absent are
 * "sandbox", "allow" and "ceiling" have to be there. Unknown members are refused.
 */
#pragma once

#define EGRESS_FD         3
#define EGRESS_MSG_MAX    65536u
#define EGRESS_POLICY_MAX (4u << 20)
