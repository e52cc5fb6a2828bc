/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `podflare` prepares for the daemon: the list of templates, what the
 * emulated host is told about them, and its state disk. Files are real, in a
 * temporary directory; the tools of e2fsprogs run.
 */
#define _GNU_SOURCE
#include "tree.h"
#include "unit.h"

#include "cli/boxdisk.h"
#include "cli/boxhost.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct place {
	struct paths paths; /* an installation in a temporary directory */
};

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	strcpy(p->paths.base, "/tmp/cli-host.XXXXXX");
	assert_non_null(mkdtemp(p->paths.base));
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;

	tree_remove(p->paths.base);
	free(p);
	return 0;
}

static void path_of(const struct place *p, const char *name, char out[PATH_MAX])
{
	assert_int_equal(paths_join(&p->paths, name, out), 0);
}

static void make_folder(const struct place *p, const char *name)
{
	char path[PATH_MAX];

	path_of(p, name, path);
	for (char *c = path + strlen(p->paths.base) + 1; *c; c++) {
		if (*c != '/')
			continue;
		*c = '\0';
		mkdir(path, 0755);
		*c = '/';
	}
	mkdir(path, 0755);
}

static void make_file(const struct place *p, const char *name, const char *text)
{
	char path[PATH_MAX];
	int fd;

	path_of(p, name, path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
	close(fd);
}

static void make_template(const struct place *p, const char *name)
{
	char path[PATH_MAX / 2];

	snprintf(path, sizeof(path), "guest/templates/%s", name);
	make_folder(p, path);
	snprintf(path, sizeof(path), "guest/templates/%s/template.json", name);
	make_file(p, path, name);
	snprintf(path, sizeof(path), "guest/templates/%s/rootfs.erofs", name);
	make_file(p, path, "image");
}

static void test_templates_in_order(void **state)
{
	static const char *const names[] = {"zebra", "default", "a1", "b"};
	static const char *const order[] = {"default", "a1", "b", "zebra"};
	struct place *p = *state;
	struct templates t;
	char path[PATH_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		make_template(p, names[i]);
	/* No templates: another program's folders. */
	make_template(p, "Upper");
	make_template(p, ".hidden");
	make_template(p, "-dash");
	make_template(p, "a23456789012345678901234567890123");
	assert_int_equal(templates_find(&t, &p->paths, NULL), 0);
	assert_int_equal(t.n, ARRAY_SIZE(order));
	for (size_t i = 0; i < t.n; i++)
		assert_string_equal(t.list[i].name, order[i]);
	assert_int_equal(t.incomplete, 0);
	path_of(p, "guest/templates/a1/rootfs.erofs", path);
	assert_string_equal(t.list[1].image, path);
	path_of(p, "guest/templates/a1/template.json", path);
	assert_string_equal(t.list[1].json, path);
	templates_free(&t);
}

static void test_template_that_is_not_whole(void **state)
{
	struct place *p = *state;
	struct templates t;
	char path[PATH_MAX];

	make_template(p, "default");
	make_template(p, "a");
	make_template(p, "b");
	path_of(p, "guest/templates/a/template.json", path);
	unlink(path);
	path_of(p, "guest/templates/b/rootfs.erofs", path);
	unlink(path);
	assert_int_equal(symlink("/nowhere", path), 0);
	assert_int_equal(templates_find(&t, &p->paths, NULL), 0);
	assert_int_equal(t.n, 1);
	assert_int_equal(t.incomplete, 2);
	templates_free(&t);
}

static void test_no_default(void **state)
{
	struct place *p = *state;
	struct templates t;
	struct err err = {0};

	assert_int_equal(templates_find(&t, &p->paths, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "guest/templates/default is missing: run make first"));
	make_template(p, "other");
	assert_int_equal(templates_find(&t, &p->paths, NULL), -ENOENT);
}

static void test_too_many_templates(void **state)
{
	struct qemu_config *c = calloc(1, sizeof(*c));
	struct place *p = *state;
	struct templates t;
	struct err err = {0};
	char name[16];

	make_template(p, "default");
	for (int i = 1; i < TEMPLATES_MAX; i++) {
		snprintf(name, sizeof(name), "t%d", i);
		make_template(p, name);
	}
	assert_int_equal(templates_find(&t, &p->paths, NULL), 0);
	assert_int_equal(t.n, TEMPLATES_MAX);
	c->paths = &p->paths;
	assert_int_equal(boxhost_add_disks(c, &t, &err), -E2BIG);
	assert_non_null(strstr(err.msg, "at most 16 templates and there are 64"));
	templates_free(&t);
	make_template(p, "one-more");
	assert_int_equal(templates_find(&t, &p->paths, NULL), -E2BIG);
	free(c);
}

static void test_option_of_the_daemon(void **state)
{
	_cleanup_free char *word = NULL;

	(void)state;
	assert_int_equal(templates_option("a", "/b c/x.json", "/d", &word, NULL), 0);
	assert_string_equal(word, "a=/b c/x.json=/d");
	assert_int_equal(templates_option("a", "/b=c", "/d", &word, NULL), -EINVAL);
	assert_int_equal(templates_option("a", "/b", "/d=e", &word, NULL), -EINVAL);
}

/* Serial numbers, files and the list say the same. */
static void test_what_the_emulated_host_is_told(void **state)
{
	static const char want[] = "file t0.json 644 7\ndefaultfile t1.json 644 4\nmorefile "
				   "templates 644 19\ndefault t0\nmore t1\n";
	struct qemu_config *c = calloc(1, sizeof(*c));
	struct place *p = *state;
	struct templates t;
	struct box b = {0};

	make_template(p, "default");
	make_template(p, "more");
	assert_int_equal(templates_find(&t, &p->paths, NULL), 0);
	c->paths = &p->paths;
	assert_int_equal(boxhost_add_disks(c, &t, NULL), 0);
	assert_int_equal(c->ndisks, 3);
	assert_string_equal(c->disks[0].serial, "programs");
	assert_string_equal(c->disks[1].serial, "t0");
	assert_string_equal(c->disks[1].path, t.list[0].image);
	assert_string_equal(c->disks[2].serial, "t1");
	assert_string_equal(c->disks[2].path, t.list[1].image);
	for (size_t i = 0; i < c->ndisks; i++)
		assert_true(c->disks[i].readonly);
	buf_init(&b.orders, 4096);
	assert_int_equal(boxhost_give_templates(&b, &t, NULL), 0);
	assert_int_equal(buf_len(&b.orders), strlen(want));
	assert_memory_equal(buf_data(&b.orders), want, strlen(want));
	buf_free(&b.orders);
	templates_free(&t);
	free(c);
}

/* Blocks of the file system, from its superblock; 0: there is none. */
static uint64_t blocks_in(const char *file)
{
	_cleanup_fd int fd = open(file, O_RDONLY);
	uint8_t super[1024];
	uint32_t blocks;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, super, sizeof(super), 1024), sizeof(super));
	memcpy(&blocks, super + 4, sizeof(blocks));
	return super[56] == 0x53 && super[57] == 0xef ? blocks : 0;
}

static void assert_disk(const char *file, uint64_t gib)
{
	struct stat st;

	assert_int_equal(stat(file, &st), 0);
	assert_int_equal(st.st_size, (off_t)gib << 30);
	assert_int_equal(blocks_in(file), gib << 18);
	assert_in_range(st.st_blocks, 1, 32768); /* at most 16 MiB are taken of it */
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_disk_is_made_and_grown(void **state)
{
	struct place *p = *state;
	char file[PATH_MAX], again[PATH_MAX], grown[PATH_MAX + 8];

	assert_int_equal(boxdisk_prepare(p->paths.base, 2, file, NULL), 0);
	assert_disk(file, 2);
	assert_int_equal(boxdisk_prepare(p->paths.base, 64, again, NULL), 0);
	assert_string_equal(again, file);
	assert_disk(file, 64);
	assert_int_equal(boxdisk_prepare(p->paths.base, 8, file, NULL), 0);
	assert_disk(file, 64);
	/* Killed while it grew: the size may be right already, the file system not. */
	snprintf(grown, sizeof(grown), "%s.grow", file);
	assert_int_equal(rename(file, grown), 0);
	assert_int_equal(truncate(grown, (off_t)100 << 30), 0);
	assert_int_equal(boxdisk_prepare(p->paths.base, 64, file, NULL), 0);
	assert_disk(file, 100);
	assert_int_equal(access(grown, F_OK), -1);
}

/* A disk that cannot be read is left as it is, under its name. */
static void test_damaged_disk_is_not_grown(void **state)
{
	struct place *p = *state;
	struct err err = {0};
	char file[PATH_MAX];
	struct stat st;

	make_file(p, "box-state.ext4", "no file system");
	assert_int_equal(boxdisk_prepare(p->paths.base, 2, file, &err), -EIO);
	assert_non_null(strstr(err.msg, "e2fsck on the state disk"));
	assert_int_equal(stat(file, &st), 0);
	assert_int_equal(st.st_size, 14);
}

/* One that an earlier start has made larger already is not used by the start after one that could
 * not grow it. */
static void test_half_grown_disk_is_never_used(void **state)
{
	struct place *p = *state;
	char file[PATH_MAX], grown[PATH_MAX + 32];
	struct stat st;

	make_file(p, "box-state.ext4.grow", "half");
	snprintf(grown, sizeof(grown), "%s/box-state.ext4.grow", p->paths.base);
	assert_int_equal(truncate(grown, (off_t)2 << 30), 0);
	for (int start = 0; start < 3; start++) {
		struct err err = {0};

		assert_int_equal(boxdisk_prepare(p->paths.base, 2, file, &err), -EIO);
		assert_non_null(strstr(err.msg, "e2fsck on the state disk"));
		assert_int_equal(access(file, F_OK), -1);
		assert_int_equal(stat(grown, &st), 0);
		assert_int_equal(st.st_size, (off_t)2 << 30);
	}
}

/* A half-made disk of a killed start is made again. */
static void test_half_made_disk(void **state)
{
	struct place *p = *state;
	char file[PATH_MAX];

	make_file(p, "box-state.ext4.new", "half");
	assert_int_equal(boxdisk_prepare(p->paths.base, 1, file, NULL), 0);
	assert_disk(file, 1);
}

int main(void)
{
#define WITH_PLACE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		WITH_PLACE(test_templates_in_order),
		WITH_PLACE(test_template_that_is_not_whole),
		WITH_PLACE(test_no_default),
		WITH_PLACE(test_too_many_templates),
		WITH_PLACE(test_what_the_emulated_host_is_told),
		WITH_PLACE(test_disk_is_made_and_grown),
		WITH_PLACE(test_damaged_disk_is_not_grown),
		WITH_PLACE(test_half_grown_disk_is_never_used),
		WITH_PLACE(test_half_made_disk),
		cmocka_unit_test(test_option_of_the_daemon),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
