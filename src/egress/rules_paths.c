/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths of requests against prefixes of rules. A prefix is only a boundary when the proxy and the
 * server agree on what the path is, and servers differ: some decode twice, some take "\" for "/",
 * some drop ";parameters" before they resolve "..", some what is behind a decoded "?", some drop
 * blanks and other things around dots, some bring characters to a form that is ASCII. So nothing is
 * resolved here; a path with anything of the kind is not plain, and under no prefix.
 *
 * Stateless; any thread. fork: no state.
 */
#include "egress/rules_impl.h"
#include "lib/hex.h"

#include <string.h>

/* One byte of an escape at *p, and past it; 0: there is none. */
static unsigned char next_escape(const char **p)
{
	int high, low;

	if ((*p)[0] != '%')
		return 0;
	high = hex_value((uint8_t)(*p)[1]);
	low = high < 0 ? -1 : hex_value((uint8_t)(*p)[2]);
	if (low < 0)
		return 0;
	*p += 3;
	return (unsigned char)(high << 4 | low);
}

/*
 * Beyond ASCII, what a server may take for ".", "/", "\" or what ends a path: because its
 * compatibility form (NFKC) is or has that (tests/egress/test_paths.py has them all), because it
 * looks so and a code page has nothing nearer, or because a code page has it where ASCII has "\".
 * Other punctuation is in file names every day, wide "(", "," and "!" in Chinese and Japanese ones.
 */
static bool looks_like_a_boundary(uint32_t c)
{
	static const struct {
		uint32_t first, last;
	} some[] = {
		{0x00a5, 0x00a5},   /* yen */
		{0x037e, 0x037e},   /* Greek question mark: ";" */
		{0x2024, 0x2026},   /* one, two, three dots */
		{0x2044, 0x2044},   /* fraction slash */
		{0x2047, 0x2049},   /* two question marks, ... */
		{0x20a9, 0x20a9},   /* won */
		{0x2100, 0x2101},   /* a/c, a/s */
		{0x2105, 0x2106},   /* c/o, c/u */
		{0x2215, 0x2216},   /* division slash, set minus */
		{0x2488, 0x249b},   /* digits with a full stop */
		{0x29f5, 0x29f5},   /* reverse solidus operator */
		{0x29f8, 0x29f9},   /* big solidus, big reverse solidus */
		{0x33c2, 0x33c2},   /* a.m. */
		{0x33c7, 0x33c7},   /* Co. */
		{0x33d8, 0x33d8},   /* p.m. */
		{0xfe14, 0xfe14},   /* vertical ";" */
		{0xfe16, 0xfe16},   /* vertical "?" */
		{0xfe19, 0xfe19},   /* vertical three dots */
		{0xfe30, 0xfe30},   /* vertical two dots */
		{0xfe52, 0xfe52},   /* small "." */
		{0xfe54, 0xfe54},   /* small ";" */
		{0xfe56, 0xfe56},   /* small "?" */
		{0xfe5f, 0xfe5f},   /* small "#" */
		{0xfe68, 0xfe68},   /* small "\" */
		{0xfe6a, 0xfe6a},   /* small "%" */
		{0xff03, 0xff03},   /* fullwidth "#" */
		{0xff05, 0xff05},   /* fullwidth "%" */
		{0xff0e, 0xff0f},   /* fullwidth "." and "/" */
		{0xff1b, 0xff1b},   /* fullwidth ";" */
		{0xff1f, 0xff1f},   /* fullwidth "?" */
		{0xff3c, 0xff3c},   /* fullwidth "\" */
		{0x1f100, 0x1f100}, /* digit zero with a full stop */
	};

	for (size_t i = 0; i < ARRAY_SIZE(some); i++)
		if (c >= some[i].first && c <= some[i].last)
			return true;
	return false;
}

/*
 * The rest of a character of UTF-8 that begins with that byte, in its one spelling. Others, the
 * overlong "/" and "." of lax decoders among them, are none. 0: it is not plain.
 */
static uint32_t next_utf8(const char **p, unsigned char first)
{
	unsigned int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
	static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
	uint32_t c = first & (0x3fu >> more);

	if (first < 0xc2 || first > 0xf4)
		return 0;
	for (unsigned int i = 0; i < more; i++) {
		unsigned char next = next_escape(p);

		if ((next & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (next & 0x3f);
	}
	if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0;
	return looks_like_a_boundary(c) ? 0 : c;
}

/* One character of the path at *p, decoded, and past it; 0 for what is not plain. "/" means a
 * slash. */
static uint32_t next_char(const char **p)
{
	unsigned char c = (unsigned char)**p;

	if (c != '%') {
		++*p;
		return c > 0x20 && c < 0x7f && !strchr("\\?#", c) ? c : 0;
	}
	c = next_escape(p);
	if (c >= 0x80)
		return next_utf8(p, c);
	return c >= 0x20 && c != 0x7f && !strchr("/\\%", c) ? c : 0;
}

/* Of a segment, parameters left out. */
struct segment {
	size_t n;       /* characters */
	size_t dots;    /* with which it begins */
	uint32_t last;  /* character */
	bool word;      /* there is a letter or digit */
	bool pair;      /* there is ".." */
	bool odd;       /* it begins with ".." and goes on with neither letter nor digit */
	bool parameter; /* its parameters have begun */
	bool query;     /* and it begins with them, with "?" or "#" */
};

static bool is_word(uint32_t c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static void segment_add(struct segment *s, uint32_t c)
{
	s->query |= s->n == 0 && !s->parameter && (c == '?' || c == '#');
	s->parameter |= c == ';' || c == '?' || c == '#';
	if (s->parameter)
		return;
	s->odd |= s->n == 2 && s->dots == 2 && !is_word(c);
	s->dots += c == '.' && s->dots == s->n;
	s->pair |= c == '.' && s->last == '.';
	s->word |= is_word(c);
	s->last = c;
	s->n++;
}

/*
 * Whether it is a step to somewhere else for nobody. last: of the path; it may be empty, and so may
 * what is left of it where a query is dropped: a name that begins with "#" (rooms of Matrix) is to
 * such a server the directory that it is in, which is under the same prefix.
 */
static bool segment_is_plain(const struct segment *s, bool last)
{
	if (s->n == 0)
		return last && (!s->parameter || s->query);
	return s->dots < s->n && !s->odd && (s->word || !s->pair);
}

bool rules_path_plain(const char *path)
{
	struct segment s = {0};

	if (*path++ != '/')
		return false;
	while (*path) {
		uint32_t c = next_char(&path);

		if (c == 0)
			return false;
		if (c != '/') {
			segment_add(&s, c);
			continue;
		}
		if (!segment_is_plain(&s, false))
			return false;
		s = (struct segment){0};
	}
	return segment_is_plain(&s, true);
}

bool rules_path_under(const char *path, const char *prefix)
{
	size_t n = strlen(prefix);

	if (strncmp(path, prefix, n) != 0)
		return false;
	return prefix[n - 1] == '/' || path[n] == '/' || path[n] == 0;
}
