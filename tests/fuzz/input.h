/* SPDX-License-Identifier: Apache-2.0 */
/* Cursor over a fuzzer's input: reads beyond the end give zeros. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
	const uint8_t *p;
	size_t left;
};

static inline uint64_t input_int(struct input *in, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes && in->left; i++, in->p++, in->left--)
		v |= (uint64_t)*in->p << (8 * i);
	return v;
}

static inline uint8_t input_u8(struct input *in)
{
	return (uint8_t)input_int(in, 1);
}

/* Copies up to len bytes of input; the rest of dst becomes zero. */
static inline void input_bytes(struct input *in, void *dst, size_t len)
{
	size_t n = len < in->left ? len : in->left;

	memset(dst, 0, len);
	memcpy(dst, in->p, n);
	in->p += n;
	in->left -= n;
}

/* Of a model that is looked at often: how it compares is nothing that the fuzzer could learn from.
 */
#define UNGUIDED __attribute__((noinline, no_sanitize("coverage")))

#define MUST_SAYING(how, cond)                                                            \
	do {                                                                              \
		if (!(cond)) {                                                            \
			fprintf(stderr, "%s:%d: " how "%s\n", __FILE__, __LINE__, #cond); \
			abort();                                                          \
		}                                                                         \
	} while (0)

/* A broken invariant is a find. */
#define MUST(cond) MUST_SAYING("", cond)

/*
 * Must be by now: what the target waits for with some patience only, and what another process can
 * delay (one that looks at /proc/PID/fd holds descriptors). run.py forgives it when it does not
 * come again, and nothing else but a hang.
 */
#define MUST_SOON(cond) MUST_SAYING("not yet: ", cond)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
