/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metadata of templates. The files are the operator's; their values are checked
 * all the same, because a wrong one would show only when a VM is made.
 */
#define _GNU_SOURCE
#include "daemon/template_file.h"
#include "daemon/image.h"
#include "daemon/limits.h"
#include "lib/cleanup.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/log.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_MAX (1u << 20)

bool template_name_valid(const char *name, size_t len)
{
	static const char first[] = "abcdefghijklmnopqrstuvwxyz0123456789";

	return len > 0 && len <= TEMPLATE_NAME_MAX && memchr(first, name[0], sizeof(first) - 1) &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") >= len;
}

void template_spec_free(struct template_spec *s)
{
	free(s->description);
	free(s->warmup);
	free(s->image_path);
	close_fd(&s->image_fd);
	*s = (struct template_spec){.image_fd = -1};
}

void template_specs_free(struct template_spec *specs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		template_spec_free(&specs[i]);
	free(specs);
}

/* Member by name: 0 also when it is absent. */
static int read_number(const json_t *o, const char *name, json_int_t min, json_int_t max,
		       uint32_t *out, const char *path, struct err *err)
{
	const json_t *v = json_object_get(o, name);

	if (!v || json_is_null(v))
		return 0;
	if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
		return err_text(err, EINVAL,
				"%s: %s must be an integer from %" JSON_INTEGER_FORMAT
				" to %" JSON_INTEGER_FORMAT,
				path, name, min, max);
	*out = (uint32_t)json_integer_value(v);
	return 0;
}

static int read_string(const json_t *o, const char *name, char **out, const char *path,
		       struct err *err)
{
	const json_t *v = json_object_get(o, name);

	if (!v || json_is_null(v))
		return 0;
	if (!json_is_string(v))
		return err_text(err, EINVAL, "%s: %s must be a string", path, name);
	*out = strdup(json_string_value(v));
	return *out ? 0 : err_set(err, ENOMEM, "cannot read %s", path);
}

static int read_members(struct template_spec *s, const json_t *o, const char *path, struct err *err)
{
	_cleanup_free char *name = NULL;
	int rc = read_string(o, "name", &name, path, err);

	if (rc == 0 && (!name || strcmp(name, s->name) != 0))
		rc = err_text(err, EINVAL, "%s: name is \"%.64s\", not \"%s\"", path,
			      name ? name : "", s->name);
	if (rc == 0)
		rc = read_string(o, "description", &s->description, path, err);
	if (rc == 0)
		rc = read_string(o, "warmup", &s->warmup, path, err);
	if (rc == 0)
		rc = read_number(o, "memory_mib", LIMIT_MEMORY_MIN_MIB, LIMIT_MEMORY_MAX_MIB,
				 &s->memory_mib, path, err);
	if (rc == 0)
		rc = read_number(o, "vcpus", 1, LIMIT_VCPUS_MAX, &s->vcpus, path, err);
	if (rc == 0)
		rc = read_number(o, "disk_mib", LIMIT_DISK_MIN_MIB, LIMIT_DISK_MAX_MIB,
				 &s->disk_mib, path, err);
	return rc;
}

static int read_json(struct template_spec *s, const char *path, struct err *err)
{
	_cleanup_free char *text = NULL;
	_cleanup_fd int fd = io_open_data(path);
	json_error_t e;
	json_t *o;
	size_t len;
	int rc = fd < 0 ? fd : io_read_rest(fd, JSON_MAX, &text, &len);

	if (fd == -EINVAL)
		return err_text(err, EINVAL, "%s is not a file", path);
	if (rc < 0)
		return err_set(err, -rc, "cannot read %s", path);
	o = json_safe_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
	if (!json_is_object(o))
		rc = err_text(err, EINVAL, "%s is not a JSON object: line %d: %s", path, e.line,
			      o ? "something else" : e.text);
	else
		rc = read_members(s, o, path, err);
	json_decref(o);
	return rc;
}

/* More than the host has would only take turns, and each turn costs a switch. */
static uint32_t default_vcpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return DEFAULT_VCPUS; /* more processors than a cpu_set_t has */
	return CPU_COUNT(&set) < DEFAULT_VCPUS ? (uint32_t)CPU_COUNT(&set) : DEFAULT_VCPUS;
}

/* json NULL: no metadata. */
static int spec_make(struct template_spec *s, const char *name, size_t name_len, const char *json,
		     const char *image, struct err *err)
{
	int rc;

	*s = (struct template_spec){.image_fd = -1,
				    .memory_mib = DEFAULT_MEMORY_MIB,
				    .vcpus = default_vcpus(),
				    .disk_mib = DEFAULT_DISK_MIB};
	if (!template_name_valid(name, name_len))
		return err_text(err, EINVAL,
				"\"%.*s\" is not a name of a template: small letters, digits, - "
				"and _, at most %d",
				(int)(name_len > 80 ? 80 : name_len), name, TEMPLATE_NAME_MAX);
	memcpy(s->name, name, name_len);
	s->image_path = strdup(image);
	rc = s->image_path ? 0 : err_set(err, ENOMEM, "templates");
	if (rc == 0 && json)
		rc = read_json(s, json, err);
	if (rc == 0)
		rc = image_open_root(image, &s->image_bytes, &s->image_fd, err);
	if (rc < 0)
		template_spec_free(s);
	return rc;
}

/* NAME=JSON=IMAGE */
static int spec_from_option(struct template_spec *s, const char *option, struct err *err)
{
	const char *json = strchr(option, '='), *image = json ? strchr(json + 1, '=') : NULL;
	_cleanup_free char *path = NULL;

	if (!image || image == json + 1 || !image[1])
		return err_text(err, EINVAL, "--template is \"%.200s\", not NAME=JSON=IMAGE",
				option);
	path = strndup(json + 1, (size_t)(image - json - 1));
	if (!path)
		return err_set(err, ENOMEM, "templates");
	return spec_make(s, option, (size_t)(json - option), path, image + 1, err);
}

static int specs_from_options(struct template_spec *specs, size_t *n, const struct config *c,
			      struct err *err)
{
	for (unsigned int i = 0; i < c->ntemplates; i++) {
		int rc = spec_from_option(&specs[*n], c->templates[i], err);

		if (rc < 0)
			return rc;
		++*n;
		for (size_t j = 0; j + 1 < *n; j++)
			if (strcmp(specs[j].name, specs[*n - 1].name) == 0)
				return err_text(err, EINVAL, "--template %s is given twice",
						specs[j].name);
	}
	return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	bool da = strcmp((*a)->d_name, "default") == 0, db = strcmp((*b)->d_name, "default") == 0;

	return da != db ? db - da : strcmp((*a)->d_name, (*b)->d_name);
}

static int no_dots(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

/* DIR/templates/NAME/{template.json,rootfs.erofs}; `default` first, then by name. */
static void specs_from_dir(struct template_spec *specs, size_t *n, const char *guest)
{
	char dir[4096], json[4400], image[4400];
	struct dirent **names = NULL;
	int count;

	snprintf(dir, sizeof(dir), "%s/templates", guest);
	count = scandir(dir, &names, no_dots, by_name);
	for (int i = 0; i < count; i++) {
		const char *name = names[i]->d_name;
		struct err err = {0};

		snprintf(json, sizeof(json), "%s/%s/template.json", dir, name);
		snprintf(image, sizeof(image), "%s/%s/rootfs.erofs", dir, name);
		if (*n == CONFIG_TEMPLATES_MAX)
			log_warn("template %s is left out: there are too many", name);
		else if (spec_make(&specs[*n], name, strlen(name), json, image, &err) < 0)
			log_warn("template %s is left out: %s", name, err.msg);
		else
			++*n;
		free(names[i]);
	}
	free(names);
}

int template_specs_load(struct template_spec **out, size_t *n, const struct config *c,
			struct err *err)
{
	struct template_spec *specs = calloc(CONFIG_TEMPLATES_MAX + 1, sizeof(*specs));
	int rc;

	*n = 0;
	if (!specs)
		return err_set(err, ENOMEM, "templates");
	rc = specs_from_options(specs, n, c, err);
	if (rc == 0 && *n == 0 && !c->image_given)
		specs_from_dir(specs, n, c->guest_dir);
	if (rc == 0 && *n == 0) {
		rc = spec_make(&specs[0], "default", 7, NULL, c->image_path, err);
		*n = rc == 0;
	}
	if (rc < 0) {
		template_specs_free(specs, *n);
		*n = 0;
		return rc;
	}
	*out = specs;
	return 0;
}
