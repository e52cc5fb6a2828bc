/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libcurl is told about a request: everything that it would decide by
 * itself is decided here.
 * Thread: any. fork: nothing.
 */
#pragma once

#include "egress/http/transfer.h"

/* Sets all options but callbacks. The lists must outlive the handle. 0 or -ENOMEM. */
__must_check int order_apply(CURL *c, const struct transfer_order *o, struct curl_slist **headers,
			     struct curl_slist **connect_to);
/*
 * Whether it may be done twice and needs no body again: such a request alone begins on a kept
 * connection, which may turn out to be closed.
 */
bool order_is_repeatable(const struct transfer_order *o);
/* Wipes and frees: there may be secrets in it. */
void order_free(struct curl_slist *list);
