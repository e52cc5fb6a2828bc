/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check of "inject". Pure; any thread.
 */
#include "egress/policy_inject.h"

#include "egress/rules.h"
#include "lib/header_name.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

static const char *const refused[] = {
	"Host",
	"Content-Length",
	"Transfer-Encoding",
	"Connection",
	"Keep-Alive",
	"TE",
	"Trailer",
	"Upgrade",
	"Expect",
	"Proxy-Connection",
	"Proxy-Authorization",
	"Proxy-Authenticate",
};

static bool is_token(const char *s)
{
	if (!*s || strlen(s) > INJECT_NAME_MAX)
		return false;
	return strspn(s, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
			 "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == strlen(s);
}

static bool is_value(const json_t *v)
{
	const char *s = json_string_value(v);
	size_t len = json_string_length(v);

	if (!s || len > INJECT_VALUE_MAX)
		return false;
	for (size_t i = 0; i < len; i++)
		if (((unsigned char)s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f)
			return false;
	return true;
}

/* Another header that a server would take for this one: of two only one would be sent. */
static bool is_twice(const json_t *headers, const char *name)
{
	const char *other;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)headers, other,
			    v) if (other != name && header_same_variable(other, name)) return true;
	return false;
}

static int check_headers(const char *host, const json_t *headers, struct err *err)
{
	const char *name;
	json_t *value;

	if (!json_is_object(headers) || json_object_size(headers) > INJECT_HEADERS_MAX)
		return err_text(err, EINVAL,
				"inject: %s: \"headers\" is not an object, or too large", host);
	json_object_foreach((json_t *)(uintptr_t)headers, name, value)
	{
		if (!is_token(name))
			return err_text(err, EINVAL, "inject: %s: a header's name is not a token",
					host);
		for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
			if (strcasecmp(name, refused[i]) == 0)
				return err_text(err, EINVAL,
						"inject: %s: the header %s cannot be injected",
						host, name);
		if (is_twice(headers, name))
			return err_text(err, EINVAL, "inject: %s: the header %s is there twice",
					host, name);
		if (!is_value(value))
			return err_text(err, EINVAL,
					"inject: %s: the value of %s is not a text for a header",
					host, name);
	}
	return 0;
}

int policy_inject_parse(json_t **out, bool *intercepts, const json_t *v, struct err *err)
{
	const char *name;
	json_t *one;

	if (!json_is_object(v) || json_object_size(v) > INJECT_HOSTS_MAX)
		return err_text(err, EINVAL, "\"inject\" is not an object, or too large");
	*out = json_object();
	json_object_foreach((json_t *)(uintptr_t)v, name, one)
	{
		json_t *headers = json_object_get(one, "headers");
		json_t *intercept = json_object_get(one, "intercept");
		char host[EGRESS_HOST_MAX + 1];
		int rc = egress_host_normal(name, strlen(name), host, err);

		if (rc < 0)
			return err_prefix(err, "inject");
		if (!headers || json_object_size(one) != (intercept ? 2u : 1u) ||
		    (intercept && !json_is_boolean(intercept)))
			return err_text(err, EINVAL,
					"inject: %s: is not an object of headers and intercept",
					host);
		rc = check_headers(host, headers, err);
		if (rc < 0)
			return rc;
		if (json_object_get(*out, host))
			return err_text(err, EINVAL, "inject: %s is there twice", host);
		if (json_object_set_new(*out, host, json_clone(one)) < 0)
			return err_text(err, ENOMEM, "no memory");
		*intercepts = *intercepts || json_is_true(intercept);
	}
	return 0;
}
