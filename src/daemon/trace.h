/* SPDX-License-Identifier: Apache-2.0 */
/*
 * W3C trace context: "00-<32 hex>-<16 hex>-<2 hex>". Pure; any thread.
 * fork: no state.
 */
#pragma once

/*
 * Trace id and parent span of a traceparent header. Without a valid one the
 * trace id is new and random, and the span "".
 */
void trace_parse(const char *header, char trace_id[33], char parent_span[17]);
