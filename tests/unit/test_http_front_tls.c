/* SPDX-License-Identifier: Apache-2.0 */
/* The TLS side of a front, with a client of OpenSSL at the other end of its socket. */
#include "unit.h"

#include "egress/http/front_tls.h"
#include "lib/io.h"

#include <openssl/ssl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct rig {
	struct http_front f;
	SSL_CTX *ctx, *client_ctx;
	SSL *client;
	int fd; /* the client's */
};

static void self_signed(SSL_CTX *ctx)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = X509_new();

	X509_gmtime_adj(X509_getm_notBefore(cert), 0);
	X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
	X509_set_pubkey(cert, key);
	assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
	assert_int_equal(SSL_CTX_use_certificate(ctx, cert), 1);
	assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
	X509_free(cert);
	EVP_PKEY_free(key);
}

static void rig_init(struct rig *r)
{
	const int small = 4096;
	int fds[2], rc = 0;

	*r = (struct rig){.ctx = SSL_CTX_new(TLS_server_method()),
			  .client_ctx = SSL_CTX_new(TLS_client_method())};
	self_signed(r->ctx);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds),
			 0);
	assert_int_equal(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	r->f.guest.fd = fds[0];
	r->fd = fds[1];
	buf_init(&r->f.up, FRONT_BUF);
	buf_init(&r->f.down, FRONT_BUF);
	buf_init(&r->f.wire, 2 * FRONT_BUF);
	assert_int_equal(front_tls_init(&r->f, SSL_new(r->ctx)), 0);
	r->client = SSL_new(r->client_ctx);
	SSL_set_fd(r->client, r->fd);
	for (int i = 0; i < 20 && rc != 1; i++) {
		rc = SSL_connect(r->client);
		assert_int_equal(front_tls_fill(&r->f), 0);
	}
	assert_int_equal(rc, 1);
	/* Tickets are taken as well. */
	assert_int_equal(SSL_read(r->client, &(char){0}, 1), -1);
	assert_int_equal(front_tls_fill(&r->f), 0);
	assert_int_equal(buf_len(&r->f.wire), 0);
	r->f.active_ns = 0;
}

static void rig_free(struct rig *r)
{
	SSL_free(r->client);
	SSL_free(r->f.ssl);
	SSL_CTX_free(r->client_ctx);
	SSL_CTX_free(r->ctx);
	buf_free(&r->f.up);
	buf_free(&r->f.down);
	buf_free(&r->f.wire);
	close(r->f.guest.fd);
	close(r->fd);
}

/* The client asks for new keys, which it is answered. */
static void ask_for_keys(struct rig *r)
{
	assert_int_equal(SSL_key_update(r->client, SSL_KEY_UPDATE_REQUESTED), 1);
	assert_int_equal(SSL_do_handshake(r->client), 1);
}

/* One that takes its time for an answer is not one that does nothing. */
static void test_a_slow_reader_is_active(void **state)
{
	static const uint8_t answer[FRONT_BUF];
	struct rig r;
	size_t left;
	char piece[1024];

	(void)state;
	rig_init(&r);
	assert_int_equal(buf_append(&r.f.down, answer, sizeof(answer)), 0);
	assert_true(front_tls_drain(&r.f) > 0);
	left = buf_len(&r.f.wire);
	assert_true(left > 0);
	r.f.active_ns = 0;
	assert_int_equal(front_tls_fill(&r.f), 0);
	assert_int_equal(r.f.active_ns, 0);

	while (recv(r.fd, piece, sizeof(piece), 0) > 0)
		;
	assert_int_equal(front_tls_fill(&r.f), 0);
	assert_true(buf_len(&r.f.wire) < left);
	assert_int_not_equal(r.f.active_ns, 0);
	rig_free(&r);
}

/* What TLS answers by itself is not what it stays for: neither alone, nor behind an answer. */
static void test_new_keys_are_not_active(void **state)
{
	char text[16];
	struct rig r;

	(void)state;
	rig_init(&r);
	ask_for_keys(&r);
	assert_int_equal(front_tls_fill(&r.f), 0);
	assert_int_equal(r.f.active_ns, 0);
	assert_int_equal(SSL_read(r.client, text, sizeof(text)), -1);

	assert_int_equal(buf_append(&r.f.down, "ok", 2), 0);
	assert_int_equal(front_tls_drain(&r.f), 2);
	assert_int_not_equal(r.f.active_ns, 0);
	assert_int_equal(SSL_read(r.client, text, sizeof(text)), 2);
	r.f.active_ns = 0;
	for (int i = 0; i < 8; i++) {
		ask_for_keys(&r);
		assert_int_equal(front_tls_fill(&r.f), 0);
	}
	assert_int_equal(r.f.active_ns, 0);
	rig_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_slow_reader_is_active),
		cmocka_unit_test(test_new_keys_are_not_active),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
