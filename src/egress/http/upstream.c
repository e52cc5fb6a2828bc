/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool is one multi handle with its sockets in our loop and its one timer.
 * It goes when its last transfer is over and another pool took its place. It keeps no connections:
 * those are in a "share" of libcurl's for each connection of the guest. Closing one is freeing its
 * share, which libcurl refuses while a transfer uses that. Invariant: what is in up->idle is used
 * by none, and has its timer armed.
 *
 * Certificates are checked against a store in memory: behind the jail there is
 * no file to open, and parsing all CAs for each connection would be slow.
 */
#include "egress/http/upstream.h"

#include "egress/http/transfer.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pool_sock {
	struct list link; /* overwritten when freed */
	struct loop_src src;
	struct upstream_pool *pool;
};

/* --- certificates ------------------------------------------------------------------------ */

static X509_STORE *trust_new(const char *pem, size_t len)
{
	X509_STORE *store = X509_STORE_new();
	BIO *bio = BIO_new_mem_buf(pem, (int)len);
	unsigned int n = 0;

	while (store && bio) {
		X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);

		if (!cert)
			break;
		n += X509_STORE_add_cert(store, cert) == 1;
		X509_free(cert);
	}
	ERR_clear_error(); /* the end of the text is one, too */
	BIO_free(bio);
	if (store) /* an intermediate that is trusted by name is enough */
		X509_STORE_set_flags(store, X509_V_FLAG_TRUSTED_FIRST | X509_V_FLAG_PARTIAL_CHAIN);
	if (n == 0)
		log_warn("there are no certificates to check destinations' against");
	return store;
}

/* --- the loop ---------------------------------------------------------------------------- */

/* Ended transfers hear of it. */
static void pool_reap(struct upstream_pool *pool)
{
	CURLMsg *m;
	int left;

	while ((m = curl_multi_info_read(pool->multi, &left))) {
		struct http_transfer *x = NULL;

		if (m->msg == CURLMSG_DONE &&
		    curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&x) == CURLE_OK)
			transfer_ended(x, m->data.result);
	}
}

static void pool_act(struct upstream_pool *pool, curl_socket_t fd, int what)
{
	int running;

	pool->users++; /* it may be that the last of its transfers ends here */
	curl_multi_socket_action(pool->multi, fd, what, &running);
	pool_reap(pool);
	upstream_pool_put(pool);
}

static void pool_on_sock(struct loop_src *src, uint32_t events)
{
	struct pool_sock *s = src->arg;
	int what = 0;

	if (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP))
		what |= CURL_CSELECT_IN;
	if (events & EPOLLOUT)
		what |= CURL_CSELECT_OUT;
	if (events & EPOLLERR)
		what |= CURL_CSELECT_ERR;
	pool_act(s->pool, src->fd, what);
}

static void pool_on_timer(struct loop_timer *t)
{
	pool_act(t->arg, CURL_SOCKET_TIMEOUT, 0);
}

static int pool_watch(CURL *easy, curl_socket_t fd, int what, void *arg, void *sock)
{
	struct upstream_pool *pool = arg;
	struct pool_sock *s = sock;
	uint32_t events =
		(what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);

	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		if (!s)
			return 0;
		loop_del(&s->src);
		curl_multi_assign(pool->multi, fd, NULL);
		loop_defer_free(pool->up->loop, s);
		return 0;
	}
	if (s)
		return loop_mod(&s->src, events) < 0 ? -1 : 0;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -1;
	s->pool = pool;
	s->src = (struct loop_src){.fd = -1, .fn = pool_on_sock, .arg = s};
	if (loop_add(pool->up->loop, &s->src, fd, events) < 0) {
		free(s);
		return -1;
	}
	curl_multi_assign(pool->multi, fd, s);
	return 0;
}

static int pool_set_timer(CURLM *multi, long ms, void *arg)
{
	struct upstream_pool *pool = arg;

	(void)multi;
	if (ms < 0)
		loop_timer_cancel(&pool->timer);
	else
		loop_timer_set(pool->up->loop, &pool->timer, (uint64_t)ms * 1000000u);
	return 0;
}

/* --- pools ------------------------------------------------------------------------------- */

static struct upstream_pool *pool_new(struct upstream *up)
{
	struct upstream_pool *pool = calloc(1, sizeof(*pool));
	const char *pem;
	size_t len;

	if (!pool)
		return NULL;
	pool->up = up;
	pool->users = 1;
	pool->serial = egress_policy_serial(up->e);
	pool->timer = (struct loop_timer){.fn = pool_on_timer, .arg = pool};
	pem = egress_ca_pem(up->e, &len);
	pool->trust = trust_new(pem ? pem : "", pem ? len : 0);
	pool->multi = curl_multi_init();
	if (!pool->trust || !pool->multi) {
		upstream_pool_put(pool);
		return NULL;
	}
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETFUNCTION, pool_watch);
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERFUNCTION, pool_set_timer);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING);
	curl_multi_setopt(pool->multi, CURLMOPT_MAXCONNECTS, UPSTREAM_KEPT);
	return pool;
}

void upstream_pool_put(struct upstream_pool *pool)
{
	if (!pool || --pool->users)
		return;
	if (pool->multi)
		curl_multi_cleanup(pool->multi);
	loop_timer_cancel(&pool->timer);
	X509_STORE_free(pool->trust);
	free(pool);
}

struct upstream_pool *upstream_pool_get(struct upstream *up)
{
	if (up->pool && up->pool->serial != egress_policy_serial(up->e)) {
		upstream_pool_put(up->pool);
		up->pool = NULL;
	}
	if (!up->pool)
		up->pool = pool_new(up);
	if (up->pool)
		up->pool->users++;
	return up->pool;
}

/* --- what is kept ------------------------------------------------------------------------ */

static void kept_on_timer(struct loop_timer *t);

void upstream_kept_init(struct upstream *up, struct upstream_kept *k)
{
	*k = (struct upstream_kept){.up = up, .fd = -1};
	k->timer = (struct loop_timer){.fn = kept_on_timer, .arg = k};
	list_init(&k->idle);
	list_add_tail(&up->kept, &k->link);
}

static void kept_wake(struct upstream_kept *k)
{
	if (list_empty(&k->idle))
		return;
	list_del(&k->idle);
	k->up->idle_n--;
	loop_timer_cancel(&k->timer);
}

/* False: a transfer uses it. */
static bool kept_close(struct upstream_kept *k)
{
	if (k->share && curl_share_cleanup(k->share) != CURLSHE_OK)
		return false;
	kept_wake(k);
	k->share = NULL;
	k->fd = -1;
	return true;
}

static void kept_on_timer(struct loop_timer *t)
{
	kept_close(t->arg);
}

/* libcurl looks as well, but would keep what leads elsewhere beside the new one. */
static bool kept_leads_to(const struct upstream_kept *k, const struct egress_verdict *v, bool tls)
{
	return k->tls == tls && strcmp(k->host, v->host) == 0 && k->addr_len == v->addr_len &&
	       memcmp(&k->addr, &v->addr, v->addr_len) == 0;
}

/*
 * libcurl looks as well, but takes the first bytes of an answer that nobody waits for as a sign of
 * life when there is TLS.
 */
static bool kept_is_quiet(const struct upstream_kept *k)
{
	struct pollfd p = {.fd = k->fd, .events = POLLIN};

	return k->fd >= 0 && poll(&p, 1, 0) == 0;
}

static bool kept_is_stale(const struct upstream_kept *k)
{
	return k->serial != egress_policy_serial(k->up->e) ||
	       io_now_ns() >= k->born_ns + egress_total_ns(k->up->e);
}

CURLSH *upstream_kept_use(struct upstream_kept *k, const struct egress_verdict *v, bool tls,
			  bool fresh)
{
	bool good = !fresh && !kept_is_stale(k) && kept_leads_to(k, v, tls) && kept_is_quiet(k);

	if (!good && !kept_close(k))
		return NULL;
	kept_wake(k);
	k->fd = -1;
	upstream_spare(k->up, egress_spare_connections(k->up->e));
	if (k->share)
		return k->share;
	k->serial = egress_policy_serial(k->up->e);
	k->tls = tls;
	snprintf(k->host, sizeof(k->host), "%s", v->host);
	k->addr = v->addr;
	k->addr_len = v->addr_len;
	k->share = curl_share_init();
	if (k->share &&
	    curl_share_setopt(k->share, CURLSHOPT_SHARE, CURL_LOCK_DATA_CONNECT) != CURLSHE_OK)
		kept_close(k);
	return k->share;
}

void upstream_kept_dialled(struct upstream_kept *k)
{
	k->born_ns = io_now_ns();
}

void upstream_kept_learn(struct upstream_kept *k, int fd)
{
	k->fd = fd;
	if (fd < 0 || kept_is_stale(k))
		kept_close(k);
}

void upstream_kept_rest(struct upstream_kept *k, bool well)
{
	uint64_t now = io_now_ns(), idle = egress_idle_ns(k->up->e);
	uint64_t end = k->born_ns + egress_total_ns(k->up->e);

	if (!list_empty(&k->idle))
		return; /* the transfer never began */
	if (!well || k->fd < 0 || kept_is_stale(k) || end <= now) {
		kept_close(k);
		return;
	}
	list_add_tail(&k->up->idle, &k->idle);
	k->up->idle_n++;
	loop_timer_set(k->up->loop, &k->timer, idle < end - now ? idle : end - now);
}

void upstream_kept_free(struct upstream_kept *k)
{
	if (!kept_close(k))
		log_error("a connection to a destination is in use beyond its request");
	kept_wake(k);
	list_del(&k->link);
}

void upstream_spare(struct upstream *up, size_t most)
{
	while (up->idle_n > most &&
	       kept_close(list_entry(up->idle.next, struct upstream_kept, idle)))
		;
}

void upstream_forget(struct upstream *up)
{
	/* One with a transfer is closed at the end of that (upstream_kept_learn()). */
	list_for_each (k, &up->kept, struct upstream_kept, link)
		kept_close(k);
}

int upstream_init(struct upstream *up, struct loop *loop, struct egress *e, struct err *err)
{
	*up = (struct upstream){.loop = loop, .e = e};
	list_init(&up->kept);
	list_init(&up->idle);
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return err_text(err, ENOMEM, "libcurl cannot be initialised");
	return 0;
}

void upstream_free(struct upstream *up)
{
	upstream_pool_put(up->pool);
	up->pool = NULL;
	curl_global_cleanup();
}
