/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One key for all certificates of this process, one certificate a host, made
 * when it is first asked for. The context has no certificate of its own: a
 * handshake that would not go through intercept_on_name() cannot succeed.
 */
#define _GNU_SOURCE
#include "egress/http/intercept.h"

#include "egress/http/ca.h"
#include "egress/http/front.h"
#include "egress/http/plane_impl.h"

#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define LEAVES 64u

struct leaf {
	char host[EGRESS_HOST_MAX + 1];
	X509 *cert;
};

struct intercept {
	struct egress *e;
	struct ca *ca;
	EVP_PKEY *key; /* of all leaves */
	SSL_CTX *ctx;
	struct leaf leaves[LEAVES];
	unsigned int next; /* to be replaced */
};

static void intercept_forget(struct intercept *it)
{
	for (size_t i = 0; i < LEAVES; i++) {
		X509_free(it->leaves[i].cert);
		it->leaves[i] = (struct leaf){0};
	}
}

/* The certificate for a host; it stays ours. */
static X509 *intercept_leaf(struct intercept *it, const char *host)
{
	time_t soon = time(NULL) + 3600;
	struct leaf *l = NULL;

	for (size_t i = 0; i < LEAVES && !l; i++)
		if (it->leaves[i].cert && strcmp(it->leaves[i].host, host) == 0)
			l = &it->leaves[i];
	if (l && X509_cmp_time(X509_get0_notAfter(l->cert), &soon) > 0)
		return l->cert;
	if (!l)
		l = &it->leaves[it->next++ % LEAVES];
	X509_free(l->cert);
	l->cert = ca_sign(it->ca, host, it->key);
	snprintf(l->host, sizeof(l->host), "%s", host);
	return l->cert;
}

static void intercept_deny(struct intercept *it, const struct http_front *f, enum egress_reason why,
			   const char *detail)
{
	struct egress_question q = {
		.proto = EGRESS_INTERCEPT,
		.stream = f->stream,
		.host = f->host,
		.host_len = strlen(f->host),
		.port = f->origin.port,
	};
	struct egress_verdict v;

	egress_denied(it->e, &q, why, detail, NULL, &v);
}

/* Called for each ClientHello, also for one without a name. */
static int intercept_on_name(SSL *ssl, int *alert, void *arg)
{
	struct intercept *it = arg;
	const struct http_front *f = SSL_get_app_data(ssl);
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
	X509 *cert;

	*alert = SSL_AD_UNRECOGNIZED_NAME;
	if (!name) {
		intercept_deny(it, f, EGRESS_R_SNI_MISSING,
			       "the client does not name the host in TLS (no SNI)");
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	}
	if (strcasecmp(name, f->host) != 0) {
		intercept_deny(it, f, EGRESS_R_SNI_MISMATCH,
			       "the client names another host in TLS (SNI) than the tunnel is for");
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	}
	*alert = SSL_AD_INTERNAL_ERROR;
	cert = intercept_leaf(it, f->host);
	if (!cert || SSL_use_certificate(ssl, cert) != 1 || SSL_use_PrivateKey(ssl, it->key) != 1)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	return SSL_TLSEXT_ERR_OK;
}

static int intercept_on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
			     const unsigned char *in, unsigned int in_len, void *arg)
{
	static const unsigned char http11[] = "\x08http/1.1";
	unsigned char *chosen;

	(void)ssl;
	(void)arg;
	if (SSL_select_next_proto(&chosen, out_len, http11, sizeof(http11) - 1, in, in_len) !=
	    OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

static SSL_CTX *intercept_context(struct intercept *it)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

	if (!ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1) {
		SSL_CTX_free(ctx);
		return NULL;
	}
	/* No resumption: each connection shows its name, and is looked at. */
	SSL_CTX_set_options(ctx,
			    SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
				      SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
	SSL_CTX_set_tlsext_servername_callback(ctx, intercept_on_name);
	SSL_CTX_set_tlsext_servername_arg(ctx, it);
	SSL_CTX_set_alpn_select_cb(ctx, intercept_on_alpn, NULL);
	return ctx;
}

struct intercept *intercept_new(struct egress *e, struct err *err)
{
	struct intercept *it = calloc(1, sizeof(*it));

	if (it) {
		it->e = e;
		it->key = EVP_EC_gen("P-256");
		it->ctx = intercept_context(it);
	}
	if (it && it->key && it->ctx)
		return it;
	ERR_clear_error();
	intercept_free(it);
	err_text(err, ENOMEM, "the interception of TLS cannot be set up");
	return NULL;
}

void intercept_free(struct intercept *it)
{
	if (!it)
		return;
	intercept_forget(it);
	SSL_CTX_free(it->ctx);
	EVP_PKEY_free(it->key);
	ca_free(it->ca);
	free(it);
}

int intercept_use(struct intercept *it, const json_t *ca, json_t **out, struct err *err)
{
	struct ca *new = NULL;
	int rc = 0;

	if (json_is_object(ca))
		rc = ca_parse(&new, ca, err);
	if (rc < 0 && rc != -ESTALE)
		return rc;
	/* A policy without one does not know yet of the one that we made. */
	if (!new && (!it->ca || rc == -ESTALE)) {
		new = ca_new(err);
		if (!new)
			return -ENOMEM;
	}
	if (new && it->ca && ca_same(new, it->ca)) {
		ca_free(new);
	} else if (new) {
		intercept_forget(it);
		ca_free(it->ca);
		it->ca = new;
	}
	*out = ca_json(it->ca);
	return *out ? 0 : err_text(err, ENOMEM, "no memory for the CA");
}

SSL *intercept_session(struct intercept *it)
{
	return it->ca ? SSL_new(it->ctx) : NULL;
}
