/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of RENEW, and of THAW, which has one member of it.
 */
#define _GNU_SOURCE
#include "agent/request_parse.h"
#include "lib/base64.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Exactly REQUEST_ENTROPY bytes, in base64. */
static int parse_entropy(json_t *obj, uint8_t out[REQUEST_ENTROPY], struct err *err)
{
	const char *text = json_string_value(json_object_get(obj, "entropy"));
	uint8_t bytes[BASE64_SIZE(REQUEST_ENTROPY)];
	size_t len = text ? strlen(text) : 0;

	if (len != sizeof(bytes) || base64_decode(bytes, text, len) != REQUEST_ENTROPY)
		return err_text(err, EINVAL, "\"entropy\" must be base64 of %d bytes",
				REQUEST_ENTROPY);
	memcpy(out, bytes, REQUEST_ENTROPY);
	explicit_bzero(bytes, sizeof(bytes));
	return 0;
}

static int parse_hostname(json_t *obj, char out[64], struct err *err)
{
	static const char allowed[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-";
	const char *name = json_string_value(json_object_get(obj, "hostname"));

	if (!name || strlen(name) < 1 || strlen(name) > 63 ||
	    strspn(name, allowed) != strlen(name) || name[0] == '-')
		return err_text(err, EINVAL,
				"\"hostname\" must be 1 to 63 letters, digits and hyphens");
	snprintf(out, 64, "%s", name);
	return 0;
}

const char *request_kind_name(enum request_kind kind)
{
	static const char *const names[] = {"boot", "create", "fork"};

	return names[kind];
}

static int parse_kind(json_t *obj, struct request_renew *r, struct err *err)
{
	const char *name = json_string_value(json_object_get(obj, "kind"));
	json_t *reseed = json_object_get(obj, "reseed");

	for (r->kind = RENEW_BOOT; r->kind <= RENEW_FORK; r->kind++)
		if (name && strcmp(name, request_kind_name(r->kind)) == 0)
			break;
	if (r->kind > RENEW_FORK)
		return err_text(err, EINVAL, "\"kind\" must be \"boot\", \"create\" or \"fork\"");
	r->reseed = !reseed || json_is_true(reseed);
	if (reseed && !json_is_boolean(reseed))
		return err_text(err, EINVAL, "\"reseed\" must be true or false");
	if (!r->reseed && r->kind != RENEW_FORK)
		return err_text(err, EINVAL, "\"reseed\" can be false for a fork only");
	return 0;
}

/* Copies a string of min to max characters, all of them allowed, to out (max + 1 bytes). */
static int parse_word(json_t *obj, const char *key, const char *allowed, size_t min, size_t max,
		      char *out, struct err *err)
{
	const char *text = json_string_value(json_object_get(obj, key));
	size_t len = text ? strlen(text) : 0;

	if (len < min || len > max || strspn(text, allowed) != len)
		return err_text(err, EINVAL, "\"%s\" must be %zu to %zu characters of %s", key, min,
				max, allowed);
	memcpy(out, text, len + 1);
	return 0;
}

static int parse_boot_id(json_t *obj, struct request_renew *r, struct err *err)
{
	int rc = parse_word(obj, "boot_id", "0123456789abcdef-", 36, 36, r->boot_id, err);

	for (int i = 0; rc == 0 && i < 36; i++)
		if ((r->boot_id[i] == '-') != (i == 8 || i == 13 || i == 18 || i == 23))
			rc = err_text(err, EINVAL, "\"boot_id\" must be a UUID");
	return rc;
}

static int parse_identity(json_t *obj, struct request_renew *r, struct err *err)
{
	static const char letters[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
	json_t *generation = json_object_get(obj, "generation");
	int rc = parse_hostname(obj, r->hostname, err);

	r->generation = json_integer_value(generation);
	if (rc == 0 && (!json_is_integer(generation) || r->generation < 0))
		rc = err_text(err, EINVAL, "\"generation\" must be an integer from 0");
	if (rc == 0)
		rc = parse_word(obj, "id", letters, 1, 64, r->id, err);
	if (rc == 0)
		rc = parse_word(obj, "machine_id", "0123456789abcdef", 32, 32, r->machine_id, err);
	return rc == 0 ? parse_boot_id(obj, r, err) : rc;
}

void request_renew_free(struct request_renew *r)
{
	request_egress_free(&r->egress);
	explicit_bzero(r, sizeof(*r));
}

int request_parse_renew(const void *p, size_t len, struct request_renew *r, struct err *err)
{
	json_t *obj = NULL, *v;
	int rc;

	*r = (struct request_renew){0};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	v = json_object_get(obj, "realtime_ns");
	r->realtime_ns = json_integer_value(v);
	if (!json_is_integer(v) || r->realtime_ns <= 0)
		rc = err_text(err, EINVAL, "\"realtime_ns\" must be a positive integer");
	else
		rc = parse_entropy(obj, r->entropy, err);
	if (rc == 0)
		rc = parse_kind(obj, r, err);
	if (rc == 0)
		rc = parse_identity(obj, r, err);
	v = json_object_get(obj, "egress");
	if (rc == 0 && v)
		rc = request_egress_object(v, &r->egress, err);
	json_decref(obj);
	return rc;
}

void request_thaw_free(struct request_thaw *r)
{
	explicit_bzero(r, sizeof(*r));
}

int request_parse_thaw(const void *p, size_t len, struct request_thaw *r, struct err *err)
{
	json_t *obj = NULL;
	int rc;

	*r = (struct request_thaw){0};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	r->reseed = json_object_get(obj, "entropy") != NULL;
	if (r->reseed)
		rc = parse_entropy(obj, r->entropy, err);
	json_decref(obj);
	return rc;
}
