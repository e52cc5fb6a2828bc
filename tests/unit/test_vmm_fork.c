/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose child a template is asked for next (src/daemon/vmm_fork.c). What that calls of the other
 * files is played: a VMM that takes every message, and children without disks, groups and
 * processes.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/layerfile.h"
#include "unit.h"

#include <errno.h>
#include <string.h>

#define KIDS_MAX 32

static unsigned int guests; /* children that are not in groups of their own yet */
static char asked[KIDS_MAX + 1];

unsigned int vm_group_guests(const struct vm_group *v)
{
	(void)v;
	return guests;
}

int vmm_group_make(struct vmm *v, const struct vm_size *size, struct vmm *parent, struct err *err)
{
	(void)v, (void)size, (void)parent, (void)err;
	return 0;
}

int layerfile_make(const char *dir, int *rw, int *ro)
{
	(void)dir;
	*rw = *ro = -1;
	return 0;
}

int vmm_gate(struct vmm *v, int *theirs)
{
	(void)v;
	*theirs = -1;
	return 0;
}

int vmm_send(struct vmm *v, const struct ctl_msg *m, const int *fds)
{
	(void)m, (void)fds;
	v->sent++;
	return 0;
}

bool vmm_has_read(const struct vmm *v, uint64_t sent)
{
	(void)v, (void)sent;
	return true;
}

void strays_asked(struct vmm *v)
{
	(void)v;
}

void vmm_end(struct vmm *v, const char *reason)
{
	(void)v, (void)reason;
}

void vmm_no_process(struct vmm *v)
{
	(void)v;
}

void vmm_clean_line(char *s)
{
	(void)s;
}

void vmm_breach(struct vmm *v, const char *text)
{
	(void)v;
	fail_msg("%s", text);
}

/* Nothing here comes to these. */
void vmm_init(struct vmm *v, struct vmm_host *h)
{
	(void)v, (void)h;
	fail();
}

int vmm_make_ends(struct vmm *v, int *ctl, int *peer, struct err *err)
{
	(void)v, (void)ctl, (void)peer, (void)err;
	return -ENOSYS;
}

void vmm_claim_listen(struct vmm *v)
{
	(void)v;
	fail();
}

int vmm_prove_child(struct vmm_host *h, pid_t by, uint64_t pid)
{
	(void)h, (void)by, (void)pid;
	return -ESRCH;
}

void vmm_claim(struct vmm *v, pid_t by, pid_t pid, int pidfd)
{
	(void)v, (void)by, (void)pid, (void)pidfd;
	fail();
}

void vmm_poll(struct vmm *v)
{
	(void)v;
	fail();
}

static void on_asked(struct vmm *v)
{
	asked[strlen(asked)] = v->owner[0];
}

static const struct vmm_ops ops = {.asked = on_asked};

/*
 * The children of these owners, a letter each, arrive in this order at a template that can be asked
 * for `room` more; each answer makes room for one. Fills asked[].
 */
static void ask_for(const char *owners, unsigned int room)
{
	static const char letters[] = "A\0B\0C\0D";
	static struct vmm kids[KIDS_MAX];
	struct vmm_host h = {.several_owners = true};
	struct vmm template = {.host = &h, .paused = true, .group = (void *)&h};
	struct loop loop;

	assert_int_equal(loop_init(&loop), 0);
	h.loop = &loop;
	list_init(&template.forks);
	template.deaf = (struct loop_timer){.fn = vmm_on_deaf, .arg = &template};
	guests = LIMIT_FORKS_IN_FLIGHT - room;
	memset(asked, 0, sizeof(asked));
	for (unsigned int i = 0; owners[i]; i++) {
		kids[i] = (struct vmm){.ops = &ops, .host = &h, .parent = &template};
		kids[i].owner = &letters[(owners[i] - 'A') * 2];
		kids[i].peer_fd = kids[i].console_fd = -1;
		list_add_tail(&template.forks, &kids[i].fork_link);
	}
	vmm_pump_forks(&template);
	while (template.in_flight) {
		struct ctl_msg m = {.id = template.asks[0].id, .code = EAGAIN};

		vmm_on_forked(&template, &m);
	}
	assert_true(list_empty(&template.forks));
	loop_timer_cancel(&template.deaf);
	loop_free(&loop);
}

static void test_owners_in_turn(void **state)
{
	(void)state;
	ask_for("AAAAAAAABBBB", 4);
	assert_string_equal(asked, "ABABABABAAAA");
}

/* Nothing is in flight whenever there is room: who had his turn last is known all the same. */
static void test_in_turn_where_groups_are_slow(void **state)
{
	(void)state;
	ask_for("AAAAAAAABBBB", 1);
	assert_string_equal(asked, "ABABABABAAAA");
	ask_for("AAAAAABBBBCD", 1);
	assert_string_equal(asked, "ABCDABABABAA");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_owners_in_turn),
		cmocka_unit_test(test_in_turn_where_groups_are_slow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
