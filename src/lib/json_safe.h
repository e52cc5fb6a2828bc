/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What jansson does without memory and does not tell. json_loadb() leaves out bytes of strings and
 * names, json_dumps() goes on when it gets none in the middle of a string and returns other JSON,
 * or none, as if all was well, and json_deep_copy() leaves out members and elements.
 *
 * Thread: any. fork: no state.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>

/*
 * At the start of a program: memory of JSON is overwritten when it is freed (wipe.h), and
 * json_safe_loadb() notices when there is none.
 */
void json_safe_begin(void);

/* As json_loadb(); NULL as well when not all of it could be kept, which json_safe_lacked() tells.
 */
json_t *json_safe_loadb(const char *text, size_t len, size_t flags, json_error_t *e);
/*
 * Whether text has at most max values, names of members not counted: a look at what is outside of
 * strings, nothing is built. To be asked before a text is loaded that may be long, as each value
 * takes many times the memory of its text. Of what is no JSON the answer means nothing.
 */
bool json_few_values(const char *text, size_t len, size_t max);
/*
 * As json_safe_loadb(), of a text with at most max values; NULL of one with more, before anything
 * of it is built. For what somebody wrote who may want it to take long.
 */
json_t *json_safe_load_few(const char *text, size_t len, size_t max, size_t flags);

/* Whether memory was missing in this thread's last load. */
bool json_safe_lacked(void);
/* Why what it returned is not what was expected: -ENOMEM, or -EPROTO. */
int json_safe_fault(void);

/* As json_dumps(). NULL: no memory, or there is no value. */
char *json_text_with(const json_t *value, size_t flags);
/* Compact. */
char *json_text(const json_t *value);
/*
 * Compact, of printable ASCII alone: whatever is not, DEL and the controls of U+0080 to U+009F
 * among it, is escaped. For texts that are looked at as they are, and may be somebody else's.
 */
char *json_text_ascii(const json_t *value);

/* As json_deep_copy(); NULL as well when the copy has not become like the original. */
json_t *json_clone(const json_t *value);
