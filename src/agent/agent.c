/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent put together. Serves both podflare-agent (after boot.c has made a system of the
 * machine) and the test harness, which runs the same objects as an ordinary process.
 */
#include "agent/agent.h"
#include "agent/contexts.h"

#include <errno.h>
#include <signal.h>
#include <sys/stat.h>

/*
 * A timer is always awaited. When the last one of a processor is cancelled Linux switches its timer
 * off, and on again with the next: it does so each time an idle guest wakes up, and each of the
 * four writes beside the one that is needed is an exit of the VM. Not much longer, as KVM counts
 * wrongly beyond an hour.
 */
#define AGENT_TIMER_NS (600 * 1000000000ull)

static void agent_on_timer(struct loop_timer *t)
{
	struct agent *a = t->arg;

	loop_timer_set(&a->loop, t, AGENT_TIMER_NS);
}

int agent_init(struct agent *a, const struct agent_config *cfg, struct err *err)
{
	int rc;

	signal(SIGPIPE, SIG_IGN);
	umask(022);
	list_init(&a->alarms);
	list_init(&a->logs.list);
	list_init(&a->kept.list);
	list_init(&a->leftovers);
	a->nleftovers = 0;
	a->user = *cfg->user;
	a->root = (struct user){.name = "root", .home = "/root", .ngroups = 1};
	a->root.change = a->user.change;
	a->layers = cfg->layers;
	a->node = cfg->node;
	a->log_dir = cfg->log_dir;
	rc = loop_init(&a->loop);
	if (rc < 0)
		return err_set(err, -rc, "cannot make the event loop");
	rc = reaper_init(&a->reaper, &a->loop, err);
	if (rc < 0)
		return rc;
	rc = cgroups_init(&a->cgroups, &a->loop, cfg->cgroup_path, err);
	if (rc < 0)
		return rc;
	egress_init(&a->egress, a, &cfg->egress, cfg->etc_dir, cfg->run_dir);
	contexts_init(a, cfg->repl_script);
	freezer_init(&a->freezer, a);
	rc = sweep_set_top(&a->freezer.sweep, cfg->cgroup_top, err);
	if (rc < 0)
		return rc;
	renewal_init(&a->renewal, a, cfg->etc_dir, cfg->run_dir);
	return server_init(&a->server, a, cfg->listen_fd, err);
}

int agent_run(struct agent *a)
{
	repl_start(&a->repl);
	a->timer = (struct loop_timer){.fn = agent_on_timer, .arg = a};
	agent_on_timer(&a->timer);
	return loop_run(&a->loop);
}
