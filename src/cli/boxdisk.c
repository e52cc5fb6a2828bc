/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes and grows the state disk. It gets its name only when it is whole: it
 * is made under the name *.new, and has the name *.grow while it is grown, so
 * that a half-made one is never used and a half-grown one is grown again. The
 * file of a half-grown one may be as large as it should be already: only
 * its name tells that it is none to be used yet.
 */
#include "cli/boxdisk.h"

#include "cli/cli.h"
#include "cli/tools.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define TOOL_LIMIT_MS 60000
#define WORDS_MAX     12

/* Runs a tool of e2fsprogs on a file. A status above `good` is an error. */
static int run_tool(const char *name, const char *const words[], char *file, int good,
		    struct err *err)
{
	char program[PATH_MAX], copies[WORDS_MAX][96], output[256];
	char *argv[WORDS_MAX + 3] = {program};
	size_t n = 0;
	int rc;

	if (tools_find(name, program) < 0)
		return err_text(err, ENOENT,
				"the emulated host needs %s, which is not installed: "
				"apt install e2fsprogs",
				name);
	for (; n < WORDS_MAX && words[n]; n++) {
		snprintf(copies[n], sizeof(copies[n]), "%s", words[n]);
		argv[n + 1] = copies[n];
	}
	argv[n + 1] = file;
	rc = tools_run(argv, TOOL_LIMIT_MS, output, sizeof(output));
	output[strcspn(output, "\n")] = '\0';
	if (rc < 0)
		return err_set(err, -rc, "%s on the state disk %s failed", name, file);
	if (rc > good)
		return err_text(err, EIO, "%s on the state disk %s failed: %s", name, file, output);
	return 0;
}

/*
 * A few large files are on it beside the database: few inodes, nothing kept
 * back for root. Nothing is written that can wait, or the file would not be sparse.
 */
static int make_filesystem(char *file, struct err *err)
{
	static const char *const words[] = {
		"-q",
		"-F",
		"-m0",
		"-i1048576",
		"-Jsize=16",
		"-Lpodflare",
		"-Elazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1",
		NULL,
	};

	return run_tool("mkfs.ext4", words, file, 0, err);
}

static int set_size(const char *file, int flags, off_t size, struct err *err)
{
	_cleanup_fd int fd = open(file, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
	int rc = fd < 0 ? -errno : ftruncate(fd, size) < 0 ? -errno : 0;

	if (rc == -EFBIG)
		return err_text(err, EFBIG,
				"the state disk %s cannot have %" PRIu64
				" GiB on this file system: "
				"pass a smaller --box-disk",
				file, (uint64_t)size >> 30);
	return rc < 0 ? err_set(err, -rc, "cannot make the state disk %s", file) : 0;
}

static int make_disk(char *file, off_t size, struct err *err)
{
	int rc;

	unlink(file); /* of a start that was killed */
	rc = set_size(file, O_CREAT | O_EXCL, size, err);
	if (rc == 0)
		rc = make_filesystem(file, err);
	if (rc < 0)
		unlink(file);
	return rc;
}

static int rename_disk(const char *from, const char *to, struct err *err)
{
	return rename(from, to) < 0 ? err_set(err, errno, "cannot name the state disk %s", to) : 0;
}

/*
 * Status 1 of e2fsck: there was something to repair, such as a journal to play
 * back. A disk that it refuses is unchanged: the caller may give it its name back.
 */
static int check_disk(char *file, struct err *err)
{
	static const char *const words[] = {"-f", "-p", NULL};

	return run_tool("e2fsck", words, file, 1, err);
}

static int grow_disk(char *file, const char *name, off_t size, struct err *err)
{
	static const char *const grow[] = {NULL};
	int rc = set_size(file, 0, size, err);

	if (rc == 0)
		rc = run_tool("resize2fs", grow, file, 0, err);
	return rc == 0 ? rename_disk(file, name, err) : rc;
}

int boxdisk_prepare(const char *dir, uint64_t gib, char out[PATH_MAX], struct err *err)
{
	char made[PATH_MAX], grown[PATH_MAX];
	off_t size = (off_t)gib << 30;
	struct stat st;
	int rc;

	if (snprintf(out, PATH_MAX, "%s/box-state.ext4", dir) >= PATH_MAX ||
	    snprintf(made, sizeof(made), "%s.new", out) >= (int)sizeof(made) ||
	    snprintf(grown, sizeof(grown), "%s.grow", out) >= (int)sizeof(grown))
		return err_text(err, ENAMETOOLONG, "the state directory's path is too long");
	if (stat(grown, &st) == 0) {
		/* What an earlier start has left gets its name back only when it is whole. */
		if (st.st_size > size)
			size = st.st_size;
		rc = check_disk(grown, err);
		if (rc < 0)
			return err_prefix(err, "an earlier start was ended while it made the state "
					       "disk larger; repair that, or remove it to begin "
					       "with an empty one");
	} else {
		if (stat(out, &st) < 0) {
			rc = make_disk(made, size, err);
			return rc == 0 ? rename_disk(made, out, err) : rc;
		}
		if (access(out, R_OK | W_OK) < 0)
			return err_set(err, errno, "cannot use the state disk %s", out);
		if (st.st_size >= size)
			return 0;
		rc = rename_disk(out, grown, err);
		if (rc < 0)
			return rc;
		rc = check_disk(grown, err);
		if (rc < 0)
			rename(grown, out);
	}
	return rc == 0 ? grow_disk(grown, out, size, err) : rc;
}

/* What is kept back for root is for QEMU, too, if that is root's. */
int boxdisk_free(const char *file, uint64_t *bytes)
{
	struct statvfs fs;

	if (statvfs(file, &fs) < 0)
		return -errno;
	*bytes = (uint64_t)fs.f_frsize * (geteuid() == 0 ? fs.f_bfree : fs.f_bavail);
	return 0;
}

void boxdisk_tell_room(const char *file)
{
	static const double gib = 1 << 30;
	uint64_t room, more;
	struct stat st;

	if (stat(file, &st) < 0 || boxdisk_free(file, &room) < 0)
		return;
	more = (uint64_t)(st.st_size - st.st_blocks * 512);
	if (st.st_size > st.st_blocks * 512 && room < more)
		cli_say("the state disk %s may take %.1f GiB more, and %.1f GiB are free there: "
			"when "
			"they are used up everything in the emulated host stands still until there "
			"is room",
			file, (double)more / gib, (double)room / gib);
}
