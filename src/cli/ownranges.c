/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/ownranges.h"
#include "cli/qemu.h"
#include "egress/addr.h"
#include "egress/own_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

/*
 * Not what is refused anyway: single addresses that are not public, and 127.0.0.0/8. A wider prefix
 * may have public ones beside that with which it begins.
 */
static bool prefix_counts(const struct own_prefix *p)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	struct sockaddr_in four = {.sin_family = AF_INET};
	const struct sockaddr *sa = (const struct sockaddr *)(const void *)&six;
	unsigned int whole = 128;
	enum egress_addr_class class;

	memcpy(&six.sin6_addr, p->bytes, sizeof(six.sin6_addr));
	if (p->family == AF_INET) {
		memcpy(&four.sin_addr, p->bytes, sizeof(four.sin_addr));
		sa = (const struct sockaddr *)(const void *)&four;
		whole = 32;
	}
	class = egress_addr_classify(sa);
	return class == EGRESS_A_PUBLIC || (p->bits < whole && class != EGRESS_A_LOOPBACK);
}

static json_t *prefix_json(const struct own_prefix *p)
{
	char address[INET6_ADDRSTRLEN];

	inet_ntop(p->family, p->bytes, address, sizeof(address));
	return json_sprintf("%s/%u", address, p->bits);
}

/* Whether the list has it: the kernel tells some routes twice. */
static bool list_has(const json_t *list, const json_t *v)
{
	size_t i;
	json_t *one;

	json_array_foreach((json_t *)(uintptr_t)list, i, one) if (json_equal(one, v)) return true;
	return false;
}

static int list_prefixes(json_t *list, const struct own_addrs *o)
{
	for (size_t i = 0; i < o->n; i++) {
		json_t *v = prefix_counts(&o->v[i]) ? prefix_json(&o->v[i]) : json_null();
		bool wanted = v && !json_is_null(v) && !list_has(list, v);

		if (!v)
			return -ENOMEM;
		if (wanted && json_array_size(list) == EGRESS_RANGES_MAX) {
			json_decref(v);
			return -E2BIG;
		}
		if (wanted && json_array_append(list, v) < 0) {
			json_decref(v);
			return -ENOMEM;
		}
		json_decref(v);
	}
	return 0;
}

int ownranges_text(char **out, struct err *err)
{
	json_t *list = json_array();
	struct own_addrs *o = NULL;
	int rc = list && json_array_append_new(list, json_string(QEMU_NET)) == 0
			 ? own_learn_routes(&o)
			 : -ENOMEM;

	if (rc == 0 && o)
		rc = list_prefixes(list, o);
	*out = rc == 0 ? json_dumps(list, JSON_COMPACT) : NULL;
	if (rc == 0 && !*out)
		rc = -ENOMEM;
	free(o);
	json_decref(list);
	if (rc == -E2BIG)
		return err_text(err, E2BIG, "this machine has more than %u public addresses",
				EGRESS_RANGES_MAX);
	return rc < 0 ? err_set(err, -rc, "cannot list the addresses of this machine") : 0;
}
