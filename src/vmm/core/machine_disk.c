/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk in the machine. What vCPU threads leave for the loop thread lies in
 * struct machine_disk under the device lock; the machine's hand-over descriptor
 * wakes the loop. The device lock is let go between any two pieces of work.
 */
#include "vmm/core/machine_disk.h"
#include "lib/io.h"
#include "vmm/core/machine.h"

#include <errno.h>

#define REPORT_NS        1000000000ull
#define FLATTEN_DELAY_NS 200000000ull
#define FLATTEN_STEP_NS  1000000ull
/* Of a turn: 256 KiB, so that a request of the guest waits for some 100 us. */
#define FLATTEN_CLUSTERS 4u
/* When it is urgent: 1 MiB. The guest is slowed down, forks are not. */
#define FLATTEN_URGENT_CLUSTERS 16u
#define RETRY_FIRST_NS          1000000000ull
#define RETRY_LAST_NS           60000000000ull

static void on_again(void *arg)
{
	struct machine *m = arg;

	m->disk.again = true;
	machine_wake_loop(m);
}

static void on_piled(void *arg)
{
	struct machine *m = arg;

	if (m->disk.piled)
		return;
	m->disk.piled = true;
	machine_wake_loop(m);
}

static void on_failed(void *arg, int errnum)
{
	struct machine *m = arg;

	m->disk.errnum = errnum;
	m->disk.failures++;
	if (m->disk.failures == m->disk.told + 1)
		machine_wake_loop(m);
}

static void tell_failures(struct machine *m)
{
	struct machine_disk *d = &m->disk;
	uint64_t failures;
	int errnum;

	if (loop_timer_armed(&d->report))
		return;
	device_lock_loop(&m->lock);
	failures = d->failures;
	errnum = d->errnum;
	if (failures == d->told) {
		device_unlock(&m->lock);
		return;
	}
	d->told = failures;
	device_unlock(&m->lock);
	loop_timer_set(m->loop, &d->report, REPORT_NS);
	m->events.disk_failed(m->events.arg, errnum, failures);
}

static void on_report(struct loop_timer *t)
{
	tell_failures(t->arg);
}

/* The host's storage is full, or failed: it may be better soon, and forks want to go on. */
static void flatten_later(struct machine *m)
{
	struct machine_disk *d = &m->disk;

	d->retry_ns = d->retry_ns ? 2 * d->retry_ns : RETRY_FIRST_NS;
	if (d->retry_ns > RETRY_LAST_NS)
		d->retry_ns = RETRY_LAST_NS;
	loop_timer_set(m->loop, &d->flatten, d->retry_ns);
}

static void on_flatten(struct loop_timer *t)
{
	struct machine *m = t->arg;
	struct layers *l = &m->disk.layers;
	int more;

	if (m->paused)
		return; /* its children inherit what there is, and find the top unused */
	device_lock_loop(&m->lock);
	more = layers_flatten(l, layers_urgent(l) ? FLATTEN_URGENT_CLUSTERS : FLATTEN_CLUSTERS);
	m->disk.piled = more != 0;
	device_unlock(&m->lock);
	if (more < 0) {
		flatten_later(m);
		return;
	}
	m->disk.retry_ns = 0;
	if (more)
		loop_timer_set(m->loop, t, FLATTEN_STEP_NS);
}

static void init_timers(struct machine *m)
{
	m->disk.report = (struct loop_timer){.fn = on_report, .arg = m};
	m->disk.flatten = (struct loop_timer){.fn = on_flatten, .arg = m};
	m->disk.retry_ns = 0;
}

/*
 * Never later than it is: whoever asks may do so again before the step has passed, and without end
 * (each turn of a busy disk asks), and timers come after what else there is in a turn of the loop.
 */
static void flatten_soon(struct machine *m)
{
	struct loop_timer *t = &m->disk.flatten;

	if (!loop_timer_armed(t) || t->at_ns > io_now_ns() + FLATTEN_STEP_NS)
		loop_timer_set(m->loop, t, FLATTEN_STEP_NS);
}

static int too_fast(struct machine *m, struct err *err)
{
	flatten_soon(m);
	return err_text(err, EAGAIN,
			"the disk was forked faster than its layers can be brought "
			"together; it can be forked again in a moment");
}

static int bad_layer(int rc, struct err *err)
{
	if (rc == -EINVAL)
		return err_text(err, EINVAL,
				"the new layer of the disk is not one empty file, opened for "
				"reading and writing, and for reading");
	return err_set(err, -rc, "cannot add a layer to the disk");
}

int machine_disk_init(struct machine *m, uint32_t mib, struct layer_fds top, struct err *err)
{
	const struct virtio_host host = {.raise_irq = machine_raise_irq,
					 .arg = &m->irqs[MACHINE_DEV_BLK]};
	const struct blk_events events = {
		.again = on_again, .piled = on_piled, .failed = on_failed, .arg = m};
	int rc = layers_init(&m->disk.layers, (uint64_t)mib << 20, top);

	if (rc < 0)
		return bad_layer(rc, err);
	init_timers(m);
	blk_init(&m->disk.blk, &m->ram, &host, &m->disk.layers, &events);
	m->devices[MACHINE_DEV_BLK] = &m->disk.blk.dev;
	return 0;
}

/* One budget of what waits; false when nothing did. */
static bool go_on(struct machine *m)
{
	bool due;

	device_lock_loop(&m->lock);
	due = m->disk.again;
	m->disk.again = false;
	if (due)
		blk_continue(&m->disk.blk);
	device_unlock(&m->lock);
	return due;
}

void machine_disk_turn(struct machine *m)
{
	go_on(m);
	machine_disk_settle(m);
	tell_failures(m);
}

void machine_disk_drain(struct machine *m)
{
	/* Bounded: nobody adds to the queue, and each time at least one request leaves it. */
	for (unsigned int i = 0; i < VIRTQ_SIZE_MAX && go_on(m); i++)
		;
}

int machine_disk_make_room(struct machine *m, struct err *err)
{
	int rc;

	device_lock_loop(&m->lock);
	rc = layers_make_room(&m->disk.layers, !m->paused);
	device_unlock(&m->lock);
	if (rc == -EAGAIN)
		return too_fast(m, err);
	return rc < 0 ? err_set(err, -rc, "cannot make room for another layer of the disk") : 0;
}

void machine_disk_hold(struct machine *m)
{
	device_lock_loop(&m->lock);
	blk_hold(&m->disk.blk, true);
	device_unlock(&m->lock);
}

void machine_disk_release(struct machine *m)
{
	/* What came in between has woken the loop: it is next. */
	device_lock_loop(&m->lock);
	blk_hold(&m->disk.blk, false);
	device_unlock(&m->lock);
}

int machine_disk_split(struct machine *m, struct layer_fds *top, struct err *err)
{
	int rc = 0;

	device_lock_loop(&m->lock);
	if (!layers_top_unused(&m->disk.layers)) {
		rc = layers_push(&m->disk.layers, *top);
		if (rc == 0)
			*top = (struct layer_fds){.rw = -1, .ro = -1};
	}
	device_unlock(&m->lock);
	if (rc == -EAGAIN)
		return too_fast(m, err);
	return rc < 0 ? bad_layer(rc, err) : 0;
}

int machine_disk_fork_child(struct machine *m, struct layer_fds top, struct err *err)
{
	int rc = layers_replace_top(&m->disk.layers, top);

	if (rc < 0)
		return bad_layer(rc, err);
	/* They were in the parent's loop. */
	init_timers(m);
	m->disk.again = m->disk.piled = false;
	blk_hold(&m->disk.blk, false);
	m->disk.failures = m->disk.told = 0;
	return 0;
}

void machine_disk_settle(struct machine *m)
{
	struct machine_disk *d = &m->disk;
	bool urgent, wanted;

	device_lock_loop(&m->lock);
	urgent = layers_urgent(&d->layers);
	wanted = layers_wants_flatten(&d->layers);
	d->piled = wanted;
	device_unlock(&m->lock);
	if (m->paused || !wanted)
		return;
	/* One that is urgent does not wait for the delay of a fork before, only for a retry. */
	if (urgent && !d->retry_ns)
		flatten_soon(m);
	else if (!loop_timer_armed(&d->flatten))
		loop_timer_set(m->loop, &d->flatten, urgent ? FLATTEN_STEP_NS : FLATTEN_DELAY_NS);
}
