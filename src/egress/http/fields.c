/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A field's name and value lie in one piece of memory, so that one wipe gets
 * both. Thread: any. fork: no state.
 */
#define _GNU_SOURCE
#include "egress/http/fields.h"

#include "lib/header_name.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void field_free(struct http_field *f)
{
	if (f->name)
		explicit_bzero(f->name, f->size);
	free(f->name);
	*f = (struct http_field){0};
}

void http_fields_free(struct http_fields *f)
{
	for (size_t i = 0; i < f->n; i++)
		field_free(&f->v[i]);
	free(f->v);
	*f = (struct http_fields){0};
}

static bool good_name(const char *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)p[i];

		if (c <= ' ' || c >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", c))
			return false;
	}
	return n > 0;
}

static bool good_value(const char *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)p[i];

		if ((c < ' ' && c != '\t') || c == 0x7f)
			return false;
	}
	return true;
}

int http_fields_add(struct http_fields *f, const char *name, size_t name_len, const char *value,
		    size_t value_len)
{
	struct http_field *new;
	size_t size;
	char *p;

	while (value_len && (*value == ' ' || *value == '\t'))
		value++, value_len--;
	while (value_len && (value[value_len - 1] == ' ' || value[value_len - 1] == '\t'))
		value_len--;
	size = name_len + value_len + 2;
	if (!good_name(name, name_len) || !good_value(value, value_len))
		return -EINVAL;
	if (f->n == f->cap) {
		size_t cap = f->cap ? 2 * f->cap : 16;
		struct http_field *v = realloc(f->v, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		f->v = v;
		f->cap = cap;
	}
	p = malloc(size);
	if (!p)
		return -ENOMEM;
	memcpy(p, name, name_len);
	p[name_len] = '\0';
	memcpy(p + name_len + 1, value, value_len);
	p[size - 1] = '\0';
	new = &f->v[f->n++];
	*new = (struct http_field){p, p + name_len + 1, size};
	f->bytes += size;
	return 0;
}

const char *http_fields_get(const struct http_fields *f, const char *name)
{
	for (size_t i = 0; i < f->n; i++)
		if (strcasecmp(f->v[i].name, name) == 0)
			return f->v[i].value;
	return NULL;
}

/* Whether the list of tokens has this one. */
static bool has_token(const char *list, const char *token)
{
	size_t len = strlen(token);

	while (*list) {
		size_t n;

		list += strspn(list, ", \t");
		n = strcspn(list, ", \t");
		if (n == len && strncasecmp(list, token, n) == 0)
			return true;
		list += n;
	}
	return false;
}

static bool named_by_connection(const struct http_fields *f, const char *name)
{
	for (size_t i = 0; i < f->n; i++)
		if (strcasecmp(f->v[i].name, "Connection") == 0 && has_token(f->v[i].value, name))
			return true;
	return false;
}

bool http_fields_upgrade(const struct http_fields *f)
{
	return http_fields_get(f, "Upgrade") || named_by_connection(f, "upgrade");
}

/* Takes out the field and keeps the order of the others. */
static void remove_at(struct http_fields *f, size_t i)
{
	f->bytes -= f->v[i].size;
	field_free(&f->v[i]);
	f->n--;
	memmove(&f->v[i], &f->v[i + 1], (f->n - i) * sizeof(f->v[0]));
}

static bool of_one_hop(const char *name)
{
	static const char *const names[] = {
		"Connection",        "Keep-Alive",     "TE", "Trailer", "Upgrade", "Trailers",
		"Transfer-Encoding", "HTTP2-Settings",
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (strcasecmp(name, names[i]) == 0)
			return true;
	return strncasecmp(name, "Proxy-", 6) == 0;
}

static bool made_anew(const char *name)
{
	return strcasecmp(name, "Host") == 0 || strcasecmp(name, "Content-Length") == 0 ||
	       strcasecmp(name, "Expect") == 0;
}

void http_fields_end_hop(struct http_fields *f, bool request)
{
	/* Connection itself is the last to go: it tells about the others. */
	for (size_t i = f->n; i-- > 0;)
		if (strcasecmp(f->v[i].name, "Connection") != 0 &&
		    (of_one_hop(f->v[i].name) || (request && made_anew(f->v[i].name)) ||
		     named_by_connection(f, f->v[i].name)))
			remove_at(f, i);
	for (size_t i = f->n; i-- > 0;)
		if (strcasecmp(f->v[i].name, "Connection") == 0)
			remove_at(f, i);
}

int http_fields_inject(struct http_fields *f, const json_t *inject)
{
	const char *name;
	json_t *value;

	json_object_foreach((json_t *)(uintptr_t)inject, name, value)
	{
		int rc;

		/* X_Api_Key would stand beside an injected X-Api-Key, or in front of it. */
		for (size_t i = f->n; i-- > 0;)
			if (header_same_variable(f->v[i].name, name))
				remove_at(f, i);
		if (!json_is_string(value))
			return -EINVAL;
		rc = http_fields_add(f, name, strlen(name), json_string_value(value),
				     json_string_length(value));
		if (rc < 0)
			return rc;
	}
	return 0;
}
