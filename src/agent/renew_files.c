/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a renewal.
 */
#define _GNU_SOURCE
#include "agent/renew.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define RENEW_HOSTS_MAX  65536
#define RENEW_STATE_SIZE 256

/* 1 when the file was there with that size, and has been written; 0 when it is not so. */
static int renew_in_place(int dirfd, const char *name, const char *text, size_t len)
{
	_cleanup_fd int fd = openat(dirfd, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	int rc;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size != (off_t)len)
		return 0;
	rc = io_pwrite_full(fd, text, len, 0);
	return rc < 0 ? rc : 1;
}

static int renew_replace(int dirfd, const char *name, const char *text, size_t len)
{
	char temp[64];
	int rc;

	snprintf(temp, sizeof(temp), ".%s.new", name);
	unlinkat(dirfd, temp, 0);
	{
		_cleanup_fd int fd =
			openat(dirfd, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

		if (fd < 0)
			return -errno;
		rc = io_write_full(fd, text, len);
	}
	if (rc == 0 && renameat(dirfd, temp, dirfd, name) < 0)
		rc = -errno;
	if (rc < 0)
		unlinkat(dirfd, temp, 0);
	return rc;
}

/* Of a file that is a mount point, which nothing can replace. */
static int renew_overwrite(int dirfd, const char *name, const char *text, size_t len)
{
	_cleanup_fd int fd =
		openat(dirfd, name, O_WRONLY | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	return fd < 0 ? -errno : io_write_full(fd, text, len);
}

int renew_write(const char *dir, const char *name, const char *text)
{
	_cleanup_fd int dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int rc;

	if (dirfd < 0)
		return -errno;
	rc = renew_in_place(dirfd, name, text, strlen(text));
	if (rc == 0)
		rc = renew_replace(dirfd, name, text, strlen(text));
	if (rc == -EBUSY)
		rc = renew_overwrite(dirfd, name, text, strlen(text));
	return rc < 0 ? rc : 0;
}

/* NULL when there is no such file, or something else: it is root's to change, and may be a pipe. */
static char *renew_read_hosts(const char *path)
{
	_cleanup_fd int fd = io_open_data(path);
	int64_t size = fd < 0 ? -1 : io_size(fd);
	char *text;

	if (size < 0 || size > RENEW_HOSTS_MAX)
		return NULL;
	text = calloc(1, (size_t)size + 1);
	if (text && io_pread_full(fd, text, (size_t)size, 0) == 0)
		return text;
	free(text);
	return NULL;
}

/* Puts "127.0.1.1 name" into hosts: sudo and others look their own host up. */
static int renew_hosts(const char *etc_dir, const char *name)
{
	static const char key[] = "127.0.1.1";
	_cleanup_free char *old = NULL, *text = NULL;
	char path[256];
	size_t len = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/hosts", etc_dir);
	old = renew_read_hosts(path);
	if (!old)
		old = strdup("127.0.0.1\tlocalhost\n");
	f = old ? open_memstream(&text, &len) : NULL;
	if (!f)
		return -ENOMEM;
	for (char *line = old, *end; *line; line = end) {
		end = strchrnul(line, '\n');
		if (strncmp(line, key, strlen(key)) != 0)
			fprintf(f, "%.*s\n", (int)(end - line), line);
		end += *end == '\n';
	}
	fprintf(f, "%s\t%s\n", key, name);
	if (fclose(f) != 0)
		return -ENOMEM;
	return renew_write(etc_dir, "hosts", text);
}

int renew_etc(const char *etc_dir, const struct request_renew *r, struct err *err)
{
	char line[80];
	int rc;

	snprintf(line, sizeof(line), "%s\n", r->hostname);
	rc = renew_write(etc_dir, "hostname", line);
	if (rc == 0)
		rc = renew_hosts(etc_dir, r->hostname);
	if (rc < 0)
		return err_set(err, -rc, "cannot write the host name to %s", etc_dir);
	snprintf(line, sizeof(line), "%s\n", r->machine_id);
	rc = renew_write(etc_dir, "machine-id", line);
	return rc < 0 ? err_set(err, -rc, "cannot write %s/machine-id", etc_dir) : 0;
}

int renew_run(const char *run_dir, const struct request_renew *r, struct err *err)
{
	char line[80];
	int rc;

	snprintf(line, sizeof(line), "%s\n", r->id);
	rc = renew_write(run_dir, "sandbox-id", line);
	if (rc == 0) {
		snprintf(line, sizeof(line), "%" PRId64 "\n", r->generation);
		rc = renew_write(run_dir, "fork-generation", line);
	}
	return rc < 0 ? err_set(err, -rc, "cannot write the files of %s", run_dir) : 0;
}

int renew_state(const char *run_dir, const struct request_renew *r, unsigned serial, bool hold,
		bool done)
{
	char text[RENEW_STATE_SIZE], line[RENEW_STATE_SIZE + 1];

	/* No value needs to be escaped (request.c). */
	snprintf(text, sizeof(text),
		 "{\"id\":\"%s\",\"kind\":\"%s\",\"generation\":%" PRId64
		 ",\"reseed\":%s,\"serial\":%u,\"hold\":%s,\"done\":%s}",
		 r->id, request_kind_name(r->kind), r->generation, r->reseed ? "true" : "false",
		 serial, hold ? "true" : "false", done ? "true" : "false");
	/* Of one size, so that it is written in place. */
	snprintf(line, sizeof(line), "%-*s\n", RENEW_STATE_SIZE - 1, text);
	return renew_write(run_dir, "fork.json", line);
}
