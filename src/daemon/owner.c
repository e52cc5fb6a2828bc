/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of owners. What was hashed is overwritten.
 */
#include "daemon/owner.h"

#include <sha256.h>
#include <string.h>

void owners_init(struct owners *o, const struct config *c, const uint8_t salt[OWNER_SALT_LEN])
{
	static const char hex[] = "0123456789abcdef";
	uint8_t digest[SHA256_DIGEST_LENGTH];
	SHA256_CTX sum;

	_Static_assert(OWNER_LEN / 2 <= sizeof(digest), "two digits a byte");
	*o = (struct owners){0};
	for (unsigned int i = 0; i < c->nkeys; i++) {
		SHA256Init(&sum);
		SHA256Update(&sum, salt, OWNER_SALT_LEN);
		SHA256Update(&sum, (const uint8_t *)c->keys[i], strlen(c->keys[i]));
		SHA256Final(digest, &sum);
		for (size_t k = 0; k < OWNER_LEN / 2; k++) {
			o->name[i][2 * k] = hex[digest[k] >> 4];
			o->name[i][2 * k + 1] = hex[digest[k] & 15];
		}
	}
	explicit_bzero(&sum, sizeof(sum));
}

void owners_share(struct held each[CONFIG_KEYS_MAX], unsigned int n, struct held *all)
{
	for (unsigned int i = 0; i < n; i++)
		each[i] = (struct held){.max = n > 1 ? all->max / 2 : all->max, .all = all};
}

struct held *owners_part(struct owners *o, struct held each[CONFIG_KEYS_MAX], const char *owner,
			 struct held *all)
{
	for (unsigned int i = 0; owner && owner[0] && i < CONFIG_KEYS_MAX; i++)
		if (strcmp(o->name[i], owner) == 0)
			return &each[i];
	return all;
}

struct held *owners_held(struct owners *o, const char *owner, struct held *all)
{
	return owners_part(o, o->held, owner, all);
}

uint64_t owners_bit(const struct owners *o, const char *owner)
{
	_Static_assert(CONFIG_KEYS_MAX <= 64, "a bit for each");
	for (unsigned int i = 0; owner[0] && i < CONFIG_KEYS_MAX; i++)
		if (strcmp(o->name[i], owner) == 0)
			return UINT64_C(1) << i;
	return 0;
}

void owners_share_grants(struct owners *o, unsigned int n, struct held *all)
{
	for (unsigned int i = 0; i < n; i++)
		o->grants[i] = (struct held){.max = o->held[i].max / 2, .all = &o->held[i]};
	o->grants[CONFIG_KEYS_MAX] = (struct held){.max = all->max / 2, .all = all};
}

struct held *owners_grants(struct owners *o, const char *owner)
{
	return owners_part(o, o->grants, owner, &o->grants[CONFIG_KEYS_MAX]);
}

bool owner_may(const char *asks, const char *owner)
{
	return asks && (asks[0] == '\0' || strcmp(asks, owner) == 0);
}
