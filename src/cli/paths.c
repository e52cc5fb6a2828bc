/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds the parts of the installation and the state directory. Pure functions
 * over the environment and the file system; no state.
 */
#include "cli/paths.h"

#include "lib/owndir.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const common_parts[] = {
	"podflared",
	"podflare-vmm",
	"podflare-egress",
	"groups.json",
	"guest/vmlinux",
	"guest/initramfs.cpio",
	"guest/templates/default/template.json",
	"guest/templates/default/rootfs.erofs",
};
static const char *const box_parts[] = {"box/vmlinux", "box/initramfs.cpio", "box/programs.erofs"};

int paths_join(const struct paths *p, const char *name, char out[PATH_MAX])
{
	int n = snprintf(out, PATH_MAX, "%s/%s", p->base, name);

	return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

static bool has_part(const struct paths *p, const char *name)
{
	char path[PATH_MAX];

	return paths_join(p, name, path) == 0 && access(path, R_OK) == 0;
}

int paths_find(struct paths *p, struct err *err)
{
	struct paths installed;
	char exe[PATH_MAX];
	char *slash;
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	if (n < 0)
		return err_set(err, errno, "cannot tell where this program is (/proc/self/exe)");
	exe[n] = '\0';
	slash = strrchr(exe, '/');
	if (!slash)
		return err_text(err, EINVAL, "the path of this program, '%s', has no directory",
				exe);
	*slash = '\0';
	memcpy(p->base, exe, sizeof(p->base));
	slash = strrchr(exe, '/');
	if (has_part(p, "podflared") || !slash)
		return 0;
	*slash = '\0';
	n = snprintf(installed.base, sizeof(installed.base), "%s/lib/podflare", exe);
	if (n < (ssize_t)sizeof(installed.base) && has_part(&installed, "podflared"))
		*p = installed;
	return 0;
}

static int check_parts(const struct paths *p, const char *const *parts, size_t n, struct err *err)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < n; i++) {
		if (has_part(p, parts[i]))
			continue;
		if (errno != ENOENT && paths_join(p, parts[i], path) == 0)
			return err_set(err, errno, "cannot read %s", path);
		return err_text(err, ENOENT, "%s/%s is missing: run make first", p->base, parts[i]);
	}
	return 0;
}

int paths_check(const struct paths *p, bool box, struct err *err)
{
	int rc = check_parts(p, common_parts, ARRAY_SIZE(common_parts), err);

	if (rc == 0 && box)
		rc = check_parts(p, box_parts, ARRAY_SIZE(box_parts), err);
	return rc;
}

int paths_template_script(const struct paths *p, char out[PATH_MAX], struct err *err)
{
	static const char *const places[] = {"guest/source/template.py", "../guest/template.py"};

	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		if (paths_join(p, places[i], out) == 0 && access(out, R_OK) == 0)
			return 0;
	return err_text(err, ENOENT,
			"the sources of Podflare, which build templates, are not where %s was "
			"built: no guest/template.py",
			p->base);
}

int paths_default_state(char out[PATH_MAX], struct err *err)
{
	static const struct {
		const char *variable, *below;
	} places[] = {
		{"PODFLARE_STATE", ""},
		{"XDG_STATE_HOME", "/podflare"},
		{"HOME", "/.local/state/podflare"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		const char *base = getenv(places[i].variable);
		int n;

		if (!base || base[0] != '/')
			continue;
		n = snprintf(out, PATH_MAX, "%s%s", base, places[i].below);
		if (n >= PATH_MAX)
			return err_text(err, ENAMETOOLONG, "the path in %s is too long",
					places[i].variable);
		return 0;
	}
	return err_text(err, ENOENT, "no place for the state: HOME is not set, pass --state DIR");
}

int paths_make_state(const char *dir, struct err *err)
{
	char path[PATH_MAX];
	int rc;

	if (snprintf(path, sizeof(path), "%s", dir) >= (int)sizeof(path))
		return err_text(err, ENAMETOOLONG, "the state directory's path is too long");
	for (char *p = path + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return err_set(err, errno, "cannot make the directory %s", path);
		*p = '/';
	}
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the state directory %s", dir);
	rc = owndir_check("the state directory", dir, err);
	if (rc < 0)
		return rc;
	if (access(path, R_OK | W_OK | X_OK) < 0)
		return err_set(err, errno, "cannot write to the state directory %s", dir);
	return 0;
}
