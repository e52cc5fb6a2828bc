/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths of requests. What counts as plain, and is under "/v1/", must still be there after all that
 * lenient servers do: decoding again and again, "\" for "/", parameters, a query and what is no
 * letter or digit at an end cut off, dots resolved. And it is UTF-8.
 */
#include "egress/rules_impl.h"

#include "input.h"

#include <ctype.h>
#include <jansson.h>

static int hex(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* One round of decoding; whether it changed anything. */
static bool decode(char *s)
{
	char *to = s;
	bool changed = false;

	for (; *s; s++) {
		if (*s == '%' && isxdigit((unsigned char)s[1]) && isxdigit((unsigned char)s[2])) {
			char c = (char)(hex(s[1]) << 4 | hex(s[2]));

			MUST(c != 0);
			*to++ = c;
			s += 2;
			changed = true;
		} else {
			*to++ = *s;
		}
	}
	*to = 0;
	return changed;
}

/* Dots with nothing around them but what a server may drop. */
static void check_around(char *segment)
{
	size_t n = strlen(segment);

	while (n && !isalnum((unsigned char)segment[n - 1]) && segment[n - 1] != '.')
		segment[--n] = 0;
	while (*segment && !isalnum((unsigned char)*segment) && *segment != '.')
		segment++;
	MUST(strcmp(segment, "..") != 0);
}

/* No segment that a server would resolve, with parameters and without. */
static void check_segments(char *path)
{
	char *next = path + 1;

	for (char *p = path; *p; p++)
		*p = *p == '\\' ? '/' : *p;
	while (next) {
		char *segment = strsep(&next, "/");

		MUST(*segment || !next);
		segment[strcspn(segment, ";?#")] = 0;
		MUST(strcmp(segment, ".") != 0 && strcmp(segment, "..") != 0);
		check_around(segment);
	}
}

/* What libraries of strict decoders take. */
static void check_utf8(const char *path)
{
	json_t *text = json_string(path);

	MUST(text != NULL);
	json_decref(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *path = malloc(size + 1), *copy;

	MUST(path != NULL);
	memcpy(path, data, size);
	path[size] = 0;
	if (rules_path_plain(path)) {
		bool under = rules_path_under(path, "/v1/");

		MUST(path[0] == '/' && !strpbrk(path, "?# \r\n\t\\"));
		do {
			MUST(!under || strncmp(path, "/v1/", 4) == 0);
			copy = strdup(path);
			MUST(copy != NULL);
			check_utf8(copy);
			check_segments(copy);
			free(copy);
		} while (decode(path));
	}
	free(path);
	return 0;
}
