/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose a sandbox is. With keys each key is an owner: a sandbox belongs to the
 * key that made it, its copies to the same one, and to every other key it is an
 * id that never was. Without keys there is one caller, who has all there are.
 *
 * An owner's name is the first half of SHA-256 over a salt, which the database
 * keeps, and the key: the same after a restart, whatever the order of the keys is
 * then, and not the key. What a key has left in the database is nobody's once the key is taken
 * back, and its again when it is given back.
 * Names are constant after owners_init(); any thread. What is held: the loop's. fork: plain memory.
 */
#pragma once

#include "daemon/config.h"
#include "daemon/held.h"

#include <stdbool.h>
#include <stdint.h>

#define OWNER_LEN      32u /* hexadecimal digits */
#define OWNER_SALT_LEN 32u

/* Who asks without keys, and the daemon itself: all sandboxes are his. What he makes has this
 * name. */
#define OWNER_ANY ""

struct owners {
	char name[CONFIG_KEYS_MAX][OWNER_LEN + 1]; /* as config.keys */
	struct held held[CONFIG_KEYS_MAX];         /* for each of them */
	/* Places, for each. */
	struct held diffs[CONFIG_KEYS_MAX], tests[CONFIG_KEYS_MAX], execs[CONFIG_KEYS_MAX];
	/* Of held, what the grants of its sandboxes may have; the last: of whoever has no key. */
	struct held grants[CONFIG_KEYS_MAX + 1];
};

/* From the keys of the configuration. */
void owners_init(struct owners *o, const struct config *c, const uint8_t salt[OWNER_SALT_LEN]);

/* Each of n may have half of what there is for all; one alone has it all. each: one of o's. */
void owners_share(struct held each[CONFIG_KEYS_MAX], unsigned int n, struct held *all);
/* His part; of whoever has none, or NULL: all. */
struct held *owners_part(struct owners *o, struct held each[CONFIG_KEYS_MAX], const char *owner,
			 struct held *all);
/* The same of o->held. */
struct held *owners_held(struct owners *o, const char *owner, struct held *all);

/* One bit for each, to say of something who has to do with it; 0: of whoever has no key. */
uint64_t owners_bit(const struct owners *o, const char *owner);

/*
 * After that: of what each has, grants (grant.h) may take half, so that those that live as long as
 * a sandbox leave room for what comes and goes.
 */
void owners_share_grants(struct owners *o, unsigned int n, struct held *all);
/* His part; whoever has none has one of all. */
struct held *owners_grants(struct owners *o, const char *owner);

/* Whether who asks (NULL: nobody, who has nothing) may see what `owner` has. */
bool owner_may(const char *asks, const char *owner);
