/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of rules. Thread: any. fork: plain memory. */
#pragma once

#include "egress/names.h"
#include "egress/rules.h"

#define RULES_PORTS_MAX   16u
#define RULES_METHODS_MAX 16u
#define RULES_PATHS_MAX   64u
#define RULES_PATH_LEN    1024u
#define RULES_METHOD_LEN  32u

struct rules_words {
	char **v;
	size_t n;
};

struct rules_entry {
	char *host; /* normal form, of a wildcard without "*." */
	size_t host_len;
	bool wildcard;
	bool tls;
	uint16_t ports[RULES_PORTS_MAX]; /* ascending, each once */
	size_t n_ports;
	struct rules_words methods, paths; /* none: any */
	char group[EGRESS_GROUP_MAX + 1];  /* that it came from, or "" */
};

struct egress_rules {
	struct rules_entry *v;
	size_t n, cap;
	json_t *normal; /* array */
};

/* While a list is read: where we are, for the sentence. */
struct rules_reader {
	struct egress_rules *rules;
	const json_t *groups;
	const char *group; /* the entries of which are read, or NULL */
	json_t *seen;      /* texts of what is in the normal form, as names */
	struct err *err;
	char where[EGRESS_GROUP_MAX + EGRESS_QUOTE_MAX + 48];
};

/* The sentence: where, and a phrase without subject. -EINVAL. */
int rules_refuse(struct rules_reader *rd, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
int rules_no_memory(struct rules_reader *rd);

/* One entry that is not a group. e, zero before, is to be freed in any case. */
__must_check int rules_entry_read(struct rules_reader *rd, struct rules_entry *e,
				  const json_t *item);
void rules_entry_free(struct rules_entry *e);
/* Whether it is for this name (normal form). */
bool rules_entry_has_name(const struct rules_entry *e, const char *host);
/* Its normal form; NULL without memory. */
json_t *rules_entry_json(const struct rules_entry *e);

/*
 * Whether the prefixes of rules mean anything for a path: absolute, printable, no "." or ".."
 * segments, no empty segment but the last, no backslash; nor anything that some server turns into
 * one of these: encoded slashes, dots and percent signs, parameters (";", encoded "?" and "#")
 * behind dots, other things than letters and digits there, bytes that are not UTF-8, characters
 * beyond ASCII that look like one of them.
 */
bool rules_path_plain(const char *path);
/* prefix is the path, or ends in it at a "/". */
bool rules_path_under(const char *path, const char *prefix);

/* "pypi: *.example.com:8443", for people. */
#define RULES_TEXT_MAX 300u
void rules_entry_text(const struct rules_entry *e, char out[RULES_TEXT_MAX]);
