/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the guest of the fake driver opens, and their owner's answers.
 */
#pragma once

#include "fake_driver.h"

/* The guest's end of a connection from that port, of which nobody knows yet. */
struct fake_conn fake_guest_end(uint32_t port);

/* A packet without payload. */
void fake_guest_sends(struct fake *f, const struct fake_conn *c, enum vsock_op op);

/* The guest asks: the question's id, taken. */
uint32_t fake_guest_asks(struct fake *f, const struct fake_conn *c);

/* A socketpair whose one end is the answer, with this result: the host's end. */
int fake_answer(struct fake *f, uint32_t id, int expected);

/* The next packet is an RST of this connection. */
void fake_expect_rst(struct fake *f, const struct fake_conn *c);

/* A stream, open on both sides: the host's end. */
int fake_guest_opens(struct fake *f, struct fake_conn *c);

/* A word each way: it is this connection's. */
void fake_talk(struct fake *f, const struct fake_conn *c, int fd);

/* cmocka fixture: as fake_setup(), started, and guests may open connections. */
int fake_setup_on(void **state);
