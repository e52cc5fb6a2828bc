/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A running emulated host: sends it its orders, takes its reports, forwards
 * a port, stops it, and tells its owner when it has ended. The order of life:
 *
 *   box_start() -> box_give_*() -> box_go() -> on_report("booted", "started",
 *   ...) -> box_stop() or an end by itself -> on_ended() once -> box_free()
 *
 * on_ended comes when the process is reaped and every stream has been read
 * to its end, so nothing that the machine wrote is lost.
 *
 * Now and then an emulated machine hangs before its kernel's first message,
 * and a fresh one does not: when BOX_BOOT_S have passed without "booted" it is
 * killed and `stuck` is set, for its owner to start another one.
 *
 * An emulated machine that runs virtual machines of its own loses an interrupt of its timer now and
 * then, and with it, idle, everything that waits for time, until any other interrupt comes (seen:
 * three minutes). So it gets one every BOX_PULSE_MS, by a byte on a port that nobody looks at.
 *
 * A machine whose disk cannot be written stands still until it can (boxpause.h); its clock is set
 * then.
 *
 * Thread: the loop's. Deadlines: a stop that takes longer than BOX_STOP_MS
 * ends in SIGKILL; one of a machine that stands still, and cannot go on, does so at once. fork:
 * QEMU dies with this process.
 */
#pragma once

#include "cli/boxpause.h"
#include "cli/conlog.h"
#include "cli/lines.h"
#include "cli/qemu.h"
#include "cli/relay.h"
#include "lib/buf.h"
#include "lib/loop.h"

#define BOX_STOP_MS    15000
#define BOX_PULSE_MS   100
#define BOX_BOOT_S     60u /* a busy machine needs 10; PODFLARE_BOX_BOOT_TIMEOUT */
#define BOX_BOOT_TRIES 3
#define BOX_ORDERS_MAX (256u << 20) /* orders and files that wait for the machine to boot */

struct box;

struct box_events {
	/* A line of box/rc: "booted", "started", "exit N", "failed TEXT". */
	void (*report)(void *arg, const char *line);
	/* A line of the program's stdout; NULL: it goes to our stdout byte by byte. */
	void (*output)(void *arg, const char *line);
	/* The answer to box_forward(): NULL when the port is open, else why not. */
	void (*forwarded)(void *arg, const char *failure);
	void (*ended)(void *arg);
};

struct box_stream {
	struct loop_src src;
	struct box *box;
	struct lines lines;
};

struct box {
	struct loop *loop;
	struct qemu qemu;
	const struct box_events *events;
	void *arg;
	struct conlog console;
	struct box_stream console_in, reports, output, monitor;
	struct loop_src process;
	struct relay out_relay, err_relay;
	struct buf config; /* the shell fragment that box_go() sends */
	struct buf orders; /* not sent yet */
	struct loop_timer stop_timer, boot_timer, pulse_timer;
	struct boxpause pause;
	unsigned int boot_limit_s;
	uint16_t port; /* forwarded here */
	bool stuck;    /* killed because it did not boot */
	unsigned int streams_open;
	bool started, stopping, killed, ended;
	int wait_status; /* of the process, when ended */
};

/* Starts the machine. console_path may be NULL. events and arg live as long as b. */
__must_check int box_start(struct box *b, struct loop *l, const struct qemu_config *c,
			   const char *console_path, const struct box_events *events, void *arg,
			   struct err *err);

/* A file for /run/box; at most one with a name. _data: with these bytes instead of a file's. */
__must_check int box_give_data(struct box *b, const char *name, const char *data, size_t len,
			       struct err *err);
__must_check int box_give_file(struct box *b, const char *name, const char *path, struct err *err);
/* mode=serve or mode=run. */
__must_check int box_give_mode(struct box *b, const char *mode, struct err *err);
/* Positional parameters of the program, all in one call. */
__must_check int box_give_args(struct box *b, char *const *argv, size_t n, struct err *err);
/* An environment variable. */
__must_check int box_give_env(struct box *b, const char *name, const char *value, struct err *err);
/* All orders are given. */
__must_check int box_go(struct box *b, struct err *err);

/* Opens host:port here for port guest_port inside; the answer comes as events->forwarded. */
void box_forward(struct box *b, const char *host, uint16_t port, uint16_t guest_port);

/* Asks the program inside to end (SIGTERM) and the machine to power off. */
void box_stop(struct box *b);
/* Ends it at once. */
void box_kill(struct box *b);

/*
 * After on_ended of a machine that was stuck: releases it, makes the loop usable again, and says
 * that the start is tried again; true. False for any other end, and after BOX_BOOT_TRIES.
 */
bool box_retry(struct box *b, unsigned int *tries);

/* Ends what still runs, waits for it, and releases everything. */
void box_free(struct box *b);
