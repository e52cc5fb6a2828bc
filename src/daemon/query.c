/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Query strings, decoded once and by us alone. Stateless.
 */
#include "daemon/query.h"
#include "lib/hex.h"
#include "lib/utf8.h"
#include "lib/cleanup.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* Decodes len bytes into a new string. */
static int decode(const char *s, size_t len, char **out)
{
	_cleanup_free char *d = malloc(len + 1);
	size_t n = 0;

	if (!d)
		return -ENOMEM;
	for (size_t i = 0; i < len; i++) {
		int hi, lo;

		if (s[i] != '%') {
			d[n++] = s[i] == '+' ? ' ' : s[i];
			continue;
		}
		if (len - i < 3)
			return -EINVAL;
		hi = hex_value((uint8_t)s[i + 1]);
		lo = hex_value((uint8_t)s[i + 2]);
		if (hi < 0 || lo < 0 || hi + lo == 0)
			return -EINVAL;
		d[n++] = (char)(hi << 4 | lo);
		i += 2;
	}
	d[n] = '\0';
	if (!utf8_valid((const uint8_t *)d, n))
		return -EINVAL;
	*out = take_ptr(d);
	return 0;
}

/* The n-th of this name; *more: there is another one behind it. */
static int find(const char *query, const char *name, unsigned int nth, char **out, bool *more)
{
	_cleanup_free char *found = NULL;

	*more = false;
	for (const char *p = query; p && *p;) {
		size_t len = strcspn(p, "&"), key_len = strcspn(p, "=&");
		_cleanup_free char *key = NULL;
		int rc = decode(p, key_len, &key);

		if (rc == -ENOMEM)
			return rc;
		if (rc == 0 && strcmp(key, name) == 0) {
			size_t skip = key_len < len ? key_len + 1 : key_len;

			*more |= found != NULL;
			if (nth-- == 0) {
				rc = decode(p + skip, len - skip, &found);
				if (rc < 0)
					return rc;
			}
		}
		p += len;
		if (*p == '&')
			p++;
	}
	if (!found)
		return -ENOENT;
	*out = take_ptr(found);
	return 0;
}

int query_get(const char *query, const char *name, char **out)
{
	_cleanup_free char *found = NULL;
	bool more;
	int rc = find(query, name, 0, &found, &more);

	if (rc < 0)
		return rc;
	if (more)
		return -EEXIST;
	*out = take_ptr(found);
	return 0;
}

int query_get_nth(const char *query, const char *name, unsigned int nth, char **out)
{
	bool more;

	return find(query, name, nth, out, &more);
}
