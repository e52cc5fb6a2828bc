/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session has two memory BIOs. At most TLS_PIECE bytes of the guest lie in
 * the first, and the second is emptied into f->wire, which bounds what is
 * encrypted ahead. OpenSSL answers some messages by itself (KeyUpdate), however many
 * there are of them: so their number is bounded by what came beside them, and nothing is read
 * while their answers do not get into f->wire.
 * Thread: the loop's. fork: no state.
 */
#include "egress/http/front_tls.h"

#include "lib/io.h"

#include <errno.h>
#include <openssl/err.h>

#define TLS_PIECE 16384
#define TLS_AHEAD (2ul * TLS_PIECE) /* encrypted bytes that wait for the guest */

/* Messages of TLS itself in a connection: the handshake's, and one more for so many bytes. */
#define TLS_NOTICES      64u
#define TLS_NOTICE_BYTES 4096u

/* Called for each message, and for the header of each record. */
static void tls_on_message(int sent, int version, int type, const void *data, size_t len, SSL *ssl,
			   void *arg)
{
	struct http_front *f = arg;

	(void)sent;
	(void)version;
	(void)data;
	(void)len;
	(void)ssl;
	f->tls_notices += type == SSL3_RT_HANDSHAKE || type == SSL3_RT_ALERT;
}

int front_tls_init(struct http_front *f, SSL *ssl)
{
	BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());

	if (!in || !out) {
		BIO_free(in);
		BIO_free(out);
		return -ENOMEM;
	}
	BIO_set_mem_eof_return(in, -1);
	BIO_set_mem_eof_return(out, -1);
	SSL_set_bio(ssl, in, out);
	SSL_set_accept_state(ssl);
	SSL_set_app_data(ssl, f);
	SSL_set_msg_callback(ssl, tls_on_message);
	SSL_set_msg_callback_arg(ssl, f);
	f->ssl = ssl;
	return 0;
}

/*
 * What OpenSSL wrote goes to the guest as far as it takes it: like buf_flush(). Taking what is of
 * an answer is a sign of life; answers of TLS's own are not, or asking for them would be one.
 */
static int tls_flush(struct http_front *f)
{
	BIO *out = SSL_get_wbio(f->ssl);
	size_t before;
	int rc;

	while (BIO_ctrl_pending(out)) {
		uint8_t *p = buf_reserve(&f->wire, TLS_PIECE);
		int n;

		if (!p)
			break;
		n = BIO_read(out, p, TLS_PIECE);
		if (n <= 0)
			break;
		buf_commit(&f->wire, (size_t)n);
	}
	before = buf_len(&f->wire);
	rc = buf_flush(&f->wire, f->guest.fd);
	if (buf_len(&f->wire) < before && f->tls_answer) {
		size_t went = before - buf_len(&f->wire);

		f->tls_answer -= went < f->tls_answer ? went : f->tls_answer;
		f->active_ns = io_now_ns();
	}
	return rc;
}

/* Bytes of the guest for OpenSSL: 1, 0 (none now), -errno. */
static int tls_read_wire(struct http_front *f)
{
	uint8_t piece[TLS_PIECE];
	ssize_t n = io_read_some(f->guest.fd, piece, sizeof(piece));

	if (n == -EAGAIN)
		return 0;
	if (n < 0)
		return (int)n;
	if (n == 0) {
		f->guest_eof = true;
		return 0;
	}
	return BIO_write(SSL_get_rbio(f->ssl), piece, (int)n) == n ? 1 : -ENOMEM;
}

/* A broken session sends the alert that it made, and ends. */
static int tls_failed(struct http_front *f)
{
	int rc;

	ERR_clear_error();
	f->tls_dead = true;
	rc = tls_flush(f);
	return rc < 0 ? rc : -EPROTO;
}

bool front_tls_full(const struct http_front *f)
{
	return BIO_ctrl_pending(SSL_get_wbio(f->ssl)) > 0;
}

int front_tls_fill(struct http_front *f)
{
	int got = 0;

	while (buf_room(&f->up) && !f->guest_eof) {
		size_t room = buf_room(&f->up) < TLS_PIECE ? buf_room(&f->up) : TLS_PIECE;
		uint8_t *p = buf_reserve(&f->up, room);
		int n, rc;

		if (!p)
			return -ENOMEM;
		ERR_clear_error();
		n = SSL_read(f->ssl, p, (int)room);
		f->tls_bytes += n > 0 ? (uint64_t)n : 0;
		if (f->tls_notices > TLS_NOTICES + f->tls_bytes / TLS_NOTICE_BYTES)
			return tls_failed(f);
		if (n > 0) {
			buf_commit(&f->up, (size_t)n);
			got = 1;
			continue;
		}
		switch (SSL_get_error(f->ssl, n)) {
		case SSL_ERROR_WANT_READ:
			break;
		case SSL_ERROR_ZERO_RETURN:
			f->guest_eof = true;
			return 1;
		default:
			return tls_failed(f);
		}
		rc = tls_flush(f);
		if (rc >= 0)
			rc = front_tls_full(f) ? 0 : tls_read_wire(f);
		if (rc < 0)
			return rc;
		if (rc == 0)
			break;
	}
	return got || f->guest_eof;
}

int front_tls_drain(struct http_front *f)
{
	int made = 0, rc;

	while (buf_len(&f->down) && buf_len(&f->wire) < TLS_AHEAD && !f->tls_dead) {
		size_t len = buf_len(&f->down) < TLS_PIECE ? buf_len(&f->down) : TLS_PIECE;
		int n;

		ERR_clear_error();
		n = SSL_write(f->ssl, buf_data(&f->down), (int)len);
		if (n <= 0) {
			if (SSL_get_error(f->ssl, n) == SSL_ERROR_WANT_READ)
				break; /* within the handshake; what is read makes it go on */
			return tls_failed(f);
		}
		buf_consume(&f->down, (size_t)n);
		f->tls_answer = buf_len(&f->wire) + BIO_ctrl_pending(SSL_get_wbio(f->ssl));
		made = 1;
		rc = tls_flush(f);
		if (rc < 0)
			return rc;
	}
	rc = tls_flush(f);
	return rc < 0 ? rc : made ? 2 : rc;
}

bool front_tls_end(struct http_front *f)
{
	if (f->tls_dead || !SSL_is_init_finished(f->ssl))
		return false;
	ERR_clear_error();
	SSL_shutdown(f->ssl);
	ERR_clear_error();
	return tls_flush(f) > 0;
}
