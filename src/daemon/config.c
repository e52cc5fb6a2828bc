/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command line of podflared, and what fits together with what. Runs once, before
 * the event loop. The environment: config_env.c.
 */
#define _GNU_SOURCE
#include "daemon/config.h"
#include "daemon/config_impl.h"
#include "daemon/limits.h"
#include "lib/cleanup.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage_text[] =
	"usage: podflared --state DIR --guest DIR --vmm PATH [options]\n"
	"\n"
	"  --addr HOST:PORT     listen here (default: $PODFLARE_HOSTD_ADDR or 127.0.0.1:7070)\n"
	"  --state DIR          where podflared keeps its database (made if missing)\n"
	"  --guest DIR          holds vmlinux, initramfs.cpio and templates/NAME/ with\n"
	"                       template.json and rootfs.erofs; without templates/ the image\n"
	"                       rootfs.erofs is the template \"default\"\n"
	"  --template NAME=JSON=IMAGE\n"
	"                       a template instead of those of --guest (repeatable; the first\n"
	"                       is made at once); IMAGE may be a block device\n"
	"  --image FILE         the only template is \"default\", with this image\n"
	"  --vmm PATH           the podflare-vmm program\n"
	"  --kvm PATH           the KVM device (default: /dev/kvm)\n"
	"  --disk-dir DIR       for the disks of sandboxes, files without a name (default:\n"
	"                       disks in the state directory)\n"
	"  --egress PATH        the podflare-egress program (default: beside podflared)\n"
	"  --groups FILE        groups of names that allowlists may use (default: groups.json\n"
	"                       beside podflared)\n"
	"  --egress-config FILE what may be reached from sandboxes that ask for it (default:\n"
	"                       $PODFLARE_EGRESS_CONFIG or whatever each asks for)\n"
	"  --own-ranges FILE    a JSON list of prefixes that lead back to this machine, which\n"
	"                       are refused beside its addresses, unless they are allowed by\n"
	"                       a range of one address (podflare serve gives it)\n"
	"  --max-sandboxes N    most sandboxes at a time (default: 1024)\n"
	"  --pool N             ready sandboxes of each used template (default: 2, 0 = none)\n"
	"  --max-fork N         most children of one fork (default: 32)\n"
	"  --public-addr HOST:PORT\n"
	"                       the address that clients use, when another forwards here\n"
	"  --trust-forward      the bind address was checked by who forwards to it\n"
	"  --print-routes       print the endpoints and exit\n"
	"  --version, --help\n"
	"\n"
	"environment:\n"
	"  PODFLARE_API_KEYS        accepted keys, separated by commas\n"
	"  PODFLARE_AUTH_DISABLED   1: ask nobody for a key\n"
	"  PODFLARE_WITHOUT_NAMESPACES  1: start where the host allows a VMM no namespaces of its\n"
	"                           own; the other walls around it hold\n"
	"  PODFLARE_CGROUP          auto (default): each VM gets a control group with limits "
	"where\n"
	"                           the daemon's own was delegated to it; require: start only\n"
	"                           there; groups: also where no limit can be set; off: never\n"
	"  PODFLARE_CGROUP_IO_MIB   MiB a second that a VM may read from the disk of the state\n"
	"                           directory, and as many that it may write (default: any)\n"
	"  PODFLARE_HOSTD_ADDR      default of --addr\n"
	"  PODFLARE_LOG_FORMAT      text (default) or json\n"
	"  PODFLARE_CREATE_TIMEOUT  seconds a sandbox may take to start (default: 120)\n"
	"  PODFLARE_TEMPLATE_TIMEOUT  seconds a template may take to be made (default: 600)\n"
	"  PODFLARE_FREEZE_TIMEOUT  seconds a guest may take to stand still for a fork, and to\n"
	"                           go on (default: 20)\n"
	"  PODFLARE_EGRESS_CONFIG   default of --egress-config\n"
	"  PODFLARE_POOL_SIZE       default of --pool\n"
	"  PODFLARE_MAX_FORK        default of --max-fork\n"
	"  PODFLARE_PING_AFTER      seconds of silence of a command before the guest is asked\n"
	"                           whether it lives (default: 30)\n"
	"  PODFLARE_PONG_WITHIN     seconds it has to answer (default: 60)\n"
	"  PODFLARE_EXEC_SLACK      seconds after the timeout of a command within which its end "
	"is\n"
	"                           told: the guest has three quarters of them to end it, then "
	"the\n"
	"                           sandbox is ended (default: 2; in the emulated host: 15)\n"
	"  PODFLARE_HTTP_TIMEOUT    seconds a connection may be without progress, and the head of\n"
	"                           a request may take in all (default: 60)\n"
	"  PODFLARE_REQUESTS_MIB    MiB that bodies of requests, code that waits, results and\n"
	"                           answers may take in memory, of all clients (default: 1024)\n"
	"  PODFLARE_KEEP_DAYS       days that ended sandboxes are remembered (default: 90)\n"
	"  PODFLARE_KEEP_MIB        MiB of the state database beyond which those that ended first\n"
	"                           are forgotten earlier (default: 256)\n";

const char *config_usage(void)
{
	return usage_text;
}

void config_format_addr(const struct sockaddr_storage *addr, char *out, size_t len)
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (addr->ss_family == AF_INET6) {
		const struct sockaddr_in6 *a = (const void *)addr;

		inet_ntop(AF_INET6, &a->sin6_addr, host, sizeof(host));
		snprintf(out, len, "[%s]:%u", host, ntohs(a->sin6_port));
	} else {
		const struct sockaddr_in *a = (const void *)addr;

		inet_ntop(AF_INET, &a->sin_addr, host, sizeof(host));
		snprintf(out, len, "%s:%u", host, ntohs(a->sin_port));
	}
}

int config_parse_addr(struct config *c, const char *text, struct err *err)
{
	const char *colon = strrchr(text, ':');
	struct sockaddr_in6 *a6 = (void *)&c->addr;
	struct sockaddr_in *a4 = (void *)&c->addr;
	size_t hlen = colon ? (size_t)(colon - text) : 0;
	char host[80];
	uint32_t port = 0;
	int rc;

	if (!colon || hlen == 0 || hlen >= sizeof(host))
		return err_text(err, EINVAL, "the address \"%s\" is not HOST:PORT", text);
	rc = config_parse_number("the port of the address", colon + 1, 0, 65535, &port, err);
	if (rc < 0)
		return rc;
	memcpy(host, text, hlen);
	host[hlen] = '\0';
	memset(&c->addr, 0, sizeof(c->addr));
	if (strcmp(host, "localhost") == 0)
		strcpy(host, "127.0.0.1");
	if (host[0] == '[' && host[hlen - 1] == ']') {
		host[hlen - 1] = '\0';
		if (inet_pton(AF_INET6, host + 1, &a6->sin6_addr) != 1)
			return err_text(err, EINVAL, "\"%s\" is not an IPv6 address", host + 1);
		a6->sin6_family = AF_INET6;
		a6->sin6_port = htons((uint16_t)port);
		c->addr_len = sizeof(*a6);
		c->loopback = IN6_IS_ADDR_LOOPBACK(&a6->sin6_addr);
	} else {
		if (inet_pton(AF_INET, host, &a4->sin_addr) != 1)
			return err_text(
				err, EINVAL,
				"\"%s\" is not an IPv4 address, [IPv6 address] or localhost", host);
		a4->sin_family = AF_INET;
		a4->sin_port = htons((uint16_t)port);
		c->addr_len = sizeof(*a4);
		c->loopback = ntohl(a4->sin_addr.s_addr) >> 24 == 127;
	}
	config_format_addr(&c->addr, c->addr_text, sizeof(c->addr_text));
	return 0;
}

static int guest_paths(struct config *c, const char *guest, const char *image, struct err *err)
{
	const char *dir = guest ? guest : "";

	if (!guest)
		return err_text(err, EINVAL, "--guest is missing");
	if (strlen(dir) > sizeof(c->kernel_path) - 32 ||
	    (image && strlen(image) >= sizeof(c->image_path)))
		return err_text(err, ENAMETOOLONG, "--guest or --image is too long");
	snprintf(c->kernel_path, sizeof(c->kernel_path), "%s/vmlinux", dir);
	snprintf(c->initramfs_path, sizeof(c->initramfs_path), "%s/initramfs.cpio", dir);
	c->guest_dir = guest;
	c->image_given = image != NULL;
	if (image && c->ntemplates)
		return err_text(err, EINVAL, "--image and --template exclude each other");
	if (image)
		snprintf(c->image_path, sizeof(c->image_path), "%s", image);
	else
		snprintf(c->image_path, sizeof(c->image_path), "%s/rootfs.erofs", dir);
	return 0;
}

static int disk_path(struct config *c, const char *disks, struct err *err)
{
	int n;

	if (!c->state_dir)
		return err_text(err, EINVAL, "--state is missing");
	n = disks ? snprintf(c->disk_dir, sizeof(c->disk_dir), "%s", disks)
		  : snprintf(c->disk_dir, sizeof(c->disk_dir), "%s/disks", c->state_dir);
	return n >= (int)sizeof(c->disk_dir)
		       ? err_text(err, ENAMETOOLONG, "--disk-dir or --state is too long")
		       : 0;
}

/* A path that was given, or the file of this name beside our own program. */
static int beside(const char *given, const char *name, char *out, size_t len, struct err *err)
{
	ssize_t n = given ? 0 : readlink("/proc/self/exe", out, len);
	size_t dir = 0;

	if (n < 0 || (size_t)n >= len)
		return err_text(err, EINVAL, "it is not known where podflared itself is");
	for (size_t i = 0; i < (size_t)n; i++)
		if (out[i] == '/')
			dir = i + 1;
	return snprintf(out + dir, len - dir, "%s", given ? given : name) >= (int)(len - dir)
		       ? err_text(err, ENAMETOOLONG, "the path of %s is too long", name)
		       : 0;
}

/* The host is only compared, never looked up. */
static int check_public(const struct config *c, struct err *err)
{
	const char *colon = c->public_addr ? strrchr(c->public_addr, ':') : NULL;
	uint32_t port;

	if (!c->public_addr)
		return 0;
	if (!colon || colon == c->public_addr)
		return err_text(err, EINVAL, "--public-addr \"%s\" is not HOST:PORT",
				c->public_addr);
	return config_parse_number("the port of --public-addr", colon + 1, 1, 65535, &port, err);
}

/* Settings that are right one by one must also fit together. */
static int check_whole(struct config *c, struct err *err)
{
	if (!c->vmm_path)
		return err_text(err, EINVAL, "--vmm is missing");
	c->auth = c->nkeys > 0 && !c->auth_disabled;
	if (!c->loopback && !c->auth && !c->auth_disabled && !c->trust_forward)
		return err_text(err, EACCES,
				"refusing to listen on %s without keys: set PODFLARE_API_KEYS (or "
				"PODFLARE_AUTH_DISABLED=1 if everyone who can reach it may use it)",
				c->addr_text);
	return 0;
}

enum {
	OPT_ADDR = 1,
	OPT_STATE,
	OPT_GUEST,
	OPT_IMAGE,
	OPT_VMM,
	OPT_KVM,
	OPT_DISKS,
	OPT_MAX,
	OPT_TEMPLATE,
	OPT_POOL,
	OPT_FORK,
	OPT_PUBLIC,
	OPT_TRUST,
	OPT_EGRESS,
	OPT_GROUPS,
	OPT_EGRESS_CONFIG,
	OPT_OWN_RANGES,
	OPT_ROUTES,
	OPT_VERSION,
	OPT_HELP
};

static const struct option options[] = {
	{"addr", required_argument, NULL, OPT_ADDR},
	{"state", required_argument, NULL, OPT_STATE},
	{"guest", required_argument, NULL, OPT_GUEST},
	{"image", required_argument, NULL, OPT_IMAGE},
	{"vmm", required_argument, NULL, OPT_VMM},
	{"kvm", required_argument, NULL, OPT_KVM},
	{"disk-dir", required_argument, NULL, OPT_DISKS},
	{"max-sandboxes", required_argument, NULL, OPT_MAX},
	{"template", required_argument, NULL, OPT_TEMPLATE},
	{"pool", required_argument, NULL, OPT_POOL},
	{"max-fork", required_argument, NULL, OPT_FORK},
	{"public-addr", required_argument, NULL, OPT_PUBLIC},
	{"trust-forward", no_argument, NULL, OPT_TRUST},
	{"egress", required_argument, NULL, OPT_EGRESS},
	{"groups", required_argument, NULL, OPT_GROUPS},
	{"egress-config", required_argument, NULL, OPT_EGRESS_CONFIG},
	{"own-ranges", required_argument, NULL, OPT_OWN_RANGES},
	{"print-routes", no_argument, NULL, OPT_ROUTES},
	{"version", no_argument, NULL, OPT_VERSION},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

/* What the command line names but does not yet mean anything alone. */
struct raw {
	const char *addr, *guest, *image, *disks, *egress, *groups;
};

/* An option whose value is a number. 0, -EINVAL, or 1: it is none of these. */
static int load_number(struct config *c, int opt, const char *value, struct err *err)
{
	switch (opt) {
	case OPT_MAX:
		return config_parse_number("--max-sandboxes", value, 1, 65536, &c->max_sandboxes,
					   err);
	case OPT_POOL:
		c->pool_given = true;
		return config_parse_number("--pool", value, 0, LIMIT_POOL, &c->pool_size, err);
	case OPT_FORK:
		c->fork_given = true;
		return config_parse_number("--max-fork", value, 1, LIMIT_FORK, &c->max_fork, err);
	default:
		return 1;
	}
}

static int load_option(struct config *c, struct raw *raw, int opt, char **argv, struct err *err)
{
	switch (opt) {
	case OPT_ADDR:
		raw->addr = optarg;
		break;
	case OPT_STATE:
		c->state_dir = optarg;
		break;
	case OPT_GUEST:
		raw->guest = optarg;
		break;
	case OPT_IMAGE:
		raw->image = optarg;
		break;
	case OPT_TEMPLATE:
		if (c->ntemplates == CONFIG_TEMPLATES_MAX)
			return err_text(err, E2BIG, "there are more than %d templates",
					CONFIG_TEMPLATES_MAX);
		c->templates[c->ntemplates++] = optarg;
		break;
	case OPT_VMM:
		c->vmm_path = optarg;
		break;
	case OPT_KVM:
		c->kvm_path = optarg;
		break;
	case OPT_DISKS:
		raw->disks = optarg;
		break;
	case OPT_EGRESS:
		raw->egress = optarg;
		break;
	case OPT_GROUPS:
		raw->groups = optarg;
		break;
	case OPT_EGRESS_CONFIG:
		c->egress_config = optarg;
		break;
	case OPT_OWN_RANGES:
		c->own_ranges = optarg;
		break;
	case OPT_PUBLIC:
		c->public_addr = optarg;
		break;
	case OPT_TRUST:
		c->trust_forward = true;
		break;
	case OPT_ROUTES:
		c->show_routes = true;
		break;
	case OPT_VERSION:
		c->show_version = true;
		break;
	case OPT_HELP:
		c->show_help = true;
		break;
	case ':':
		return err_text(err, EINVAL, "%s needs a value", argv[optind - 1]);
	default:
		return err_text(err, EINVAL, "unknown option %s", argv[optind - 1]);
	}
	return 0;
}

static int load_options(struct config *c, struct raw *raw, int argc, char **argv, struct err *err)
{
	int opt;

	optind = 0;
	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		int rc = load_number(c, opt, optarg, err);

		if (rc == 1)
			rc = load_option(c, raw, opt, argv, err);
		if (rc < 0)
			return rc;
	}
	if (optind < argc)
		return err_text(err, EINVAL, "unexpected argument \"%s\"", argv[optind]);
	return 0;
}

int config_load(struct config *c, int argc, char **argv, struct err *err)
{
	struct raw raw = {.addr = getenv("PODFLARE_HOSTD_ADDR")};
	int rc;

	*c = (struct config){
		.kvm_path = "/dev/kvm",
		.egress_config = getenv("PODFLARE_EGRESS_CONFIG"),
		.max_sandboxes = LIMIT_SANDBOXES,
		.max_fork = DEFAULT_FORK,
		.pool_size = DEFAULT_POOL,
		.template_timeout_s = DEFAULT_TEMPLATE_S,
		.freeze_timeout_s = DEFAULT_FREEZE_S,
		.create_timeout_s = DEFAULT_CREATE_S,
		.ping_after_s = DEFAULT_PING_S,
		.exec_slack_s = DEFAULT_SLACK_S,
		.http_timeout_s = DEFAULT_HTTP_S,
		.requests_mib = DEFAULT_REQUESTS_MIB,
		.keep_days = DEFAULT_KEEP_DAYS,
		.keep_mib = DEFAULT_KEEP_MIB,
		.pong_within_s = DEFAULT_PONG_S,
	};
	rc = load_options(c, &raw, argc, argv, err);
	if (rc < 0 || c->show_help || c->show_version || c->show_routes)
		return rc;
	rc = config_load_env(c, err);
	if (rc == 0)
		rc = config_parse_addr(c, raw.addr && *raw.addr ? raw.addr : "127.0.0.1:7070", err);
	if (rc == 0)
		rc = guest_paths(c, raw.guest, raw.image, err);
	if (rc == 0)
		rc = check_public(c, err);
	if (rc == 0)
		rc = disk_path(c, raw.disks, err);
	if (rc == 0)
		rc = beside(raw.egress, "podflare-egress", c->egress_path, sizeof(c->egress_path),
			    err);
	if (rc == 0)
		rc = beside(raw.groups, "groups.json", c->groups_path, sizeof(c->groups_path), err);
	return rc == 0 ? check_whole(c, err) : rc;
}

void config_free(struct config *c)
{
	for (unsigned int i = 0; i < c->nkeys; i++) {
		explicit_bzero(c->keys[i], strlen(c->keys[i]));
		free(c->keys[i]);
	}
	c->nkeys = 0;
}
