/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process podflare-egress as its parts see it, beside decide.h: start and
 * end, the policy of the moment, streams.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/decide.h"
#include "lib/loop.h"

struct http_plane;

/*
 * ctl: the daemon's socket, to which records are sent; it stays the caller's. ca_file: CAs of the
 * host in PEM, read here; a file that cannot be read is told in the log, and then only what a
 * policy brings is trusted. All that needs files happens here, before the jail. NULL: err.
 */
struct egress *egress_new(struct loop *loop, int ctl, const char *ca_file, struct err *err);
/* Ends everything that is under way. */
void egress_free(struct egress *e);

struct http_plane *egress_plane(struct egress *e);

/*
 * What upstreams' certificates are checked against: the host's CAs and those of the policy, PEM,
 * with its length. Valid until the next policy.
 */
const char *egress_ca_pem(const struct egress *e, size_t *len);
/* Seconds that a guest may take over what it has to say; never more than a few dozen. */
uint64_t egress_patience_s(const struct egress *e);
/* How long a connection to a destination may be without bytes, and how long it may be at all. */
uint64_t egress_idle_ns(const struct egress *e);
uint64_t egress_total_ns(const struct egress *e);
/* How many connections to destinations there may be beside those of grants. */
size_t egress_spare_connections(const struct egress *e);
/* Counts policies: what was kept of one is stale when it has changed. */
uint64_t egress_policy_serial(const struct egress *e);

/*
 * Takes the policy in a sealed memfd (which stays the caller's) instead of the one there is.
 * Questions under way are asked anew, and grants that it does not allow are cut, before this
 * returns. ca: {"cert_pem","key_pem"} when the policy has an interception, a new reference, else
 * NULL. 0; or -errno with a sentence: then nothing is allowed any more.
 */
__must_check int egress_load_policy(struct egress *e, int fd, json_t **ca, struct err *err);

/*
 * A stream of the guest, so that records can tell the exec it belongs to: from the moment that it
 * comes until whoever closes its descriptor says so. 0, -EBUSY (too many), -ENOMEM.
 */
__must_check int egress_stream_begin(struct egress *e, uint64_t stream, const char *exec);
void egress_stream_end(struct egress *e, uint64_t stream);

/*
 * What would be decided, without a record, a grant or a dial: fn gets the reply of the control
 * socket's "test" without type and serial (a new reference), perhaps within the call.
 */
void egress_test(struct egress *e, const struct egress_question *q,
		 void (*fn)(void *arg, json_t *reply), void *arg);
