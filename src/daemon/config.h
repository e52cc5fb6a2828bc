/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings of podflared: command line over environment over defaults, checked
 * as a whole before anything is opened.
 *
 * Rule of the bind address: on loopback without keys nobody is asked for one;
 * elsewhere without keys the daemon refuses to start, unless
 * PODFLARE_AUTH_DISABLED=1 (logged loudly) or --trust-forward (the outer side
 * of the emulated host has applied the rule already).
 *
 * Read once at start; constant afterwards. fork: plain memory.
 */
#pragma once

#include "lib/err.h"
#include "lib/log.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define CONFIG_KEYS_MAX      64
#define CONFIG_TEMPLATES_MAX 64

/* Control groups for VMs (cgroups.h): PODFLARE_CGROUP. */
enum cgroup_mode {
	CGROUP_AUTO,    /* where limits can be set */
	CGROUP_OFF,     /* never */
	CGROUP_REQUIRE, /* or no start */
	CGROUP_GROUPS,  /* also where no limit can be set: for what ends with them, and to see */
};

struct config {
	struct sockaddr_storage addr;
	socklen_t addr_len;
	char addr_text[80]; /* "127.0.0.1:7070" */
	bool loopback;

	const char *state_dir;
	char disk_dir[4096];
	char kernel_path[4096], initramfs_path[4096], image_path[4096];
	const char *guest_dir;
	bool image_given;                            /* image_path is not the one of guest_dir */
	const char *templates[CONFIG_TEMPLATES_MAX]; /* NAME=JSON=IMAGE */
	unsigned int ntemplates;
	const char *vmm_path;
	const char *kvm_path;
	const char *egress_config;                 /* of the operator, or NULL */
	const char *own_ranges;                    /* file, or NULL */
	char egress_path[4096], groups_path[4096]; /* the proxy, the file of groups */

	char *keys[CONFIG_KEYS_MAX]; /* owned */
	unsigned int nkeys;
	bool without_namespaces; /* VMMs may be without any where the host allows none */
	bool auth;               /* a key is asked for */
	bool auth_disabled;
	bool trust_forward;
	const char *public_addr; /* HOST:PORT by which clients know us, or NULL */

	uint32_t max_sandboxes, max_fork, pool_size;
	bool pool_given, fork_given; /* on the command line: the environment does not count */
	uint32_t template_timeout_s;
	uint32_t freeze_timeout_s; /* an answer to FREEZE or THAW */
	uint32_t create_timeout_s, ping_after_s, pong_within_s;
	uint32_t http_timeout_s;      /* limits.h */
	uint32_t requests_mib;        /* held for all clients (held.h) */
	uint32_t keep_days, keep_mib; /* of ended sandboxes (store.h) */
	uint32_t exec_slack_s;        /* that a guest has beyond the deadline of a command */
	enum log_format log_format;
	enum cgroup_mode cgroup;
	uint32_t cgroup_io_mib; /* a second, of each VM; 0: any */

	bool show_help, show_version, show_routes; /* print and exit */
};

/* Fills c from argv and the environment; err names the option or variable at fault. */
int config_load(struct config *c, int argc, char **argv, struct err *err);
void config_free(struct config *c);

/* Whether there are several who must not be in each other's way. */
static inline bool config_has_owners(const struct config *c)
{
	return c->auth && c->nkeys > 1;
}

/* Help text of the command line. */
const char *config_usage(void);

/* "host:port", host an IPv4 address, "[IPv6]" or "localhost". */
int config_parse_addr(struct config *c, const char *text, struct err *err);

/* "127.0.0.1:7070" or "[::1]:7070" for a socket address. */
void config_format_addr(const struct sockaddr_storage *addr, char *out, size_t len);
