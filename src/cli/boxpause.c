/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU tells with BLOCK_IO_ERROR which disk it is and why, with STOP that it has stopped; the two
 * come in any order, and again each time that it was told to go on in vain. The timer has two uses:
 * while the machine stands, to try again; while it runs again, to be sure of that. Invariant: it is
 * armed exactly when p->disk is set.
 */
#include "cli/boxpause.h"

#include "cli/boxdisk.h"
#include "cli/cli.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void wait_ms(struct boxpause *p, uint64_t ms)
{
	loop_timer_set(p->loop, &p->timer, ms * 1000000);
}

bool boxpause_stands(const struct boxpause *p)
{
	return p->disk && p->stopped && !p->ending;
}

/* Whether a try makes sense. Of a quota or a broken disk free space tells nothing. */
static bool has_room(const struct boxpause *p)
{
	uint64_t bytes;

	return !p->no_room || boxdisk_free(p->disk, &bytes) < 0 ||
	       bytes >= (uint64_t)BOXPAUSE_ROOM_MIB << 20;
}

bool boxpause_try(struct boxpause *p)
{
	static const char go_on[] = "{\"execute\": \"cont\"}\n";

	if (!has_room(p) || io_write_full(p->monitor, go_on, sizeof(go_on) - 1) < 0)
		return false;
	/* QEMU's RESUME says the same later, and STOP if that was in vain. */
	p->stopped = false;
	wait_ms(p, BOXPAUSE_SURE_MS);
	return true;
}

static void on_timer(struct loop_timer *t)
{
	struct boxpause *p = t->arg;

	if (p->stopped) {
		if (!boxpause_try(p))
			wait_ms(p, BOXPAUSE_TRY_MS);
		return;
	}
	if (p->told_of) {
		cli_say("%s can be written again: the emulated host goes on", p->disk);
		p->goes_on(p->arg);
	}
	p->disk = p->told_of = NULL;
}

/* "key": "value" of a line of QMP; "" when it is not there. */
static void value_of(const char *line, const char *key, char *out, size_t size)
{
	char word[32];
	const char *at;
	size_t len = 0;

	snprintf(word, sizeof(word), "\"%s\": \"", key);
	at = strstr(line, word);
	if (at) {
		at += strlen(word);
		len = strcspn(at, "\"");
	}
	snprintf(out, size, "%.*s", (int)(len < size ? len : size - 1), at ? at : "");
}

/* Which of the disks it is: "disk3", as qemu.c named it. */
static const char *disk_of(const struct boxpause *p, const char *line)
{
	char name[32];
	unsigned int n;

	value_of(line, "device", name, sizeof(name));
	return sscanf(name, "disk%u", &n) == 1 && n < QEMU_DISKS_MAX ? p->disks[n] : NULL;
}

static void on_io_error(struct boxpause *p, const char *line)
{
	const char *disk = disk_of(p, line);

	if (!disk || !strstr(line, "\"action\": \"stop\""))
		return;
	p->disk = disk;
	p->no_room = strstr(line, "\"nospace\": true") != NULL;
	value_of(line, "reason", p->reason, sizeof(p->reason));
}

static void say_why(struct boxpause *p)
{
	if (p->told_of == p->disk)
		return;
	p->told_of = p->disk;
	if (p->no_room)
		cli_say("no room is left for %s: the emulated host stands still, with all that "
			"runs in it, until %d MiB are free there",
			p->disk, BOXPAUSE_ROOM_MIB);
	else
		cli_say("%s cannot be written (%s): the emulated host stands still, with all that "
			"runs in it, until it can",
			p->disk, p->reason);
}

void boxpause_line(struct boxpause *p, const char *line)
{
	char event[32];

	value_of(line, "event", event, sizeof(event));
	if (strcmp(event, "BLOCK_IO_ERROR") == 0)
		on_io_error(p, line);
	else if (strcmp(event, "STOP") == 0)
		p->stopped = true;
	else if (strcmp(event, "RESUME") == 0)
		p->stopped = false;
	else if (strcmp(event, "SHUTDOWN") == 0)
		p->ending = true; /* the STOP that follows is none of ours */
	else
		return;
	if (!p->disk)
		return;
	wait_ms(p, p->stopped ? BOXPAUSE_TRY_MS : BOXPAUSE_SURE_MS);
	if (boxpause_stands(p)) {
		say_why(p);
		p->stands(p->arg);
	}
}

int boxpause_init(struct boxpause *p, struct loop *l, const struct qemu_config *c, int monitor)
{
	p->loop = l;
	p->monitor = monitor;
	p->timer = (struct loop_timer){.fn = on_timer, .arg = p};
	for (size_t i = 0; i < c->ndisks; i++) {
		if (c->disks[i].readonly)
			continue;
		p->disks[i] = strdup(c->disks[i].path);
		if (!p->disks[i])
			return -ENOMEM;
	}
	return 0;
}

void boxpause_free(struct boxpause *p)
{
	if (p->loop)
		loop_timer_cancel(&p->timer);
	for (size_t i = 0; i < QEMU_DISKS_MAX; i++) {
		free(p->disks[i]);
		p->disks[i] = NULL;
	}
	p->disk = NULL;
}
