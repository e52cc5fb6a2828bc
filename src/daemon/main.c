/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflared: start, run, stop. Everything happens in one thread on one event
 * loop; what is slow (reading images) happens before it runs, or in a thread.
 *
 * Stop (SIGTERM, SIGINT, SIGHUP): no new connections, every sandbox ends and
 * its streams say so, replies get a moment to be sent, VMMs are reaped.
 */
#define _GNU_SOURCE
#include "daemon/api.h"
#include "daemon/child.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/sandbox.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/landlock.h"
#include "lib/layerfile.h"
#include "lib/log.h"
#include "lib/spaces.h"

#include <errno.h>
#include <jansson.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

/*
 * Descriptors of a sandbox without requests: control socket, pidfd, console, idle streams; control
 * socket and pidfd of its egress proxy.
 */
#define FDS_PER_SANDBOX (3 + LIMIT_IDLE_STREAMS + 2)
/* Bytes from which on an allocation is a mapping of its own, which goes when it is freed. */
#define MEMORY_MAPPED (512 << 10)
/* A connection's socket, and a stream: of its request, or of a command whose client has left. */
#define FDS_PER_CONNECTION 2
/* Ours, images of templates, those of template VMs, and what forks under way hold for a moment. */
#define FDS_OTHER (64 + CONFIG_TEMPLATES_MAX + (LIMIT_SIZED + 8) * 4 + LIMIT_FORKS_IN_FLIGHT * 8)

static void print_routes(void)
{
	for (size_t i = 0; i < api_route_count; i++)
		printf("%s %s\n", api_routes[i].method, api_routes[i].pattern);
}

/* As many descriptors as allowed, shared out between connections and sandboxes. */
static void share_descriptors(struct config *c, unsigned int *connections)
{
	struct rlimit rl = {0};
	uint64_t n, sandboxes, other = FDS_OTHER + (uint64_t)c->pool_size * FDS_PER_SANDBOX;

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &rl) < 0)
			log_warn("cannot raise the limit of open files: %s", strerror(errno));
	}
	n = getrlimit(RLIMIT_NOFILE, &rl) == 0 ? rl.rlim_cur : 1024;
	*connections =
		n / 8 < LIMIT_HTTP_CONNECTIONS ? (unsigned int)(n / 8) : LIMIT_HTTP_CONNECTIONS;
	other += (uint64_t)*connections * FDS_PER_CONNECTION;
	if (n < other + FDS_PER_SANDBOX)
		n = other + FDS_PER_SANDBOX;
	sandboxes = (n - other) / FDS_PER_SANDBOX;
	if (sandboxes < c->max_sandboxes) {
		log_warn("the limit of open files allows %u sandboxes, not %u",
			 (unsigned int)sandboxes, c->max_sandboxes);
		c->max_sandboxes = (uint32_t)sandboxes;
	}
}

/* Where the disks of sandboxes are: our own directory is made, another's must be there. */
static int prepare_disks(const struct config *c, struct err *err)
{
	_cleanup_fd int rw = -1, ro = -1;
	int rc;

	if (mkdir(c->disk_dir, 0700) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the directory for disks %s", c->disk_dir);
	rc = layerfile_make(c->disk_dir, &rw, &ro);
	return rc < 0 ? err_set(err, -rc, "cannot make disks in %s", c->disk_dir) : 0;
}

static void on_signal(struct loop_src *src, uint32_t events)
{
	struct daemon *d = src->arg;
	struct signalfd_siginfo si;

	(void)events;
	if (io_read_some(src->fd, &si, sizeof(si)) != sizeof(si))
		return;
	if (si.ssi_signo == SIGCHLD) {
		vmm_host_reap(&d->vmms);
		return;
	}
	if (d->stopping)
		return;
	log_info("asked to stop");
	d->stopping = true;
}

static int watch_signals(struct daemon *d, struct loop_src *src, struct err *err)
{
	sigset_t set;
	int fd, rc;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGUSR1, SIG_IGN); /* child.h */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	*src = (struct loop_src){.fd = -1, .fn = on_signal, .arg = d};
	rc = fd < 0 ? -errno : loop_add(&d->loop, src, fd, EPOLLIN);
	return rc < 0 ? err_set(err, -rc, "cannot watch signals") : 0;
}

/*
 * Keys of the API, injected secrets and the keys of CAs are in our memory: another process of our
 * user cannot look into it, and no core has it.
 */
static int hide(struct daemon *d, struct err *err)
{
	d->oom_fd = child_oom_open();
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_DUMPABLE");
	return 0;
}

/*
 * What this host does not give to a VMM is said at the start. Namespaces are refused without,
 * unless the operator wants it so; Landlock is a second wall behind the filter.
 */
static int check_jail(struct daemon *d, struct err *err)
{
	int rc = spaces_try();

	if (landlock_abi() == 0)
		log_warn("this kernel has no Landlock, or it is not turned on: of the walls around "
			 "a VMM, that one is missing");
	if (rc == 0)
		return 0;
	if (!d->config.without_namespaces)
		return err_text(err, -rc,
				"this host allows a VMM no namespaces of its own (%s): %s",
				strerror(-rc), SPACES_ADVICE);
	log_warn("PODFLARE_WITHOUT_NAMESPACES=1: VMMs are without namespaces of their own (%s)",
		 strerror(-rc));
	d->vmms.without_namespaces = true;
	return 0;
}

static void reap_again(void *arg)
{
	vmm_host_reap_again(arg);
}

static int start(struct daemon *d, struct loop_src *signals, struct err *err)
{
	struct config *c = &d->config;
	unsigned int connections;
	int rc = loop_init(&d->loop);

	if (rc < 0)
		return err_set(err, -rc, "cannot make an event loop");
	rc = watch_signals(d, signals, err);
	if (rc < 0)
		return rc;
	share_descriptors(c, &connections);
	vmm_host_init(&d->vmms, &d->loop, c->vmm_path, c->kvm_path, c->disk_dir);
	d->vmms.several_owners = config_has_owners(c);
	rc = child_log_start(&d->child_log, &d->loop, err);
	if (rc < 0)
		return rc;
	d->vmms.child = d->egress.child =
		(struct child_env){.oom_fd = d->oom_fd, .stderr_fd = d->child_log.write_fd};
	rc = check_jail(d, err);
	if (rc < 0)
		return rc;
	d->held = (struct held){.max = (size_t)c->requests_mib << 20};
	d->diffs = (struct held){.max = LIMIT_DIFFS};
	d->tests = (struct held){.max = LIMIT_POLICY_TESTS};
	d->execs = (struct held){.max = connections};
	registry_init(&d->registry, c->max_sandboxes);
	turns_init(&d->renewals, &d->loop, 0);
	rc = store_open(&d->store, &d->loop, c->state_dir,
			&(struct store_keep){.days = c->keep_days, .mib = c->keep_mib}, err);
	if (rc == 0)
		rc = prepare_disks(c, err);
	if (rc == 0)
		rc = cgroups_start(&d->cgroups, &d->loop, c, err);
	if (d->cgroups.on)
		d->vmms.groups = d->egress.groups = &d->cgroups;
	d->egress.reap_again = reap_again;
	d->egress.reap_arg = &d->vmms;
	owners_init(&d->owners, c, d->store.salt);
	owners_share(d->owners.held, c->nkeys, &d->held);
	owners_share(d->owners.diffs, c->nkeys, &d->diffs);
	owners_share(d->owners.tests, c->nkeys, &d->tests);
	owners_share(d->owners.execs, c->nkeys, &d->execs);
	owners_share_grants(&d->owners, c->nkeys, &d->held);
	pool_init(&d->pool, d);
	d->vmms.others = &d->egress;
	d->vmms.others_own = egress_host_owns;
	d->vmms.others_reap = egress_host_reap;
	if (rc == 0)
		rc = egress_host_init(&d->egress, &d->loop, c, err);
	d->egress.audit.reserve = &d->store.reserve;
	/* Bound before the images are read: a taken port is told at once. */
	if (rc == 0)
		rc = http_init(&d->http, d, connections, err);
	if (rc == 0)
		rc = image_load(&d->image, c, err);
	if (rc == 0)
		rc = templates_init(&d->templates, d, err);
	if (rc == 0)
		templates_begin(&d->templates);
	return rc == 0 ? http_conn_accept(&d->http, err) : rc;
}

static void announce(const struct daemon *d, uint64_t start_ns)
{
	const struct config *c = &d->config;

	if (c->auth_disabled)
		log_warn("PODFLARE_AUTH_DISABLED=1: everyone who can reach %s may use it",
			 c->addr_text);
	else if (!c->auth)
		log_info("no keys are set: requests need none (%s)",
			 c->trust_forward ? "the outer side offers them on a loopback address"
					  : "only this machine can connect");
	printf("podflared: ready on http://%s (start to ready %llu ms)\n", c->addr_text,
	       (unsigned long long)((io_now_ns() - start_ns) / 1000000));
	fflush(stdout);
}

static bool all_gone(const struct daemon *d)
{
	return registry_empty(&d->registry) && list_empty(&d->vmms.vmms) &&
	       list_empty(&d->egress.proxies);
}

/* What VMMs have left behind and nobody knows of: each that is killed may have made another. */
static void stop_strays(struct daemon *d, uint64_t until)
{
	while (vmm_host_sweep(&d->vmms) && io_now_ns() < until)
		if (loop_run_once(&d->loop, STOP_SWEEP_MS) < 0)
			break;
	vmm_host_stop(&d->vmms);
}

static void stop(struct daemon *d)
{
	uint64_t now = io_now_ns(), replies = now + STOP_DRAIN_NS, vmms = now + STOP_VMM_NS;

	http_conn_stop(&d->http);
	pool_stop(&d->pool);
	/* The end of one may be that of others, which are being forked from it. */
	while (!list_empty(&d->registry.live))
		sandbox_end(list_entry(d->registry.live.next, struct sandbox, link), false,
			    "podflared is stopping");
	templates_stop(&d->templates);
	while ((!all_gone(d) && now < vmms) || (!list_empty(&d->http.requests) && now < replies)) {
		uint64_t until = all_gone(d) ? replies : vmms;

		if (loop_run_once(&d->loop, (int)((until - now) / 1000000) + 1) < 0)
			break;
		now = io_now_ns();
	}
	stop_strays(d, vmms);
	if (!all_gone(d))
		log_warn("a killed VMM or proxy is not gone yet");
}

static int run(struct daemon *d, uint64_t start_ns)
{
	struct loop_src signals = {.fd = -1};
	struct err err = {0};
	int fd, rc = start(d, &signals, &err);

	if (rc < 0) {
		log_error("%s", err.msg);
	} else {
		announce(d, start_ns);
		while (!d->stopping && rc == 0)
			rc = loop_run_once(&d->loop, -1);
		if (rc < 0)
			log_error("the event loop failed: %s", strerror(-rc));
		stop(d);
	}
	vmm_host_stop(&d->vmms);
	cgroups_stop(&d->cgroups);
	child_log_stop(&d->child_log);
	http_free(&d->http);
	templates_free(&d->templates);
	image_free(&d->image);
	egress_host_free(&d->egress);
	store_close(&d->store);
	fd = signals.fd;
	loop_del(&signals);
	close_fd(&fd);
	close_fd(&d->oom_fd);
	loop_free(&d->loop);
	return rc < 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
	static struct daemon d; /* too large for the stack; reached through pointers only */
	uint64_t start_ns = io_now_ns();
	struct err err = {0};
	int rc;

	umask(077);
	/* Before the keys are read. */
	if (hide(&d, &err) < 0) {
		fprintf(stderr, "podflared: %s\n", err.msg);
		return 1;
	}
	/* Requests and grants of egress have secrets in them. */
	json_safe_begin();
	/* Large buffers come and go. By itself the library keeps the memory of the next one as
	 * large as the largest that was freed. */
	mallopt(M_TRIM_THRESHOLD, 2 * MEMORY_MAPPED);
	mallopt(M_MMAP_THRESHOLD, MEMORY_MAPPED);
	rc = config_load(&d.config, argc, argv, &err);
	log_init(d.config.log_format, LOG_INFO);
	log_never_wait();
	if (rc < 0) {
		fprintf(stderr, "podflared: %s\n", err.msg);
		return 2;
	}
	d.image = (struct image){.kernel_fd = -1, .initramfs_fd = -1};
	d.store.lock_fd = d.store.reserve.fd = d.http.spare_fd = d.loop.epfd = d.loop.wakefd = -1;
	list_init(&d.loop.garbage);
	d.egress.audit.fd = d.cgroups.dir_fd = -1;
	rc = 0;
	if (d.config.show_help)
		fputs(config_usage(), stdout);
	else if (d.config.show_version)
		printf("podflared %s\n", PODFLARE_VERSION);
	else if (d.config.show_routes)
		print_routes();
	else
		rc = run(&d, start_ns);
	config_free(&d.config);
	return rc;
}
