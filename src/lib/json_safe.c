/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jansson appends to its buffers without a look at whether that worked; so the allocator fails for
 * good once it has failed, and is asked afterwards. Its state is that answer, one for each thread.
 * What is left: text that ends a number or a word and is the byte that was lost trips an assertion
 * of the library's, which ends the process.
 */
#include "lib/json_safe.h"
#include "lib/wipe.h"

#include <errno.h>
#include <string.h>

#define JSON_TEXT_FIRST 1024u /* enough for most */

static _Thread_local bool loading, lacked;

/* After the first failure of a load there is nothing any more: what the library goes on to make of
 * a text that has lost bytes may be larger than the room that it makes for it. */
static void *json_safe_malloc(size_t n)
{
	void *p = loading && lacked ? NULL : malloc(n);

	lacked |= !p;
	return p;
}

void json_safe_begin(void)
{
	json_set_alloc_funcs(json_safe_malloc, wipe_free);
}

json_t *json_safe_loadb(const char *text, size_t len, size_t flags, json_error_t *e)
{
	json_t *value;

	lacked = false;
	loading = true;
	value = json_loadb(text, len, flags, e);
	loading = false;
	if (!lacked)
		return value;
	json_decref(value);
	return NULL;
}

/* Behind the string whose quote is before p. */
static const char *string_end(const char *p, const char *end)
{
	while (p < end && *p != '"')
		p += *p == '\\' ? 2 : 1;
	return p < end ? p + 1 : end;
}

bool json_few_values(const char *text, size_t len, size_t max)
{
	const char *p = text, *end = len ? text + len : text; /* nothing may be at NULL */
	size_t n = 1;

	/* Each value but the first is behind a comma, or a bracket that is not closed at once. */
	while (p < end && n <= max) {
		char c = *p++;

		if (c == '"') {
			p = string_end(p, end);
		} else if (c == ',') {
			n++;
		} else if (c == '[' || c == '{') {
			while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
				p++;
			n += p < end && *p != ']' && *p != '}';
		}
	}
	return n <= max;
}

json_t *json_safe_load_few(const char *text, size_t len, size_t max, size_t flags)
{
	lacked = false;
	return json_few_values(text, len, max) ? json_safe_loadb(text, len, flags, NULL) : NULL;
}

bool json_safe_lacked(void)
{
	return lacked;
}

int json_safe_fault(void)
{
	return lacked ? -ENOMEM : -EPROTO;
}

char *json_text_with(const json_t *value, size_t flags)
{
	size_t size = JSON_TEXT_FIRST;
	json_malloc_t get;
	json_free_t put;

	json_get_alloc_funcs(&get, &put);
	while (value) {
		char *text = get(size);
		/* Into memory of ours: it needs none itself but to look for loops, and tells that.
		 */
		size_t n = text ? json_dumpb(value, text, size - 1, flags) : 0;

		if (n && n < size) {
			text[n] = '\0';
			return text;
		}
		put(text); /* as it may hold a secret */
		if (n == 0)
			break;
		size = n + 1;
	}
	return NULL;
}

char *json_text(const json_t *value)
{
	return json_text_with(value, JSON_COMPACT);
}

/* The library takes DEL for a printable character. It is within strings only. */
char *json_text_ascii(const json_t *value)
{
	char *text = json_text_with(value, JSON_COMPACT | JSON_ENSURE_ASCII), *out, *at;
	size_t n = 0;

	for (const char *c = text; c && *c; c++)
		n += *c == 0x7f;
	if (n == 0)
		return text;
	out = at = malloc(strlen(text) + 5 * n + 1);
	for (const char *c = text; out && *c; c++) {
		if (*c != 0x7f)
			*at++ = *c;
		else
			at = stpcpy(at, "\\u007f");
	}
	if (out)
		*at = '\0';
	wipe_free(text);
	return out;
}

json_t *json_clone(const json_t *value)
{
	json_t *copy = json_deep_copy(value);

	if (copy && json_equal(copy, value))
		return copy;
	json_decref(copy);
	return NULL;
}
