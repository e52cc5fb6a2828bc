/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is inside a struct egress, for the files that decide: egress.c (start,
 * policy, streams), ask.c (decisions), judge.c (what the policy says), grant.c
 * (limits), audit.c (records), text.c (sentences). Nobody else includes this.
 */
#pragma once

#include "egress/egress.h"
#include "egress/addr.h"
#include "egress/own.h"
#include "egress/policy.h"
#include "egress/resolver.h"

#define EGRESS_STREAMS_MAX 256u
#define EGRESS_RULE_MAX    300u

struct egress_stream {
	struct list link;
	uint64_t id;
	char *exec; /* or NULL */
};

struct egress {
	struct loop *loop;
	int ctl;
	struct policy *policy; /* NULL: nothing is allowed */
	char policy_why[512];  /* then: why */
	uint64_t policy_serial;
	struct resolver *resolver;
	struct own_addrs *own;
	struct http_plane *plane;
	char *host_ca, *all_ca; /* PEM; all_ca: with the policy's, NULL when there is none */
	size_t host_ca_len, all_ca_len;
	struct list streams, askings, grants;
	size_t streams_n, askings_n, grants_n;
	uint64_t last_id;         /* of a request */
	uint64_t bytes;           /* of all grants, ever */
	uint64_t bytes_before;    /* of the sandbox's proxies before this one */
	uint64_t bytes_told;      /* of bytes, to the daemon */
	struct loop_timer cutter; /* tells grants that were marked within egress_count() */
	/* rate: */
	int64_t tokens; /* bytes that may pass; below zero: a reader took more than it was told */
	uint64_t tokens_at_ns;
	struct list thirsty; /* grants that wait for room */
	struct loop_timer refill;
};

/* A question, kept. Strings are copies. */
struct question {
	struct egress_question q; /* with pointers into what follows */
	char *host_raw, *method, *path;
	char *exec; /* of its stream, which may end before it; NULL: none, or see there */
	char host[EGRESS_HOST_MAX + 1]; /* normal form, or "" */
	uint64_t id;
};

struct egress_grant {
	struct list link;    /* of egress->grants */
	struct list thirsty; /* of egress->thirsty */
	struct egress *e;
	struct question question;
	bool tls, intercept;
	json_t *inject; /* what its request is sent with, or NULL */
	bool injected;  /* it has been sent */
	struct sockaddr_storage addr;
	bool by_range; /* a range of the operator had it when it was opened */
	char rule[EGRESS_RULE_MAX];
	uint64_t began_ns, active_ns, up, down;
	struct loop_timer timer; /* idle and total time */
	bool cut, told;
	enum egress_reason cut_why;
	void (*cut_fn)(void *arg, enum egress_reason why);
	void *cut_arg;
	void (*room_fn)(void *arg);
	void *room_arg;
};

/* --- judge.c: what the policy says, without limits and addresses --- */

struct judgement {
	enum egress_reason reason;
	char host[EGRESS_HOST_MAX + 1]; /* normal form, or "" */
	char rule[EGRESS_RULE_MAX], nearest[EGRESS_RULE_MAX];
	char detail[400];
	bool tls, intercept;
};

void judge_question(const struct egress *e, const struct egress_question *q, struct judgement *j);

/* --- ask.c --- */

/*
 * As egress_addr_check(), for what this host is not itself, with the ranges of the policy that
 * there is. *way: of an address that passed.
 */
__must_check int ask_check_address(const struct egress *e, const struct sockaddr *sa,
				   enum own_way *way, char why[EGRESS_WHY_MAX]);

/* The resolver's answers to questions under way are not waited for; they begin again. */
void ask_pause_all(struct egress *e);
void ask_restart_all(struct egress *e); /* after ask_pause_all() */
void ask_give_up_all(struct egress *e);

/* --- question.c --- */

__must_check int question_copy(struct question *to, const struct egress_question *from);
void question_free(struct question *q);

/* --- grant.c --- */

/* Of a verdict ALLOW; NULL: no memory. The question's strings move into it. */
struct egress_grant *grant_new(struct egress *e, struct question *q, const struct judgement *j,
			       const struct sockaddr *sa, socklen_t len, const json_t *inject);
/* Whether there is room for one more; EGRESS_R_NONE: yes. */
enum egress_reason grant_limit(const struct egress *e, char *detail, size_t len);
/* Marks what the policy of now does not allow, and tells whoever holds it. */
void grant_review_all(struct egress *e);
void grant_cut_all(struct egress *e, enum egress_reason why);

/* The daemon's count of what is not e->bytes. */
void grant_used_before(struct egress *e, uint64_t bytes);

/* --- audit.c --- */

/* e->bytes. */
void audit_used(struct egress *e);

/* A decision. rule, sa: or NULL. Ends the process when it cannot be told. */
void audit_decision(struct egress *e, const struct question *q, const char *rule,
		    const struct sockaddr *sa, enum egress_reason why, const char *detail,
		    const char *hint);
void audit_end(struct egress *e, const struct egress_grant *g, enum egress_reason why);
/* A message to the daemon; takes the reference. */
void audit_send(struct egress *e, json_t *message);
/* The exec of a stream, which has it; NULL: none. */
const char *audit_stream_exec(const struct egress *e, uint64_t stream);
/* Text of an address without its port. */
void audit_address(const struct sockaddr *sa, char *out, size_t len);

/* --- text.c --- */

/* Printable ASCII of whatever a guest wrote. */
void text_printable(char *out, size_t cap, const char *s, size_t len);
/* The hint of a denial. j: or NULL. */
void text_hint(const struct egress *e, enum egress_reason why, const struct egress_question *q,
	       const struct judgement *j, char *out, size_t len);
/* "the destination": how a host and its port are named in sentences. */
void text_target(const struct egress_question *q, const char *host, char *out, size_t len);
