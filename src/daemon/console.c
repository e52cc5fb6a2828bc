/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a console ring. Its text is the guest's: whatever is shown to people
 * is cleaned here.
 */
#include "daemon/vmm_client.h"
#include "lib/cleanup.h"
#include "lib/io.h"
#include "proto/guest.h"

#include <stdlib.h>

char *vmm_console_copy(const struct vmm *v, size_t *len)
{
	_cleanup_free struct console_ring *ring = malloc(sizeof(*ring));
	uint64_t total, n;
	char *out = malloc(CONSOLE_RING_DATA + 1);

	*len = 0;
	if (!ring || !out) {
		free(out);
		return NULL;
	}
	out[0] = '\0';
	if (v->console_fd < 0 || io_pread_full(v->console_fd, ring, sizeof(*ring), 0) < 0)
		return out;
	total = ring->total;
	n = total < CONSOLE_RING_DATA ? total : CONSOLE_RING_DATA;
	for (uint64_t i = 0; i < n; i++)
		out[i] = (char)ring->data[(total - n + i) % CONSOLE_RING_DATA];
	out[n] = '\0';
	*len = n;
	return out;
}

void vmm_console_tail(const struct vmm *v, char *out, size_t len, unsigned int max_lines)
{
	size_t n = 0, start;
	_cleanup_free char *all = vmm_console_copy(v, &n);
	unsigned int lines = 0;
	size_t o = 0;

	out[0] = '\0';
	if (!all)
		return;
	while (n && (all[n - 1] == '\n' || all[n - 1] == '\r' || all[n - 1] == ' '))
		n--;
	start = n;
	while (start && n - start < len - 1) {
		if (all[start - 1] == '\n' && ++lines == max_lines)
			break;
		start--;
	}
	for (; start < n && o + 1 < len; start++) {
		char c = all[start];

		if (c == '\n' || (c >= ' ' && c <= '~'))
			out[o++] = c;
	}
	out[o] = '\0';
}
