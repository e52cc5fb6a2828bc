/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CA of one sandbox: it signs certificates for hosts whose tunnels the proxy
 * opens, is trusted inside that sandbox and nowhere else, and lives for 30 days.
 * EC P-256; pathlen 0, so that what it signs can sign nothing.
 *
 * Thread: any, one at a time. fork: memory. The private key is in this process and the daemon,
 * never in the guest.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdbool.h>

struct ca;

/* A new one. NULL: err. */
struct ca *ca_new(struct err *err);
/* One that was made by ca_new(), from {"cert_pem","key_pem"}: checked to be a CA, a pair, and not
 * over within a day (-ESTALE). */
__must_check int ca_parse(struct ca **out, const json_t *pems, struct err *err);
void ca_free(struct ca *ca);

/* {"cert_pem","key_pem"}, a new reference; NULL without memory. */
json_t *ca_json(const struct ca *ca);

bool ca_same(const struct ca *a, const struct ca *b);

/* A certificate for host (normal form) and this public key, at most a week and not longer than the
 * CA's own. NULL without memory. */
X509 *ca_sign(const struct ca *ca, const char *host, EVP_PKEY *key);
