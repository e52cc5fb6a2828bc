/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcurl calls back only from upstream.c's turns and from curl_easy_pause();
 * nothing in these callbacks calls libcurl or frees a transfer.
 *
 * What is sent is counted where libcurl tells of it: no other callback sees heads, nor the frame of
 * an answer's body.
 *
 * libcurl connects by itself, but only a socket of egress_dial_socket() to the address of the
 * verdict.
 */
#define _GNU_SOURCE
#include "egress/http/transfer.h"

#include "egress/http/order.h"
#include "egress/http/transfer_impl.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the end ----------------------------------------------------------------------------- */

static void transfer_detach(struct http_transfer *x)
{
	if (!x->multi)
		return;
	x->multi = false;
	loop_timer_cancel(&x->choke);
	curl_multi_remove_handle(x->pool->multi, x->easy);
	/* What it leaves can be closed from now on. */
	curl_easy_setopt(x->easy, CURLOPT_SHARE, NULL);
}

/* The first failure counts. */
static void transfer_note(struct http_transfer *x, enum egress_reason why, const char *detail)
{
	if (x->why != EGRESS_R_NONE)
		return;
	x->why = why;
	snprintf(x->detail, sizeof(x->detail), "%s", detail);
}

/* The destination has nothing to do with it any more: the grant ends, once. */
static void transfer_settle(struct http_transfer *x)
{
	struct egress_grant *g = take_ptr(x->v.grant);

	if (!g)
		return;
	upstream_kept_rest(x->kept, x->why == EGRESS_R_NONE);
	egress_done(g, x->why);
}

/*
 * What failed is settled at once: the guest may take its time with its end of it. Behind the call:
 * the record of a denial comes ahead of that of the end.
 */
static void transfer_over(struct http_transfer *x)
{
	x->over = x->up_over = true;
	x->look(x->arg);
	if (x->why != EGRESS_R_NONE)
		transfer_settle(x);
}

static void transfer_fail(struct http_transfer *x, enum egress_reason why, const char *detail)
{
	transfer_note(x, why, detail);
	transfer_detach(x);
	transfer_over(x);
}

static void transfer_on_cut(void *arg, enum egress_reason why)
{
	static const char *const texts[EGRESS_REASONS] = {
		[EGRESS_R_BYTES] = "the sandbox has sent and received as many bytes as it may",
		[EGRESS_R_IDLE] = "nothing was sent or received for too long",
		[EGRESS_R_TOTAL] = "the request took longer than a connection may",
		[EGRESS_R_POLICY_CHANGED] = "a new policy does not allow it",
	};

	transfer_fail(arg, why, texts[why] ? texts[why] : "it was cut");
}

/* libcurl's results that are about TLS rather than the way to the destination. */
static bool result_is_tls(CURLcode result)
{
	switch (result) {
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CIPHER:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_INVALIDCERTSTATUS:
		return true;
	default:
		return false;
	}
}

static void transfer_explain(struct http_transfer *x, CURLcode result)
{
	const char *text = x->error[0] ? x->error : curl_easy_strerror(result);
	char detail[sizeof(x->detail)];
	long num = 0;

	curl_easy_getinfo(x->easy, CURLINFO_OS_ERRNO, &num);
	x->late = x->late || result == CURLE_OPERATION_TIMEDOUT || num == ETIMEDOUT;
	if (result_is_tls(result) && !num) {
		snprintf(detail, sizeof(detail), "TLS with the destination failed: %.200s", text);
		transfer_note(x, EGRESS_R_UPSTREAM_TLS, detail);
		return;
	}
	if (result == CURLE_OPERATION_TIMEDOUT)
		text = "it takes too long to connect";
	else if (num)
		text = strerror((int)num);
	snprintf(detail, sizeof(detail), "the destination does not answer: %.200s", text);
	transfer_note(x, EGRESS_R_UPSTREAM, detail);
}

/*
 * What libcurl has kept, or CURL_SOCKET_BAD. Of a record of TLS libcurl reads no more than belongs
 * to the answer; the rest lies in OpenSSL, where no poll() sees it, for whoever is next.
 */
static curl_socket_t transfer_kept(const struct http_transfer *x)
{
	curl_socket_t fd = CURL_SOCKET_BAD;

	if (curl_easy_getinfo(x->easy, CURLINFO_ACTIVESOCKET, &fd) != CURLE_OK ||
	    fd == CURL_SOCKET_BAD)
		return CURL_SOCKET_BAD;
	if (x->tls && (!x->ssl || SSL_has_pending(x->ssl)))
		return CURL_SOCKET_BAD;
	return fd;
}

void transfer_ended(struct http_transfer *x, CURLcode result)
{
	curl_socket_t fd = result == CURLE_OK ? transfer_kept(x) : CURL_SOCKET_BAD;

	if (result != CURLE_OK)
		transfer_explain(x, result);
	else if (!x->head)
		transfer_note(x, EGRESS_R_UPSTREAM, "the destination gave no answer");
	transfer_detach(x);
	upstream_kept_learn(x->kept, fd);
	transfer_over(x);
}

/* --- libcurl's callbacks ----------------------------------------------------------------- */

static const char other_injection[] = "the policy injects other headers by now";

static curl_socket_t transfer_dial(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
	struct http_transfer *x = arg;
	int fd = purpose == CURLSOCKTYPE_IPCXN ? egress_dial_socket(x->e, &x->v, &addr->addr)
					       : -EACCES;
	char detail[sizeof(x->detail)];

	/* One that was sent already is sent anew where a kept connection was closed. */
	if (fd >= 0 && !egress_injection_holds(x->v.grant)) {
		transfer_note(x, EGRESS_R_POLICY_CHANGED, other_injection);
		close(fd);
		return CURL_SOCKET_BAD;
	}
	if (fd >= 0) {
		upstream_kept_dialled(x->kept);
		x->head_end = 0;
		egress_injected(x->v.grant, false);
		return fd;
	}
	snprintf(detail, sizeof(detail), "the destination cannot be reached: %.200s",
		 strerror(-fd));
	transfer_note(x, EGRESS_R_UPSTREAM, detail);
	return CURL_SOCKET_BAD;
}

/* Not within a transfer's life only: libcurl closes what it kept much later. */
static int transfer_close(void *arg, curl_socket_t fd)
{
	(void)arg;
	return close(fd);
}

static void transfer_on_room(void *arg);

static void transfer_count(struct http_transfer *x, size_t up, size_t down)
{
	if (egress_count(x->v.grant, up, down) > 0 || x->no_room)
		return;
	x->no_room = true;
	egress_on_room(x->v.grant, transfer_on_room, x);
}

/*
 * A frame without an end (RFC 9112, 7.1.1) never comes to transfer_write(), which would ask to
 * wait.
 */
static void transfer_on_choke(struct loop_timer *t)
{
	struct http_transfer *x = t->arg;

	if (!x->multi || !x->no_room || x->down_paused)
		return;
	x->down_paused = true;
	curl_easy_pause(x->easy, CURLPAUSE_RECV | (x->up_paused ? CURLPAUSE_SEND : 0));
}

static void transfer_choke_soon(struct http_transfer *x)
{
	if (x->no_room && !x->down_paused)
		loop_timer_set(x->pool->up->loop, &x->choke, 0);
}

/* Looks for the end of the head, which has one empty line. */
static void transfer_sent(struct http_transfer *x, const char *p, size_t n)
{
	static const char end[] = "\r\n\r\n";

	for (size_t i = 0; i < n && x->head_end < 4; i++)
		x->head_end = p[i] == end[x->head_end] ? x->head_end + 1 : p[i] == '\r';
	if (x->head_end == 4)
		egress_injected(x->v.grant, true);
}

/*
 * All that is sent passes here, once more where a request is repeated; and all that comes behind an
 * answer's head, with what frames it.
 *
 * An answer that is longer than its end says: what follows is no answer to anything, and libcurl
 * would drop it and go on with the next request. These words are all that it tells of it.
 */
static int transfer_listen(CURL *easy, curl_infotype type, char *text, size_t n, void *arg)
{
	static const char *const more[] = {"Excess found", "Leftovers after chunking"};

	/* Of a head that goes out in pieces libcurl takes all but the first for data. */
	if (type == CURLINFO_HEADER_OUT || type == CURLINFO_DATA_OUT) {
		transfer_sent(arg, text, n);
		transfer_count(arg, n, 0);
	}
	if (type == CURLINFO_DATA_IN) {
		transfer_count(arg, 0, n);
		transfer_choke_soon(arg);
	}
	for (size_t i = 0; type == CURLINFO_TEXT && i < ARRAY_SIZE(more); i++)
		if (n >= strlen(more[i]) && memcmp(text, more[i], strlen(more[i])) == 0)
			curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
	return 0;
}

/* libcurl has the default store ready, empty; ours takes its place. */
static CURLcode transfer_trust(CURL *easy, void *ctx, void *arg)
{
	struct http_transfer *x = arg;

	(void)easy;
	if (!X509_STORE_up_ref(x->pool->trust))
		return CURLE_OUT_OF_MEMORY;
	SSL_CTX_set_cert_store(ctx, x->pool->trust);
	return CURLE_OK;
}

static size_t transfer_read(char *out, size_t size, size_t n, void *arg)
{
	struct http_transfer *x = arg;

	n *= size;
	if (n > buf_len(&x->up))
		n = buf_len(&x->up);
	if (n == 0 && x->up_end)
		return 0;
	if (n == 0 || x->no_room) {
		x->up_paused = true;
		return CURL_READFUNC_PAUSE;
	}
	memcpy(out, buf_data(&x->up), n);
	buf_consume(&x->up, n);
	x->look(x->arg);
	return n;
}

static size_t transfer_write(char *data, size_t size, size_t n, void *arg)
{
	struct http_transfer *x = arg;

	n *= size;
	if (x->no_room || n > buf_room(&x->down)) {
		x->down_paused = true;
		return CURL_WRITEFUNC_PAUSE;
	}
	if (buf_append(&x->down, data, n) < 0) {
		transfer_note(x, EGRESS_R_UPSTREAM, "the proxy is out of memory");
		return 0;
	}
	x->look(x->arg);
	return n;
}

static size_t transfer_header(char *line, size_t size, size_t n, void *arg)
{
	struct http_transfer *x = arg;

	n *= size;
	if (x->head)
		return n; /* a trailer, which was counted with the body's frame */
	transfer_count(x, 0, n);
	x->reply_bytes += n;
	if (x->reply_bytes <= TRANSFER_HEAD_MAX && transfer_reply_line(x, line, n))
		return n;
	transfer_note(x, EGRESS_R_UPSTREAM,
		      "the head of the destination's answer is not one that can be passed on");
	return 0;
}

/* --- from outside ------------------------------------------------------------------------ */

/* Callbacks that asked to wait can go on. */
static void transfer_resume(struct http_transfer *x)
{
	bool up = x->up_paused && !x->no_room && (buf_len(&x->up) || x->up_end);
	bool down = x->down_paused && !x->no_room &&
		    buf_room(&x->down) >= CURL_MAX_WRITE_SIZE + TRANSFER_BUF / 4;

	if (!x->multi || (!up && !down))
		return;
	x->up_paused = x->up_paused && !up;
	x->down_paused = x->down_paused && !down;
	curl_easy_pause(x->easy, (x->up_paused ? CURLPAUSE_SEND : 0) |
					 (x->down_paused ? CURLPAUSE_RECV : 0));
}

static int transfer_begin(struct http_transfer *x)
{
	CURLSH *share;

	x->begun = true;
	x->pool = upstream_pool_get(x->kept->up);
	share = x->pool ? upstream_kept_use(x->kept, &x->v, x->tls, x->fresh) : NULL;
	if (!share || curl_easy_setopt(x->easy, CURLOPT_SHARE, share) != CURLE_OK)
		return -ENOMEM;
	x->multi = curl_multi_add_handle(x->pool->multi, x->easy) == CURLM_OK;
	return x->multi ? 0 : -ENOMEM;
}

static void transfer_on_room(void *arg)
{
	struct http_transfer *x = arg;

	x->no_room = false;
	if (x->begun || x->over)
		transfer_resume(x);
	else if (transfer_begin(x) < 0)
		transfer_fail(x, EGRESS_R_UPSTREAM, "the proxy is out of memory");
}

size_t transfer_feed(struct http_transfer *x, const void *data, size_t len)
{
	size_t room = buf_room(&x->up);

	if (x->up_over)
		return len; /* nobody wants it */
	if (len > room)
		len = room;
	if (len == 0)
		return 0;
	if (buf_append(&x->up, data, len) < 0) {
		transfer_fail(x, EGRESS_R_UPSTREAM, "the proxy is out of memory");
		return len;
	}
	transfer_resume(x);
	return len;
}

void transfer_drop(struct http_transfer *x)
{
	if (x->v.grant)
		egress_alive(x->v.grant);
}

void transfer_feed_end(struct http_transfer *x)
{
	x->up_end = true;
	transfer_resume(x);
}

ssize_t transfer_pull(struct http_transfer *x, char *out, size_t max)
{
	size_t n = buf_len(&x->down) < max ? buf_len(&x->down) : max;

	if (n) {
		memcpy(out, buf_data(&x->down), n);
		buf_consume(&x->down, n);
		transfer_resume(x);
		return (ssize_t)n;
	}
	if (!x->over)
		return TRANSFER_WAIT;
	return x->why == EGRESS_R_NONE ? TRANSFER_END : TRANSFER_CUT;
}

static bool transfer_set_callbacks(struct http_transfer *x)
{
	CURL *c = x->easy;
	CURLcode rc = curl_easy_setopt(c, CURLOPT_OPENSOCKETFUNCTION, transfer_dial);

	rc |= curl_easy_setopt(c, CURLOPT_OPENSOCKETDATA, x);
	rc |= curl_easy_setopt(c, CURLOPT_CLOSESOCKETFUNCTION, transfer_close);
	rc |= curl_easy_setopt(c, CURLOPT_SSL_CTX_FUNCTION, transfer_trust);
	rc |= curl_easy_setopt(c, CURLOPT_SSL_CTX_DATA, x);
	rc |= curl_easy_setopt(c, CURLOPT_READFUNCTION, transfer_read);
	rc |= curl_easy_setopt(c, CURLOPT_READDATA, x);
	rc |= curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, transfer_write);
	rc |= curl_easy_setopt(c, CURLOPT_WRITEDATA, x);
	rc |= curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, transfer_header);
	rc |= curl_easy_setopt(c, CURLOPT_HEADERDATA, x);
	rc |= curl_easy_setopt(c, CURLOPT_ERRORBUFFER, x->error);
	rc |= curl_easy_setopt(c, CURLOPT_DEBUGFUNCTION, transfer_listen);
	rc |= curl_easy_setopt(c, CURLOPT_DEBUGDATA, x);
	rc |= curl_easy_setopt(c, CURLOPT_VERBOSE, 1L);
	rc |= curl_easy_setopt(c, CURLOPT_PRIVATE, x);
	return rc == CURLE_OK;
}

int transfer_start(struct http_transfer **out, struct upstream *up, const struct transfer_order *o)
{
	struct http_transfer *x = calloc(1, sizeof(*x));

	*out = x;
	if (!x) {
		egress_done(o->verdict->grant, EGRESS_R_NONE);
		return -ENOMEM;
	}
	x->e = up->e;
	x->v = *o->verdict;
	x->v.inject = NULL;
	x->kept = o->kept;
	x->tls = o->tls;
	x->fresh = !order_is_repeatable(o);
	x->look = o->look;
	x->arg = o->arg;
	x->size = -1;
	x->choke = (struct loop_timer){.fn = transfer_on_choke, .arg = x};
	buf_init(&x->up, TRANSFER_BUF);
	buf_init(&x->down, TRANSFER_BUF);
	x->up_end = o->framing == HTTP_NO_BODY;
	x->easy = curl_easy_init();
	if (!x->easy || !transfer_set_callbacks(x) ||
	    order_apply(x->easy, o, &x->headers, &x->connect_to) < 0)
		return -ENOMEM;
	egress_on_cut(x->v.grant, transfer_on_cut, x);
	transfer_count(x, 0, 0);
	return x->no_room ? 0 : transfer_begin(x);
}

void transfer_free(struct http_transfer *x)
{
	if (!x)
		return;
	transfer_detach(x);
	if (x->easy)
		curl_easy_cleanup(x->easy);
	transfer_settle(x);
	order_free(x->headers);
	order_free(x->connect_to);
	upstream_pool_put(x->pool);
	http_fields_free(&x->reply);
	buf_free(&x->up);
	buf_free(&x->down);
	free(x);
}
