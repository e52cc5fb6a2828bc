/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Method and path to endpoint. The table itself is in api.c; this module only
 * compares. Paths are matched byte by byte as they came (no decoding, no
 * normalisation): an id never needs an escape, so "%2e%2e" or "//" match
 * nothing. HEAD is answered by GET's endpoint. Pure; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct request;

/* An endpoint. */
struct route {
	const char *method;
	const char *pattern; /* segments; ":id" stands for one segment, ":x" for another */
	bool open;           /* no key needed */
	/*
	 * Called when the headers are there; may answer at once (error) or set
	 * request operations that take the body piece by piece. NULL: none.
	 */
	void (*begin)(struct request *r);
	/* Called when the body is complete (in r->body unless taken). Answers now or later. */
	void (*finish)(struct request *r);
};

#define ROUTE_ID_MAX    65 /* with its end */
#define ROUTE_ALLOW_MAX 64

struct route_match {
	const struct route *route;
	char id[ROUTE_ID_MAX];    /* the first variable segment, "" when there is none or it is too
				     long */
	char other[ROUTE_ID_MAX]; /* the same of the second variable segment */
	char allow[ROUTE_ALLOW_MAX]; /* for ROUTE_BAD_METHOD: "GET, HEAD, DELETE" */
};

enum route_result { ROUTE_OK, ROUTE_NOT_FOUND, ROUTE_BAD_METHOD };

/* path: without query. For ROUTE_BAD_METHOD m->route is some route of that path. */
enum route_result route_find(const struct route *table, size_t n, const char *method,
			     const char *path, struct route_match *m);
