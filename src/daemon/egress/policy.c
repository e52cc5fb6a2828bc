/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Composition of policies. The text has secrets in it: it is overwritten once it is
 * in the memfd, which no path leads to.
 */
#define _GNU_SOURCE
#include "daemon/egress/policy.h"
#include "daemon/egress/grant.h"
#include "daemon/egress/operator.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "proto/egress.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

static json_t *compose(const struct egress_operator *o, const char *sandbox, const struct grant *g,
		       json_t *ca)
{
	return json_pack("{s:s, s:O, s:O, s:O, s:O, s:O?, s:O, s:O, s:O, s:O, s:O, s:O}", "sandbox",
			 sandbox, "allow", g->allow, "groups", o->groups, "ceiling", o->ceiling,
			 "inject", g->inject, "ca", ca, "allow_ranges", o->allow_ranges,
			 "own_ranges", o->own_ranges, "resolve", o->resolve, "resolvers",
			 o->resolvers, "upstream_ca_pem", o->upstream_ca, "limits", o->limits);
}

static int seal(const char *text, size_t len, struct err *err)
{
	_cleanup_fd int fd = memfd_create("policy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc = fd < 0 ? -errno : io_write_full(fd, text, len);

	if (rc == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		rc = -errno;
	if (rc == 0 && lseek(fd, 0, SEEK_SET) < 0)
		rc = -errno;
	return rc < 0 ? err_set(err, -rc, "cannot hand over the policy") : take_fd(&fd);
}

int policy_make(const struct egress_operator *o, const char *sandbox, const struct grant *g,
		json_t *ca, struct err *err)
{
	json_t *policy = compose(o, sandbox, g, ca);
	char *text = json_text(policy);
	size_t len = text ? strlen(text) : 0;
	int rc;

	json_decref(policy);
	if (!text)
		rc = err_set(err, ENOMEM, "the policy");
	else if (len > EGRESS_POLICY_MAX)
		rc = err_text(err, EFBIG, "the policy is larger than %u MiB",
			      EGRESS_POLICY_MAX >> 20);
	else
		rc = seal(text, len, err);
	if (text)
		explicit_bzero(text, len);
	free(text);
	return rc;
}
