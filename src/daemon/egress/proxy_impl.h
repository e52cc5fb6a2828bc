/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What proxy.c (process and socket) and proxy_msg.c (messages) share.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/egress/proxy.h"

/* One message. NULL, or what is wrong with it: the proxy is to be killed. */
const char *proxy_message(struct proxy *p, const char *text, size_t len);
