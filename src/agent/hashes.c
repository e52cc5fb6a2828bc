/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HASHES: SHA-256 of files as the user sees them. Only regular files are opened,
 * through a descriptor that was looked at before; links are not followed
 * anywhere in a path, and other file systems (/proc, /run) are not entered.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/changes.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sha256.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define HASHES_BODY_MAX ((size_t)4 << 20)
/* In one turn of the loop: bytes read, and files opened. Some milliseconds. */
#define HASHES_TURN_BYTES ((size_t)1 << 20)
#define HASHES_TURN_FILES 64
#define HASHES_LINE       (SHA256_DIGEST_LENGTH * 2 + 1)

struct hashes {
	struct buf paths;
	int fd; /* of the file that is being read, -1 = none */
	SHA256_CTX sum;
};

static void hashes_free(void *job)
{
	struct hashes *h = job;

	close_fd(&h->fd);
	buf_free(&h->paths);
	free(h);
}

/* The file for reading, -1 when it has no hash. */
static int hashes_open(const struct agent *a, const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV | RESOLVE_BENEATH,
	};
	_cleanup_fd int ref = -1;
	char link[64];
	struct stat st;

	if (path[0] != '/' || path[1] == '\0')
		return -1;
	ref = (int)syscall(SYS_openat2, a->layers.root, path + 1, &how, sizeof(how));
	if (ref < 0 || fstat(ref, &st) < 0 || !S_ISREG(st.st_mode))
		return -1;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", ref);
	/* Whose owner holds a lease on it: the kernel would let us wait for that process. */
	return open(link, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

/* Reads on: true when the file is at its end (or cannot be read), with the line in out. */
static bool hashes_read(struct agent *a, struct hashes *h, size_t *budget,
			char out[HASHES_LINE + 1])
{
	uint8_t digest[SHA256_DIGEST_LENGTH];

	while (*budget) {
		ssize_t n = io_read_some(h->fd, a->scratch, sizeof(a->scratch));

		if (n > 0) {
			SHA256Update(&h->sum, a->scratch, (size_t)n);
			*budget -= (size_t)n < *budget ? (size_t)n : *budget;
			continue;
		}
		close_fd(&h->fd);
		SHA256Final(digest, &h->sum);
		for (size_t i = 0; i < sizeof(digest); i++)
			snprintf(out + 2 * i, 3, "%02x", digest[i]);
		if (n < 0)
			snprintf(out, HASHES_LINE + 1, "-\n");
		else
			snprintf(out + 2 * sizeof(digest), 2, "\n");
		return true;
	}
	return false;
}

/* The next file: true when its line is known at once. */
static bool hashes_next(struct agent *a, struct hashes *h, char out[HASHES_LINE + 1])
{
	const char *path = (const char *)buf_data(&h->paths);

	h->fd = hashes_open(a, path);
	buf_consume(&h->paths, strlen(path) + 1);
	SHA256Init(&h->sum);
	if (h->fd < 0)
		snprintf(out, HASHES_LINE + 1, "-\n");
	return h->fd < 0;
}

static void hashes_send(struct stream *s, struct hashes *h)
{
	size_t budget = HASHES_TURN_BYTES;
	char line[HASHES_LINE + 1];
	char out[HASHES_TURN_FILES * HASHES_LINE];
	size_t len = 0;

	if (stream_room(s) == 0)
		return;
	for (int i = 0; i < HASHES_TURN_FILES && budget; i++) {
		if (h->fd < 0 && buf_len(&h->paths) == 0)
			break;
		if ((h->fd < 0 && hashes_next(s->agent, h, line)) ||
		    hashes_read(s->agent, h, &budget, line)) {
			memcpy(out + len, line, strlen(line));
			len += strlen(line);
		}
	}
	if (len)
		stream_put(s, FRAME_DATA_OUT, out, len);
	if (h->fd >= 0 || buf_len(&h->paths)) {
		stream_yield(s);
		return;
	}
	stream_put(s, FRAME_END_OUT, NULL, 0);
	stream_done(s);
	hashes_free(h);
}

static void hashes_on_data(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct hashes *h = job;
	int rc = buf_append(&h->paths, p, len);

	if (rc == 0)
		return;
	if (rc == -ENOBUFS)
		stream_error(s, E2BIG, "the paths are longer than %zu bytes", HASHES_BODY_MAX);
	else
		stream_error(s, ENOMEM, "out of memory");
	hashes_free(h);
}

static void hashes_on_end(struct stream *s, void *job)
{
	struct hashes *h = job;
	size_t len = buf_len(&h->paths);

	if (len && buf_data(&h->paths)[len - 1] != '\0') {
		stream_error(s, EINVAL, "the last path does not end with a NUL byte");
		hashes_free(h);
		return;
	}
	stream_put_json(s, FRAME_OK, json_object());
	stream_yield(s);
}

static void hashes_on_room(struct stream *s, void *job)
{
	if (!s->body)
		hashes_send(s, job);
}

static const struct stream_ops hashes_ops = {
	.data = hashes_on_data,
	.end = hashes_on_end,
	.room = hashes_on_room,
	.gone = hashes_free,
};

void hashes_begin(struct stream *s)
{
	struct hashes *h = calloc(1, sizeof(*h));

	if (!h || s->agent->layers.root < 0) {
		stream_error(s, h ? ENOTSUP : ENOMEM, "there is no layer, or no memory, for this");
		free(h);
		return;
	}
	h->fd = -1;
	buf_init(&h->paths, HASHES_BODY_MAX);
	stream_set_job(s, &hashes_ops, h);
}
