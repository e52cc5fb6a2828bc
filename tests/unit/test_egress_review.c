/* SPDX-License-Identifier: Apache-2.0 */
/* What is open when a new policy comes, by where its address leads then. */
#define _GNU_SOURCE
#include "unit.h"

#include "egress/egress_impl.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RANGE "\"93.184.216.34/32\""

static enum own_way leads;

enum own_way __wrap_own_way(const struct own_addrs *o, const struct sockaddr *sa);

enum own_way __wrap_own_way(const struct own_addrs *o, const struct sockaddr *sa)
{
	(void)o;
	(void)sa;
	return leads;
}

static void on_cut(void *arg, enum egress_reason why)
{
	*(enum egress_reason *)arg = why;
}

static struct policy *policy_with(const char *range)
{
	char text[1024];
	struct policy *p;
	struct err err = {0};
	int n = snprintf(text, sizeof(text),
			 "{\"sandbox\": \"sb\", \"allow\": [\"a.test\"], \"groups\": {},"
			 " \"ceiling\": null, \"inject\": {}, \"ca\": null, \"allow_ranges\": [%s],"
			 " \"resolve\": {}, \"resolvers\": null, \"upstream_ca_pem\": null,"
			 " \"limits\": {}}",
			 range);

	if (policy_parse(&p, text, (size_t)n, &err) < 0)
		fail_msg("%s", err.msg);
	return p;
}

/* Why a connection that was opened to 93.184.216.34 is cut when that leads so, with those ranges.
 */
static enum egress_reason cut_when(enum own_way way, const char *before, const char *after)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(443)};
	const struct egress_question q = {
		.proto = EGRESS_CONNECT, .host = "a.test", .host_len = 6, .port = 443};
	enum egress_reason why = EGRESS_R_NONE;
	struct question question = {0};
	struct egress_grant *g;
	struct judgement j;
	struct loop loop;
	struct egress e = {.loop = &loop};
	int fds[2];

	assert_int_equal(loop_init(&loop), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(inet_pton(AF_INET, "93.184.216.34", &to.sin_addr), 1);
	e.ctl = fds[0];
	list_init(&e.streams);
	list_init(&e.askings);
	list_init(&e.grants);
	list_init(&e.thirsty);
	e.policy = policy_with(before);
	judge_question(&e, &q, &j);
	assert_int_equal(j.reason, EGRESS_R_NONE);
	assert_int_equal(question_copy(&question, &q), 0);
	g = grant_new(&e, &question, &j, (struct sockaddr *)(void *)&to, sizeof(to), NULL);
	assert_non_null(g);
	egress_on_cut(g, on_cut, &why);
	policy_free(e.policy);
	e.policy = policy_with(after);
	leads = way;
	grant_review_all(&e);
	egress_done(g, why);
	policy_free(e.policy);
	loop_free(&loop);
	close(fds[0]);
	close(fds[1]);
	return why;
}

static void test_where_it_leads(void **state)
{
	(void)state;
	assert_int_equal(cut_when(OWN_ELSEWHERE, "", ""), EGRESS_R_NONE);
	assert_int_equal(cut_when(OWN_NO_WAY, "", ""), EGRESS_R_NONE);
	assert_int_equal(cut_when(OWN_ITSELF, "", ""), EGRESS_R_POLICY_CHANGED);
	assert_int_equal(cut_when(OWN_ITSELF, RANGE, RANGE), EGRESS_R_NONE);
}

/* It was none of this host's when it was opened; want of a descriptor does not make it one. */
static void test_nobody_can_tell(void **state)
{
	(void)state;
	assert_int_equal(cut_when(OWN_UNKNOWN, "", ""), EGRESS_R_NONE);
	assert_int_equal(cut_when(OWN_UNKNOWN, RANGE, RANGE), EGRESS_R_NONE);
	/* Nobody had to be asked then. */
	assert_int_equal(cut_when(OWN_UNKNOWN, RANGE, ""), EGRESS_R_POLICY_CHANGED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_where_it_leads),
		cmocka_unit_test(test_nobody_can_tell),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
