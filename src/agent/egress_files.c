/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs are told while egress is on: environment, and files in run_dir.
 *
 * All of it is there, in memory, or nothing: no file of /etc is written. So a
 * sandbox differs from its image by what its user did, a copy that gets no
 * egress has nothing to clean up, and settings of the user stay his. Proxies are
 * told by the environment alone, which every tool understands and in which the
 * user's own value wins; the configuration of pip or git would win against it
 * (and pip's makes it forget NO_PROXY). What the image has for login shells,
 * sudo and its sentences about the missing network looks at EGRESS_SHELL
 * (guest/images/default).
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/egress.h"
#include "agent/renew.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define EGRESS_CA     "egress-ca.pem"
#define EGRESS_BUNDLE "egress-bundle.pem" /* the system's and that one */
#define EGRESS_APT    "egress-apt.conf"
#define EGRESS_WGET   "egress-wgetrc"
#define EGRESS_SHELL  "egress-env.sh"

/* Makes a Node.js without NODE_USE_ENV_PROXY use the proxy; comes with the REPL, and stays. */
#define EGRESS_NODE "repl/egress-node.cjs"

#define EGRESS_SYSTEM_MAX (4u << 20)

/* File that a variable names: tools differ in whether theirs replaces the system's CAs. */
struct egress_variable {
	const char *name, *file;
};

static const struct egress_variable ca_variables[] = {
	{"SSL_CERT_FILE", EGRESS_BUNDLE}, /* OpenSSL: Python, Ruby, uv, httpx; Go */
	{"REQUESTS_CA_BUNDLE", EGRESS_BUNDLE},
	{"CURL_CA_BUNDLE", EGRESS_BUNDLE},
	{"GIT_SSL_CAINFO", EGRESS_BUNDLE},
	{"AWS_CA_BUNDLE", EGRESS_BUNDLE},
	{"PIP_CERT", EGRESS_BUNDLE},
	{"CARGO_HTTP_CAINFO", EGRESS_BUNDLE},
	{"npm_config_cafile", EGRESS_BUNDLE},
	{"NODE_EXTRA_CA_CERTS", EGRESS_CA},
	{"DENO_CERT", EGRESS_CA},
	/* GnuTLS has no variable; these two use it, and can be given a file of settings. */
	{"APT_CONFIG", EGRESS_APT},
	{"WGETRC", EGRESS_WGET},
};

static int egress_env_add(struct egress *e, const char *name, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int egress_env_add(struct egress *e, const char *name, const char *fmt, ...)
{
	char value[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	if (n >= (int)sizeof(value) || e->nenv == EGRESS_ENV_MAX)
		return -E2BIG;
	if (asprintf(&e->env[e->nenv], "%s=%s", name, value) < 0)
		return -ENOMEM;
	e->nenv++;
	return 0;
}

/* A Node.js that is told to load a file which is not there does not start: so only if it is. */
static int egress_add_node(struct egress *e)
{
	char path[256];
	int rc;

	rc = egress_env_add(e, "NODE_USE_ENV_PROXY", "1");
	snprintf(path, sizeof(path), "%s/" EGRESS_NODE, e->run_dir);
	if (rc == 0 && access(path, R_OK) == 0)
		rc = egress_env_add(e, "NODE_OPTIONS", "--require=%s", path);
	return rc;
}

static int egress_make_env(struct egress *e)
{
	/* http for all of them: who knows no SOCKS stumbles over a proxy of that kind. */
	static const char *const proxies[] = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
					      "http_proxy", "https_proxy", "all_proxy"};
	static const char *const none[] = {"NO_PROXY", "no_proxy"};
	int rc = 0;

	for (size_t i = 0; i < ARRAY_SIZE(proxies) && rc == 0; i++)
		rc = egress_env_add(e, proxies[i], "http://127.0.0.1:%u", e->cfg.http_port);
	for (size_t i = 0; i < ARRAY_SIZE(none) && rc == 0; i++)
		rc = egress_env_add(e, none[i], "localhost,127.0.0.1,::1");
	if (rc == 0)
		rc = egress_add_node(e);
	for (size_t i = 0; e->ca && i < ARRAY_SIZE(ca_variables) && rc == 0; i++)
		rc = egress_env_add(e, ca_variables[i].name, "%s/%s", e->run_dir,
				    ca_variables[i].file);
	return rc;
}

/* The CAs of the image; "" when it has none. Nothing here may block: the file is root's to change.
 */
static char *egress_system_cas(const struct egress *e)
{
	_cleanup_fd int fd = -1;
	char path[256], *text;
	struct stat st;

	snprintf(path, sizeof(path), "%s/ssl/certs/ca-certificates.crt", e->etc_dir);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > EGRESS_SYSTEM_MAX)
		return strdup("");
	text = calloc(1, (size_t)st.st_size + 1);
	if (text && io_pread_full(fd, text, (size_t)st.st_size, 0) < 0)
		*text = '\0';
	return text;
}

static int egress_write_ca(const struct egress *e)
{
	_cleanup_free char *system = egress_system_cas(e), *bundle = NULL;
	char line[512];
	int rc;

	if (!system || asprintf(&bundle, "%s\n%s\n", system, e->ca) < 0)
		return -ENOMEM;
	rc = renew_write(e->run_dir, EGRESS_CA, e->ca);
	if (rc == 0)
		rc = renew_write(e->run_dir, EGRESS_BUNDLE, bundle);
	snprintf(line, sizeof(line), "Acquire::https::CaInfo \"%s/" EGRESS_BUNDLE "\";\n",
		 e->run_dir);
	if (rc == 0)
		rc = renew_write(e->run_dir, EGRESS_APT, line);
	snprintf(line, sizeof(line), "ca_certificate = %s/" EGRESS_BUNDLE "\n", e->run_dir);
	return rc == 0 ? renew_write(e->run_dir, EGRESS_WGET, line) : rc;
}

/* The environment for shells that begin without it; values are ours, and need no quotes. */
static int egress_write_shell(const struct egress *e)
{
	_cleanup_free char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return -ENOMEM;
	for (size_t i = 0; i < e->nenv; i++) {
		int n = (int)strcspn(e->env[i], "=");

		fprintf(f, "export %.*s=\"${%.*s-%s}\"\n", n, e->env[i], n, e->env[i],
			e->env[i] + n + 1);
	}
	if (fclose(f) != 0)
		return -ENOMEM;
	return renew_write(e->run_dir, EGRESS_SHELL, text);
}

static void egress_env_clear(struct egress *e)
{
	while (e->nenv)
		free(e->env[--e->nenv]);
}

static void egress_unlink(const struct egress *e, const char *const *files, size_t n)
{
	_cleanup_fd int dir = open(e->run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

	for (size_t i = 0; i < n && dir >= 0; i++)
		unlinkat(dir, files[i], 0);
}

/* What is not replaced but goes: last come those of a CA. */
static const char *const egress_files[] = {EGRESS_SHELL, EGRESS_WGET, EGRESS_APT, EGRESS_BUNDLE,
					   EGRESS_CA};

int egress_files_write(struct egress *e, struct err *err)
{
	int rc;

	egress_env_clear(e);
	rc = egress_make_env(e);
	if (rc == 0 && e->ca)
		rc = egress_write_ca(e);
	else if (rc == 0)
		egress_unlink(e, egress_files + 1, ARRAY_SIZE(egress_files) - 1);
	if (rc == 0)
		rc = egress_write_shell(e);
	return rc < 0 ? err_set(err, -rc, "cannot write the files of egress to %s", e->run_dir) : 0;
}

void egress_files_remove(struct egress *e)
{
	/* The environment is made before any of them is written. */
	if (e->nenv)
		egress_unlink(e, egress_files, ARRAY_SIZE(egress_files));
	egress_env_clear(e);
}

static bool egress_is_given(const char *entry, char *const *extra, size_t n)
{
	size_t len = strcspn(entry, "=") + 1;

	for (size_t i = 0; i < n; i++)
		if (strncasecmp(entry, extra[i], len) == 0)
			return true;
	return false;
}

char **egress_env_build(const struct egress *e, const struct user *u, char *const *extra, size_t n)
{
	_cleanup_free char **all = NULL;
	size_t count = 0;

	if (!e->nenv)
		return env_build(u, extra, n);
	all = calloc(e->nenv + n, sizeof(*all));
	if (!all)
		return NULL;
	for (size_t i = 0; i < e->nenv; i++)
		if (!egress_is_given(e->env[i], extra, n))
			all[count++] = e->env[i];
	for (size_t i = 0; i < n; i++)
		all[count++] = extra[i];
	return env_build(u, all, count);
}

json_t *egress_session_env(const struct egress *e)
{
	json_t *env = json_object();

	for (size_t i = 0; i < e->nenv; i++) {
		size_t n = strcspn(e->env[i], "=");

		if (json_object_setn_new(env, e->env[i], n, json_string(e->env[i] + n + 1)) < 0) {
			json_decref(env);
			return NULL;
		}
	}
	return json_pack("{s:o}", "env", env);
}
