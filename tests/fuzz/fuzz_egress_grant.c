/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The value of "egress" in a request. What is taken is in normal form: taken again, it is the same;
 * what is injected fits a header's line and belongs to a name that is allowed. What is refused is
 * told in a sentence that has no value of a header in it.
 */
#include "input.h"

#include "daemon/egress/grant.h"
#include "daemon/egress/operator.h"

static struct egress_operator operator_of_host(void)
{
	struct egress_operator o = {.usable = true, .allow = json_array()};
	json_t *ceiling = json_pack("[s, s, s]", "*.example.com", "a.test", "pypi");

	o.groups = json_pack("{s:[s, s]}", "pypi", "pypi.org", "files.pythonhosted.org");
	MUST(egress_rules_parse(&o.ceiling_rules, ceiling, o.groups, NULL) == 0);
	json_decref(ceiling);
	return o;
}

/* Long enough not to be anywhere by chance, and the same inside a JSON text. */
static bool plain(const json_t *v)
{
	const char *s = json_string_value(v);

	return json_string_length(v) >= 32 && strlen(s) == json_string_length(v) &&
	       strspn(s, " 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._") ==
		       strlen(s);
}

/* Unless a value is told in another place, a host's name say, which the sentence may quote. */
static void check_secret(const json_t *value, const char *sentence)
{
	json_t *inject = json_object_get(value, "inject"),
	       *rest = json_copy((json_t *)(uintptr_t)value);
	json_t *o, *v;
	const char *host, *name;
	char *text;

	json_object_del(rest, "inject");
	json_object_foreach(inject, host, o)
	{
		json_object_set_new(rest, host, json_null());
		json_object_foreach(json_object_get(o, "headers"), name, v)
			json_object_set_new(rest, name, json_null());
	}
	text = json_dumps(rest, JSON_ENCODE_ANY);
	MUST(text);
	json_object_foreach(inject, host, o)
		json_object_foreach(json_object_get(o, "headers"), name, v)
			MUST(!plain(v) || strstr(text, json_string_value(v)) ||
			     !strstr(sentence, json_string_value(v)));
	free(text);
	json_decref(rest);
}

static void check_inject(const struct grant *g)
{
	json_t *names = grant_inject_names(g), *o, *v;
	const char *host, *name;

	MUST(json_object_size(names) == json_object_size(g->inject));
	json_object_foreach(g->inject, host, o)
	{
		json_object_foreach(json_object_get(o, "headers"), name, v)
			MUST(!strpbrk(json_string_value(v), "\r\n") &&
			     strlen(json_string_value(v)) == json_string_length(v) &&
			     !strpbrk(name, " :\r\n"));
		MUST(json_array_size(json_object_get(names, host)) ==
		     json_object_size(json_object_get(o, "headers")));
	}
	json_decref(names);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct egress_operator o;
	struct grant_fault fault = {0};
	struct grant *g = NULL, *child = NULL;
	json_t *value =
		json_loadb((const char *)data, size, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
	int rc;

	if (!o.usable)
		o = operator_of_host();
	if (!value)
		return 0;
	rc = grant_parse(&g, &o, value, &fault);
	MUST(rc == 0 ? !fault.err.num : !g && fault.err.msg[0] && fault.field);
	if (rc < 0)
		check_secret(value, fault.err.msg);
	if (g) {
		json_t *again = json_pack("{s:O, s:O}", "allow", g->allow, "inject", g->inject);
		struct grant *same = NULL;

		check_inject(g);
		MUST(json_array_size(g->allow) > 0);
		MUST(grant_parse(&same, &o, again, &fault) == 0 && same);
		MUST(json_equal(same->allow, g->allow) && json_equal(same->inject, g->inject));
		MUST(grant_inherit(&child, g, false) == 0 && json_object_size(child->inject) == 0);
		json_decref(again);
		grant_unref(same);
		grant_unref(child);
	}
	json_decref(value);
	grant_unref(g);
	return 0;
}
