/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One decision: may this sandbox reach that destination now, and at which
 * address? In this order: the name's form, the rules and the ceiling, whether
 * it is plain HTTP to a host for which headers are injected, limits;
 * only then the resolver; then every address that it gave is checked
 * (egress/addr.h), and the first that is allowed is the one to dial. Nobody
 * resolves again. The record of the audit is sent before the callback.
 *
 * Who asked then opens the connection with egress_dial() and tells the end with
 * egress_done(), in any order of events exactly once for each verdict ALLOW.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/rules.h"

#include <sys/socket.h>

struct egress;       /* the process: policy, resolver, limits, audit */
struct egress_grant; /* one thing that was allowed, until egress_done() */

enum egress_proto {
	EGRESS_CONNECT,
	EGRESS_SOCKS,
	EGRESS_HTTP,
	EGRESS_GATEWAY,
	EGRESS_INTERCEPT, /* a request within an intercepted tunnel */
};

/* Why not. As text (egress_reason_text()): lower case without "EGRESS_R_". */
enum egress_reason {
	EGRESS_R_NONE,
	EGRESS_R_BAD_HOST,    /* not a name: an address, control characters, a trailing dot... */
	EGRESS_R_NOT_ALLOWED, /* no rule */
	EGRESS_R_PORT,        /* a rule has the name, not the port */
	EGRESS_R_METHOD,
	EGRESS_R_PATH,
	EGRESS_R_TUNNEL,       /* a rule with methods or paths, and this is a tunnel */
	EGRESS_R_CEILING,      /* the operator's ceiling */
	EGRESS_R_PLAIN_HTTP,   /* headers are injected for the host, and this is not TLS */
	EGRESS_R_ADDRESS,      /* the name has only addresses that are not public */
	EGRESS_R_NO_NAME,      /* the name does not exist */
	EGRESS_R_RESOLVER,     /* the resolver failed */
	EGRESS_R_UPSTREAM,     /* the destination does not answer */
	EGRESS_R_UPSTREAM_TLS, /* its certificate is not valid */
	EGRESS_R_SNI_MISSING,
	EGRESS_R_SNI_MISMATCH,
	EGRESS_R_ECH,
	EGRESS_R_NOT_TLS,
	EGRESS_R_BAD_REQUEST,   /* not HTTP or SOCKS, or in a form that is refused */
	EGRESS_R_HOST_MISMATCH, /* Host is not the authority of the URL */
	EGRESS_R_UPGRADE,
	EGRESS_R_CONNECTIONS, /* limits */
	EGRESS_R_BYTES,
	EGRESS_R_IDLE,
	EGRESS_R_TOTAL,
	EGRESS_R_POLICY,         /* there is no policy, or it cannot be used */
	EGRESS_R_POLICY_CHANGED, /* cut by a new policy */
	EGRESS_REASONS
};

struct egress_question {
	enum egress_proto proto;
	uint64_t stream;  /* of the guest; attribution */
	const char *host; /* as the client wrote it */
	size_t host_len;
	uint16_t port;
	const char *method, *path; /* NULL: a tunnel */
};

struct egress_verdict {
	bool allow;
	enum egress_reason reason;      /* of a denial */
	char host[EGRESS_HOST_MAX + 1]; /* normal form, when it has one */
	char detail[400],
		hint[400]; /* sentences; hint for a person or a model that wants to go on */
	/* allow: */
	struct egress_grant *grant; /* until egress_done() */
	struct sockaddr_storage addr;
	socklen_t addr_len;
	bool tls;             /* a tunnel must begin with TLS */
	const json_t *inject; /* the policy's headers for this host, or NULL; valid until the next
				 policy: copy. Only for GATEWAY and INTERCEPT */
	bool intercept;       /* CONNECT, SOCKS: the tunnel is to be opened by us */
};

typedef void egress_decided_fn(void *arg, const struct egress_verdict *v);

/* The answer may come within the call. Returns a handle to give up with, or NULL when answered. */
struct egress_asking *egress_ask(struct egress *e, const struct egress_question *q,
				 egress_decided_fn *fn, void *arg);
void egress_give_up(struct egress_asking *a); /* NULL: harmless */

/*
 * A non-blocking TCP connection under way to the address of a verdict: the socket, which is the
 * caller's; or -errno.
 */
__must_check int egress_dial(struct egress *e, const struct egress_verdict *v);
/*
 * The same for a library that calls connect() by itself, with sa: the socket, not yet connected;
 * -EACCES when sa is not the address of the verdict.
 */
__must_check int egress_dial_socket(struct egress *e, const struct egress_verdict *v,
				    const struct sockaddr *sa);

/*
 * Called at most once, from the loop, when a new policy, a limit or the end of time cuts the grant:
 * who holds it closes at once (and still calls egress_done(), within fn or later).
 */
void egress_on_cut(struct egress_grant *g, void (*fn)(void *arg, enum egress_reason why),
		   void *arg);
/*
 * Bytes that passed are counted against the limits (0, 0: none did, only asks). Returns how many
 * may pass now, SIZE_MAX when nothing limits them; 0: none before fn of egress_on_room() is called,
 * once. A limit of bytes that is reached cuts the grant instead, from the loop and not within this
 * call. Whoever counts nothing for the policy's idle_s is cut as well.
 */
size_t egress_count(struct egress_grant *g, size_t up, size_t down);
void egress_on_room(struct egress_grant *g, void (*fn)(void *arg), void *arg);
/* Bytes came that do not count: it is not idle. */
void egress_alive(struct egress_grant *g);
/*
 * Headers that the verdict has injected: told when all of them were sent, and false when they may
 * be sent once more. Until then a policy that injects others, or none, cuts the grant.
 */
void egress_injected(struct egress_grant *g, bool sent);
/* Whether the policy of now injects the same. */
bool egress_injection_holds(const struct egress_grant *g);
/* why: of the end; EGRESS_R_NONE when it ended as things end. g is gone. */
void egress_done(struct egress_grant *g, enum egress_reason why);

/*
 * A denial that was found later than the question, or where none could be asked: SNI, Host,
 * upgrade, a destination that does not answer... Sends the record and fills out. A grant goes on
 * until egress_done(), to which why is given too. hint: NULL for the one of the reason.
 */
void egress_denied(struct egress *e, const struct egress_question *q, enum egress_reason why,
		   const char *detail, const char *hint, struct egress_verdict *out);

const char *egress_reason_text(enum egress_reason r);
/* EGRESS_REASONS: no such word. */
enum egress_reason egress_reason_parse(const char *word);
const char *egress_proto_text(enum egress_proto p);

/*
 * Status of an HTTP reply that carries a denial: 403, and 502 where the destination was allowed and
 * failed (EGRESS_R_UPSTREAM, EGRESS_R_UPSTREAM_TLS).
 */
unsigned int egress_denial_status(enum egress_reason r);
/*
 * {"code":"egress_denied","host","port","reason","detail","hint"}; new reference, NULL without
 * memory. All strings are printable ASCII, whatever the guest asked for.
 */
json_t *egress_denial_json(const struct egress_question *q, const struct egress_verdict *v);
