/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an exec sends to the agent: the code, an order to stop, stdin. The
 * agent has at most STDIN_WINDOW bytes of stdin that it has not confirmed, so a
 * program that does not read holds up nothing.
 */
#include "daemon/exec_impl.h"
#include "daemon/limits.h"

#include <errno.h>

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* False: there is more than fits. */
static bool feed_code(struct exec *e)
{
	while (!e->end_sent) {
		size_t left = e->p.code_len - e->code_sent;
		size_t n = smaller(left, agent_room(e->s));

		if (left && n == 0)
			return false;
		if (n)
			agent_send(e->s, FRAME_DATA_IN, e->p.code + e->code_sent, n);
		e->code_sent += n;
		if (e->code_sent == e->p.code_len) {
			agent_send(e->s, FRAME_END_IN, NULL, 0);
			e->end_sent = true;
		}
	}
	return true;
}

/* Clients may repeat orders: one that finds no room waits, and there is one at most. */
static void feed_order(struct exec *e)
{
	if (e->order == ORDER_NONE || agent_room(e->s) == 0)
		return;
	agent_send(e->s, e->order == ORDER_CANCEL ? FRAME_CANCEL : FRAME_INTERRUPT, NULL, 0);
	e->order = ORDER_NONE;
}

static void feed_stdin(struct exec *e)
{
	while (e->p.has_stdin && !e->stdin_ended) {
		size_t left = e->p.stdin_len - e->stdin_sent;
		size_t window = STDIN_WINDOW - (e->stdin_sent - e->stdin_acked);
		size_t n = smaller(smaller(left, window), agent_room(e->s));

		if (left && n == 0)
			return;
		if (n)
			agent_send(e->s, FRAME_STDIN, e->p.stdin_data + e->stdin_sent, n);
		e->stdin_sent += n;
		if (e->stdin_sent == e->p.stdin_len) {
			agent_send(e->s, FRAME_STDIN_END, NULL, 0);
			e->stdin_ended = true;
		}
	}
}

void exec_feed(struct exec *e)
{
	if (!feed_code(e))
		return;
	feed_order(e);
	feed_stdin(e);
	if (!e->p.has_stdin || e->stdin_ended)
		exec_drop_texts(e);
}

int exec_acked(struct exec *e, const struct frame *f)
{
	uint32_t n;

	if (f->len != 4)
		return -EPROTO;
	n = (uint32_t)f->payload[0] | (uint32_t)f->payload[1] << 8 | (uint32_t)f->payload[2] << 16 |
	    (uint32_t)f->payload[3] << 24;
	if (n == 0 || n > e->stdin_sent - e->stdin_acked)
		return -EPROTO;
	e->stdin_acked += n;
	exec_feed(e);
	return 0;
}

void exec_give_order(struct exec *e, enum exec_order order)
{
	if (order > e->order)
		e->order = order;
	exec_feed(e);
}

void exec_cancel(struct exec *e, const char *why)
{
	if (!e->cancelled_for)
		e->cancelled_for = why;
	exec_give_order(e, ORDER_CANCEL);
}
