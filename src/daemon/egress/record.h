/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A record of the audit as a proxy told it (proto/egress.h), checked and written
 * anew: only what is known, of the right type, in bounded length. A proxy may have
 * been taken over by what it reads.
 * Pure; any thread. fork: plain memory.
 */
#pragma once

#include "egress/decide.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Longest of its texts, in bytes; what is longer is cut. */
#define RECORD_HOST_MAX 256u
#define RECORD_TEXT_MAX 512u

struct record {
	bool end, allow;
	uint64_t id; /* of the sandbox */
	uint64_t stream, up, down;
	enum egress_reason reason; /* of a denial, or of a cut */
	const char *exec;          /* inside json, or NULL */
	json_t *json;              /* owned; "sandbox" first */
	json_t *host;              /* inside json */
	json_int_t port;
	char hint[RECORD_TEXT_MAX]; /* for a person or a model; of a denial */
};

/*
 * o: the message. base: added to its id, which counts from 1 in every process, so that ids are
 * those of the sandbox. 0; -EPROTO; -ENOMEM.
 */
int record_parse(struct record *r, const json_t *o, const char *sandbox, uint64_t base);
void record_free(struct record *r);

/* Of amounts: as many as there can be, rather than few again. */
static inline uint64_t record_sum(uint64_t a, uint64_t b)
{
	return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

/* A piece of text out of a message, cut to max bytes at the end of a character. New reference. */
json_t *record_text(const json_t *v, size_t max);
