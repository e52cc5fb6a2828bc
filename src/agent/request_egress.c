/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of EGRESS, which RENEW has as a member. Of the CA only the form is
 * looked at: it goes into files that others parse.
 */
#define _GNU_SOURCE
#include "agent/request_parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One certificate, or a few, in lines of printable ASCII. */
static bool egress_is_pem(const char *text)
{
	static const char begin[] = "-----BEGIN CERTIFICATE-----\n";
	static const char end[] = "\n-----END CERTIFICATE-----";
	size_t len = strlen(text);

	if (len > REQUEST_CA_MAX || strncmp(text, begin, strlen(begin)) != 0 || !strstr(text, end))
		return false;
	for (size_t i = 0; i < len; i++)
		if ((text[i] < ' ' || text[i] > '~') && text[i] != '\n')
			return false;
	return true;
}

int request_egress_object(json_t *obj, struct request_egress *r, struct err *err)
{
	json_t *on = json_object_get(obj, "on"), *ca = json_object_get(obj, "ca");
	int rc = 0;

	*r = (struct request_egress){.on = json_is_true(on)};
	if (!json_is_boolean(on))
		return err_text(err, EINVAL, "\"on\" of egress must be true or false");
	if (ca && !json_is_null(ca))
		rc = request_string(obj, "ca", true, &r->ca, err);
	if (rc == 0 && r->ca && !egress_is_pem(r->ca))
		rc = err_text(err, EINVAL,
			      "\"ca\" must be certificates in PEM, of at most %u bytes",
			      REQUEST_CA_MAX);
	if (rc < 0)
		request_egress_free(r);
	return rc;
}

int request_parse_egress(const void *p, size_t len, struct request_egress *r, struct err *err)
{
	json_t *obj = NULL;
	int rc = request_object(p, len, &obj, err);

	if (rc == 0)
		rc = request_egress_object(obj, r, err);
	json_decref(obj);
	return rc;
}

void request_egress_free(struct request_egress *r)
{
	free(r->ca);
	*r = (struct request_egress){0};
}
