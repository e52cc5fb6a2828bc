/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Environment of podflared, but for what is a default of an option. Runs once,
 * before the event loop.
 */
#define _GNU_SOURCE
#include "daemon/config_impl.h"
#include "daemon/limits.h"
#include "lib/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int config_parse_number(const char *what, const char *text, uint32_t min, uint32_t max,
			uint32_t *out, struct err *err)
{
	unsigned long v;
	char *end;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || end == text || *end || text[0] < '0' || text[0] > '9' || v < min || v > max)
		return err_text(err, EINVAL, "%s is \"%s\", not a number from %u to %u", what, text,
				min, max);
	*out = (uint32_t)v;
	return 0;
}

static int env_number(const char *name, uint32_t min, uint32_t max, uint32_t *out, struct err *err)
{
	const char *text = getenv(name);

	return text && *text ? config_parse_number(name, text, min, max, out, err) : 0;
}

/* Splits the comma list; blanks around a key do not count, empty entries are skipped. */
static int load_keys(struct config *c, struct err *err)
{
	const char *s = getenv("PODFLARE_API_KEYS");

	while (s && *s) {
		size_t len;

		s += strspn(s, ", \t");
		len = strcspn(s, ",");
		while (len && (s[len - 1] == ' ' || s[len - 1] == '\t'))
			len--;
		if (len == 0)
			continue;
		for (size_t i = 0; i < len; i++)
			if (s[i] <= ' ' || s[i] == 0x7f)
				return err_text(err, EINVAL,
						"PODFLARE_API_KEYS: key %u has a blank or control "
						"character",
						c->nkeys + 1);
		if (c->nkeys == CONFIG_KEYS_MAX)
			return err_text(err, E2BIG, "PODFLARE_API_KEYS has more than %d keys",
					CONFIG_KEYS_MAX);
		c->keys[c->nkeys] = strndup(s, len);
		if (!c->keys[c->nkeys])
			return err_set(err, ENOMEM, "PODFLARE_API_KEYS");
		c->nkeys++;
		s += len;
		s += strcspn(s, ",");
	}
	return 0;
}

static int load_cgroup(struct config *c, struct err *err)
{
	static const char *const words[] = {
		[CGROUP_AUTO] = "auto",
		[CGROUP_OFF] = "off",
		[CGROUP_REQUIRE] = "require",
		[CGROUP_GROUPS] = "groups",
	};
	const char *s = getenv("PODFLARE_CGROUP");
	size_t i = 0;

	if (s && *s) {
		while (i < ARRAY_SIZE(words) && strcmp(s, words[i]) != 0)
			i++;
		if (i == ARRAY_SIZE(words))
			return err_text(
				err, EINVAL,
				"PODFLARE_CGROUP is \"%s\", not auto, require, groups or off", s);
		c->cgroup = (enum cgroup_mode)i;
	}
	return env_number("PODFLARE_CGROUP_IO_MIB", 1, 1u << 20, &c->cgroup_io_mib, err);
}

int config_load_env(struct config *c, struct err *err)
{
	const char *s = getenv("PODFLARE_LOG_FORMAT");
	int rc;

	if (s && strcmp(s, "json") == 0)
		c->log_format = LOG_JSON;
	else if (s && *s && strcmp(s, "text") != 0)
		return err_text(err, EINVAL, "PODFLARE_LOG_FORMAT is \"%s\", not text or json", s);
	s = getenv("PODFLARE_AUTH_DISABLED");
	if (s && strcmp(s, "1") == 0)
		c->auth_disabled = true;
	else if (s && *s && strcmp(s, "0") != 0)
		return err_text(err, EINVAL, "PODFLARE_AUTH_DISABLED is \"%s\", not 1 or 0", s);
	s = getenv("PODFLARE_WITHOUT_NAMESPACES");
	if (s && strcmp(s, "1") == 0)
		c->without_namespaces = true;
	else if (s && *s && strcmp(s, "0") != 0)
		return err_text(err, EINVAL, "PODFLARE_WITHOUT_NAMESPACES is \"%s\", not 1 or 0",
				s);
	rc = load_cgroup(c, err);
	if (rc == 0)
		rc = env_number("PODFLARE_CREATE_TIMEOUT", 1, 3600, &c->create_timeout_s, err);
	if (rc == 0)
		rc = env_number("PODFLARE_TEMPLATE_TIMEOUT", 1, 86400, &c->template_timeout_s, err);
	if (rc == 0)
		rc = c->pool_given
			     ? 0
			     : env_number("PODFLARE_POOL_SIZE", 0, LIMIT_POOL, &c->pool_size, err);
	if (rc == 0)
		rc = c->fork_given
			     ? 0
			     : env_number("PODFLARE_MAX_FORK", 1, LIMIT_FORK, &c->max_fork, err);
	if (rc == 0)
		rc = env_number("PODFLARE_FREEZE_TIMEOUT", 1, 3600, &c->freeze_timeout_s, err);
	if (rc == 0)
		rc = env_number("PODFLARE_PING_AFTER", 1, 86400, &c->ping_after_s, err);
	if (rc == 0)
		rc = env_number("PODFLARE_PONG_WITHIN", 1, 86400, &c->pong_within_s, err);
	if (rc == 0)
		rc = env_number("PODFLARE_EXEC_SLACK", 1, 3600, &c->exec_slack_s, err);
	if (rc == 0)
		rc = env_number("PODFLARE_HTTP_TIMEOUT", 1, 3600, &c->http_timeout_s, err);
	if (rc == 0)
		rc = env_number("PODFLARE_REQUESTS_MIB", 16, 1u << 20, &c->requests_mib, err);
	if (rc == 0)
		rc = env_number("PODFLARE_KEEP_DAYS", 1, 36500, &c->keep_days, err);
	if (rc == 0)
		rc = env_number("PODFLARE_KEEP_MIB", 1, 1u << 20, &c->keep_mib, err);
	return rc == 0 ? load_keys(c, err) : rc;
}
