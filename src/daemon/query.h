/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parameters of a query string. Pure; any thread. fork: no state.
 */
#pragma once

/*
 * Value of a parameter, decoded ('+' is a blank, %XX a byte), as a new string:
 * 0; -ENOENT when it is not there; -EEXIST when it is there twice; -EINVAL for
 * a broken escape, a NUL or ill-formed UTF-8; -ENOMEM. query may be NULL.
 */
int query_get(const char *query, const char *name, char **out);

/*
 * The n-th parameter of this name, from 0, in the same way; it may be there several times.
 */
int query_get_nth(const char *query, const char *name, unsigned int nth, char **out);
