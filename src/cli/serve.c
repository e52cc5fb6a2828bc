/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare serve`: options, the rule about addresses and keys, the choice
 * between hardware and the emulated host, and the start of the daemon.
 */
#include "cli/serve.h"

#include "cli/boxdisk.h"
#include "cli/boxhost.h"
#include "cli/cli.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

static const char help[] =
	"usage: podflare serve [options] [-- podflared options]\n"
	"\n"
	"Starts the sandbox system and stays until it gets SIGINT or SIGTERM.\n"
	"\n"
	"  --addr HOST:PORT    where the API listens (default: $PODFLARE_HOSTD_ADDR or\n"
	"                      " ADDR_DEFAULT "; port 0: any free one)\n"
	"  --state DIR         durable state and logs (default: $PODFLARE_STATE or\n"
	"                      ~/.local/state/podflare)\n"
	"  --egress-config FILE  what sandboxes may be allowed to reach, JSON (default:\n"
	"                      $PODFLARE_EGRESS_CONFIG or none; docs/egress.md)\n"
	"  --mode MODE         hardware: guests run on this machine's processor;\n"
	"                      emulated: in an emulated host, slower;\n"
	"                      auto (default): hardware where it works\n"
	"  --box-memory MIB    memory of the emulated host (default: about half of what is\n"
	"                      available, 1536 to 8192)\n"
	"  --box-disk GIB      how large the disk of the emulated host may get (default: 64); it\n"
	"                      takes only the space that sandboxes use, and gives it back\n"
	"\n"
	"Every template that is built can be used: podflare template ls. What is built or removed\n"
	"later is seen after a restart.\n"
	"\n"
	"An address that others can reach needs PODFLARE_API_KEYS, or PODFLARE_AUTH_DISABLED=1.\n"
	"All environment variables PODFLARE_* reach the daemon in either mode.\n";

enum { OPT_ADDR = 1, OPT_STATE, OPT_EGRESS, OPT_MODE, OPT_MEMORY, OPT_DISK, OPT_HELP };

static const struct option options[] = {
	{"addr", required_argument, NULL, OPT_ADDR},
	{"state", required_argument, NULL, OPT_STATE},
	{"egress-config", required_argument, NULL, OPT_EGRESS},
	{"mode", required_argument, NULL, OPT_MODE},
	{"box-memory", required_argument, NULL, OPT_MEMORY},
	{"box-disk", required_argument, NULL, OPT_DISK},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

struct raw {
	const char *addr, *state, *egress;
	bool help;
};

static int read_option(struct serve *s, struct raw *raw, int opt, char **argv, struct err *err)
{
	switch (opt) {
	case OPT_ADDR:
		raw->addr = optarg;
		return 0;
	case OPT_STATE:
		raw->state = optarg;
		return 0;
	case OPT_EGRESS:
		raw->egress = optarg;
		return 0;
	case OPT_MODE:
		return host_parse_mode(optarg, &s->mode, err);
	case OPT_MEMORY:
		return cli_parse_number("--box-memory", optarg, 1024, BOXHOST_MEMORY_MAX,
					&s->box_memory_mib, err);
	case OPT_DISK:
		return cli_parse_number("--box-disk", optarg, BOXDISK_MIN_GIB, BOXDISK_MAX_GIB,
					&s->box_disk_gib, err);
	case OPT_HELP:
		raw->help = true;
		return 0;
	case ':':
		return err_text(err, EINVAL, "%s needs a value", argv[optind - 1]);
	default:
		return err_text(err, EINVAL, "unknown option %s", argv[optind - 1]);
	}
}

static int read_options(struct serve *s, struct raw *raw, int argc, char **argv, struct err *err)
{
	int opt, rc = 0;

	opterr = 0;
	while (rc == 0 && (opt = getopt_long(argc, argv, "+:", options, NULL)) != -1)
		rc = read_option(s, raw, opt, argv, err);
	if (rc < 0 || raw->help)
		return rc;
	if (optind < argc && strcmp(argv[optind - 1], "--") != 0)
		return err_text(err, EINVAL, "unexpected argument '%s'", argv[optind]);
	s->daemon_args = argv + optind;
	s->ndaemon_args = (size_t)(argc - optind);
	if (!raw->addr || !*raw->addr)
		raw->addr = ADDR_DEFAULT;
	rc = addr_parse(&s->addr, raw->addr, err);
	return rc == 0 ? addr_check_keys(&s->addr, err) : rc;
}

/* The state directory, ready to be written; relative paths are taken from here. */
static int prepare_state(struct serve *s, const char *given, struct err *err)
{
	char *real;
	int rc;

	if (given) {
		if (snprintf(s->state, sizeof(s->state), "%s", given) >= (int)sizeof(s->state))
			return err_text(err, ENAMETOOLONG, "--state is too long");
	} else {
		rc = paths_default_state(s->state, err);
		if (rc < 0)
			return rc;
	}
	rc = paths_make_state(s->state, err);
	if (rc < 0)
		return rc;
	real = realpath(s->state, NULL);
	if (!real)
		return err_set(err, errno, "cannot use the state directory %s", s->state);
	rc = snprintf(s->state, sizeof(s->state), "%s", real) >= (int)sizeof(s->state);
	free(real);
	return rc ? err_text(err, ENAMETOOLONG, "--state is too long") : 0;
}

/*
 * Two machines on one state disk would destroy it. The descriptor is left open
 * for the life of the process. It does not survive the exec of hardware mode,
 * where podflared locks its database itself and VMMs must inherit nothing.
 */
static int lock_state(const struct serve *s, struct err *err)
{
	char path[PATH_MAX + 16];
	int fd;

	snprintf(path, sizeof(path), "%s/serve.lock", s->state);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_set(err, errno, "cannot make %s", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int e = errno;

		close(fd);
		if (e == EWOULDBLOCK)
			return err_text(err, EBUSY,
					"another podflare serve uses the state directory %s; stop "
					"it or pass another --state",
					s->state);
		return err_set(err, e, "cannot lock %s", path);
	}
	return 0;
}

/* podflared's words in hardware mode, without what the user adds; -errno with a sentence. */
static int hardware_args(struct serve *s, char **argv, size_t *n, struct err *err)
{
	static char addr_opt[] = "--addr", state_opt[] = "--state", guest_opt[] = "--guest",
		    vmm_opt[] = "--vmm", template_opt[] = "--template",
		    egress_opt[] = "--egress-config";
	static char program[PATH_MAX], guest[PATH_MAX], vmm[PATH_MAX];

	if (paths_join(&s->paths, "podflared", program) < 0 ||
	    paths_join(&s->paths, "guest", guest) < 0 ||
	    paths_join(&s->paths, "podflare-vmm", vmm) < 0)
		return err_text(err, ENAMETOOLONG, "the path of the installation is too long");
	argv[(*n)++] = program;
	argv[(*n)++] = addr_opt;
	argv[(*n)++] = s->addr.text;
	argv[(*n)++] = state_opt;
	argv[(*n)++] = s->state;
	argv[(*n)++] = guest_opt;
	argv[(*n)++] = guest;
	argv[(*n)++] = vmm_opt;
	argv[(*n)++] = vmm;
	if (s->egress.path[0]) {
		argv[(*n)++] = egress_opt;
		argv[(*n)++] = s->egress.path;
	}
	for (size_t i = 0; i < s->templates.n; i++) {
		const struct template *t = &s->templates.list[i];
		int rc;

		argv[(*n)++] = template_opt;
		rc = templates_option(t->name, t->json, t->image, &argv[*n], err);
		if (rc < 0)
			return rc;
		(*n)++;
	}
	return 0;
}

/* Becomes podflared, which needs all that was allocated until then. */
static int serve_hardware(struct serve *s)
{
	_cleanup_free char **argv =
		calloc(s->ndaemon_args + 2 * s->templates.n + 12, sizeof(*argv));
	struct err err = {0};
	size_t n = 0;

	if (!argv) {
		cli_say("no memory");
		return CLI_FAILED;
	}
	if (hardware_args(s, argv, &n, &err) < 0 || !argv[0]) {
		cli_say("%s", err.msg);
		return CLI_FAILED;
	}
	for (size_t i = 0; i < s->ndaemon_args; i++)
		argv[n++] = s->daemon_args[i];
	cli_say("guests run on this machine's processor (KVM)");
	execv(argv[0], argv);
	cli_say("cannot start %s: %s", argv[0], strerror(errno));
	return CLI_FAILED;
}

int verb_serve(int argc, char **argv)
{
	struct serve s = {
		.mode = HOST_AUTO, .box_disk_gib = BOXDISK_DEFAULT_GIB, .start_ns = io_now_ns()};
	struct raw raw = {.addr = getenv("PODFLARE_HOSTD_ADDR")};
	struct err err = {0};
	int rc;

	tsc_begin(&s.tsc);
	rc = read_options(&s, &raw, argc, argv, &err);
	if (rc == 0 && raw.help) {
		fputs(help, stdout);
		return CLI_OK;
	}
	if (rc == -EACCES) {
		cli_say("%s", err.msg);
		return CLI_USAGE;
	}
	if (rc < 0)
		return cli_usage_error("serve", "%s", err.msg);
	rc = paths_find(&s.paths, &err);
	if (rc == 0)
		rc = egressfile_read(&s.egress, raw.egress, &err);
	if (rc == 0 && s.egress.problem.num)
		cli_say("nothing can be reached from sandboxes: %s", s.egress.problem.msg);
	if (rc == 0)
		rc = prepare_state(&s, raw.state, &err);
	if (rc == 0)
		rc = lock_state(&s, &err);
	if (rc == 0) {
		host_read_facts(&s.facts, false);
		rc = host_choose(&s.facts, s.mode, &s.mode, &err);
	}
	if (rc == 0)
		rc = paths_check(&s.paths, s.mode == HOST_EMULATED, &err);
	if (rc == 0)
		rc = templates_find(&s.templates, &s.paths, &err);
	if (rc < 0) {
		cli_say("%s", err.msg);
		return CLI_FAILED;
	}
	rc = s.mode == HOST_HARDWARE ? serve_hardware(&s) : serve_box(&s);
	templates_free(&s.templates);
	egressfile_free(&s.egress);
	return rc;
}
