/* SPDX-License-Identifier: Apache-2.0 */
/* URLs and Host: what becomes which destination, and which are refused; header fields on their way.
 */
#include "unit.h"

#include "egress/http/fields.h"
#include "egress/http/target.h"

#include <errno.h>
#include <string.h>

static const struct http_origin inside = {"https", "api.example.com", 443};
static const struct http_origin odd_port = {"https", "api.example.com", 8443};

static void goes(const char *uri, const char *host, const struct http_origin *origin,
		 enum egress_proto proto, const char *to, uint16_t port, const char *path)
{
	struct http_target t;
	struct http_refusal why = {0};

	if (http_target_parse(&t, "GET", uri, host, origin, &why) < 0)
		fail_msg("%s: %s", uri, why.detail);
	assert_int_equal(t.proto, proto);
	assert_string_equal(t.host, to);
	assert_int_equal(t.port, port);
	assert_string_equal(t.path, path);
	assert_int_equal(t.path_len, strcspn(path, "?"));
	assert_int_equal(t.tls, proto != EGRESS_HTTP);
}

static void refused_method(const char *method, const char *uri, const char *host,
			   const struct http_origin *origin, enum egress_reason reason)
{
	struct http_target t;
	struct http_refusal why = {0};

	if (http_target_parse(&t, method, uri, host, origin, &why) != -EBADMSG)
		fail_msg("%s: not refused", uri);
	if (why.reason != reason)
		fail_msg("%s: %d, %s", uri, why.reason, why.detail);
	assert_true(why.detail && why.detail[0]);
}

static void refused(const char *uri, const char *host, const struct http_origin *origin,
		    enum egress_reason reason)
{
	refused_method("GET", uri, host, origin, reason);
}

static void test_plain(void **state)
{
	(void)state;
	goes("http://example.com/", "example.com", NULL, EGRESS_HTTP, "example.com", 80, "/");
	goes("http://example.com", "example.com", NULL, EGRESS_HTTP, "example.com", 80, "/");
	goes("HTTP://Example.com/a?b", "exAmple.COM", NULL, EGRESS_HTTP, "Example.com", 80, "/a?b");
	goes("http://example.com:80/", "example.com", NULL, EGRESS_HTTP, "example.com", 80, "/");
	goes("http://example.com/", "example.com:80", NULL, EGRESS_HTTP, "example.com", 80, "/");
	goes("http://h.org:8080//a/../b", "h.org:8080", NULL, EGRESS_HTTP, "h.org", 8080,
	     "//a/../b");
	goes("http://h.org/x", NULL, NULL, EGRESS_HTTP, "h.org", 80, "/x");
	goes("http://h.org/@x:1/", "h.org", NULL, EGRESS_HTTP, "h.org", 80, "/@x:1/");
	/* Whether these are names is for the rules. */
	goes("http://h.org./", "h.org.", NULL, EGRESS_HTTP, "h.org.", 80, "/");
	goes("http://0x7f.1/", "0x7f.1", NULL, EGRESS_HTTP, "0x7f.1", 80, "/");
}

static void test_gateway(void **state)
{
	(void)state;
	goes("http://api.example.com.egress/v1", "api.example.com.egress", NULL, EGRESS_GATEWAY,
	     "api.example.com", 443, "/v1");
	goes("http://api.example.com.EGRESS:8443/", "api.example.com.egress:8443", NULL,
	     EGRESS_GATEWAY, "api.example.com", 8443, "/");
	goes("http://api.example.com.egress:80/", "api.example.com.egress", NULL, EGRESS_GATEWAY,
	     "api.example.com", 443, "/");
	goes("http://a.egress.egress/", "a.egress.egress", NULL, EGRESS_GATEWAY, "a.egress", 443,
	     "/");
	/* Not the gateway's: the rules know no such names. */
	goes("http://egress/", "egress", NULL, EGRESS_HTTP, "egress", 80, "/");
	goes("http://.egress/", ".egress", NULL, EGRESS_HTTP, ".egress", 80, "/");
	goes("http://api.example.com.egress./", "api.example.com.egress.", NULL, EGRESS_HTTP,
	     "api.example.com.egress.", 80, "/");
	goes("http://xegress/", "xegress", NULL, EGRESS_HTTP, "xegress", 80, "/");
}

static void test_inside(void **state)
{
	(void)state;
	goes("/v1?x", "api.example.com", &inside, EGRESS_INTERCEPT, "api.example.com", 443,
	     "/v1?x");
	goes("/", "API.example.com:443", &inside, EGRESS_INTERCEPT, "api.example.com", 443, "/");
	goes("//evil.com/", "api.example.com", &inside, EGRESS_INTERCEPT, "api.example.com", 443,
	     "//evil.com/");
	goes("/", "api.example.com:8443", &odd_port, EGRESS_INTERCEPT, "api.example.com", 8443,
	     "/");
	refused("/", "api.example.com", &odd_port, EGRESS_R_HOST_MISMATCH);
	refused("/", "other.example.com", &inside, EGRESS_R_HOST_MISMATCH);
	refused("/", "api.example.com:80", &inside, EGRESS_R_HOST_MISMATCH);
	refused("/", NULL, &inside, EGRESS_R_HOST_MISMATCH);
	refused("https://api.example.com/", "api.example.com", &inside, EGRESS_R_BAD_REQUEST);
	refused("http://other.example.com/", "api.example.com", &inside, EGRESS_R_BAD_REQUEST);
	refused("*", "api.example.com", &inside, EGRESS_R_BAD_REQUEST);
}

static void test_forms_refused(void **state)
{
	(void)state;
	refused("https://example.com/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("*", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("example.com:443", "example.com:443", NULL, EGRESS_R_BAD_REQUEST);
	refused("ftp://example.com/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http:/example.com/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com?x", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused_method("CONNECT", "http://example.com/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused_method("connect", "example.com:443", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused_method("TRACE", "http://example.com/", "example.com", NULL, EGRESS_R_METHOD);
	refused_method("Track", "/", "api.example.com", &inside, EGRESS_R_METHOD);
}

static void test_authorities_refused(void **state)
{
	(void)state;
	refused("http://user@example.com/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com:x@evil.com/", "evil.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://[::1]/", "[::1]", NULL, EGRESS_R_BAD_HOST);
	refused("http:///", "", NULL, EGRESS_R_BAD_HOST);
	refused("http://:80/", ":80", NULL, EGRESS_R_BAD_HOST);
	refused("http://example.com%2eevil.com/", "example.com%2eevil.com", NULL,
		EGRESS_R_BAD_HOST);
	refused("http://example.com\\@evil.com/", "evil.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com\\.evil.com/", "evil.com", NULL, EGRESS_R_BAD_HOST);
	refused("http://example.com,evil.com/", "evil.com", NULL, EGRESS_R_BAD_HOST);
	refused("http://example.com:/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com:0/", "example.com:0", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com:080/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com:65536/", "example.com:65536", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com:1:2/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
	refused("http://example.com:+1/", "example.com", NULL, EGRESS_R_BAD_REQUEST);
}

static void test_hosts_refused(void **state)
{
	(void)state;
	refused("http://example.com/", "evil.com", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com/", "example.com.", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com/", "example.com:8080", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com:8080/", "example.com", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com/", "", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com/", "example.com, evil.com", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com/", "example.com evil.com", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://example.com/", "a@example.com", NULL, EGRESS_R_HOST_MISMATCH);
	refused("http://api.example.com.egress/", "api.example.com", NULL, EGRESS_R_HOST_MISMATCH);
}

static void test_long_names(void **state)
{
	char uri[600], host[400];
	struct http_target t;
	struct http_refusal why;

	(void)state;
	memset(host, 'a', sizeof(host));
	host[HTTP_HOST_MAX] = '\0';
	strcat(strcpy(uri, "http://"), host);
	assert_int_equal(http_target_parse(&t, "GET", uri, host, NULL, &why), 0);
	assert_int_equal(strlen(t.host), HTTP_HOST_MAX);
	strcat(uri, "a");
	assert_int_equal(http_target_parse(&t, "GET", uri, NULL, NULL, &why), -EBADMSG);
	assert_int_equal(why.reason, EGRESS_R_BAD_HOST);
}

/* --- fields ---------------------------------------------------------------------------------- */

static void add(struct http_fields *f, const char *name, const char *value)
{
	assert_int_equal(http_fields_add(f, name, strlen(name), value, strlen(value)), 0);
}

static void test_fields_one_hop(void **state)
{
	struct http_fields f = {0};

	(void)state;
	add(&f, "Connection", "keep-alive, X-Mine");
	add(&f, "Host", "h");
	add(&f, "X-Mine", "1");
	add(&f, "Proxy-Authorization", "1");
	add(&f, "proxy-connection", "1");
	add(&f, "Keep-Alive", "1");
	add(&f, "TE", "trailers");
	add(&f, "Trailer", "X");
	add(&f, "Transfer-Encoding", "chunked");
	add(&f, "Content-Length", "5");
	add(&f, "Expect", "100-continue");
	add(&f, "Accept", "a");
	add(&f, "Cookie", "1");
	add(&f, "cookie", "2");
	assert_false(http_fields_upgrade(&f));
	http_fields_end_hop(&f, true);
	assert_int_equal(f.n, 3);
	assert_string_equal(f.v[0].name, "Accept");
	assert_string_equal(f.v[1].value, "1");
	assert_string_equal(f.v[2].value, "2");
	http_fields_free(&f);
	add(&f, "Content-Length", "5");
	add(&f, "Connection", "close");
	http_fields_end_hop(&f, false);
	assert_int_equal(f.n, 1);
	http_fields_free(&f);
}

static void test_fields_upgrade(void **state)
{
	struct http_fields f = {0};

	(void)state;
	add(&f, "Upgrade", "websocket");
	assert_true(http_fields_upgrade(&f));
	http_fields_free(&f);
	add(&f, "Connection", "close, UPGRADE");
	assert_true(http_fields_upgrade(&f));
	http_fields_free(&f);
	add(&f, "Connection", "upgrades");
	assert_false(http_fields_upgrade(&f));
	http_fields_free(&f);
}

static void test_fields_bad(void **state)
{
	struct http_fields f = {0};

	(void)state;
	assert_int_equal(http_fields_add(&f, "X", 1, "a\rb", 3), -EINVAL);
	assert_int_equal(http_fields_add(&f, "X", 1, "a\nb", 3), -EINVAL);
	assert_int_equal(http_fields_add(&f, "X", 1, "a\0b", 3), -EINVAL);
	assert_int_equal(http_fields_add(&f, "X Y", 3, "a", 1), -EINVAL);
	assert_int_equal(http_fields_add(&f, "X:", 2, "a", 1), -EINVAL);
	assert_int_equal(http_fields_add(&f, "", 0, "a", 1), -EINVAL);
	assert_int_equal(f.n, 0);
	add(&f, "X", " \ta b\t ");
	assert_string_equal(http_fields_get(&f, "x"), "a b");
	http_fields_free(&f);
}

static void test_fields_inject(void **state)
{
	json_t *inject = json_pack("{s:s, s:s}", "Authorization", "Bearer real", "X-Key", "k");
	struct http_fields f = {0};

	(void)state;
	add(&f, "authorization", "Bearer of the client");
	add(&f, "Accept", "a");
	add(&f, "AUTHORIZATION", "another");
	assert_int_equal(http_fields_inject(&f, inject), 0);
	assert_int_equal(f.n, 3);
	assert_string_equal(http_fields_get(&f, "authorization"), "Bearer real");
	assert_string_equal(http_fields_get(&f, "x-key"), "k");
	http_fields_free(&f);
	json_decref(inject);
	inject = json_pack("{s:i}", "X", 1);
	assert_int_equal(http_fields_inject(&f, inject), -EINVAL);
	http_fields_free(&f);
	json_decref(inject);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_gateway),
		cmocka_unit_test(test_inside),
		cmocka_unit_test(test_forms_refused),
		cmocka_unit_test(test_authorities_refused),
		cmocka_unit_test(test_hosts_refused),
		cmocka_unit_test(test_long_names),
		cmocka_unit_test(test_fields_one_hop),
		cmocka_unit_test(test_fields_upgrade),
		cmocka_unit_test(test_fields_bad),
		cmocka_unit_test(test_fields_inject),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
