/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates: guest/template.py knows what a recipe says now and what was built
 * from it; where it cannot be asked, at least the built ones are named.
 */
#include "cli/doctor.h"
#include "cli/templates.h"
#include "cli/tools.h"

#include <stdio.h>
#include <string.h>

#define ASK_LIMIT_MS 20000

/* Appends a word to a comma list; what does not fit is left out. */
static void add_word(char *list, size_t size, const char *separator, const char *word)
{
	size_t n = strlen(list);

	snprintf(list + n, size - n, "%s%s", n ? separator : "", word);
}

/* "NAME STATE" lines of `template.py ls --plain`, with a tab between; false when it cannot tell. */
static bool ask(const struct doctor *d, char *out, size_t size)
{
	char python[PATH_MAX], script[PATH_MAX], base[PATH_MAX];
	char build[] = "--build", ls[] = "ls", plain[] = "--plain";
	char *argv[] = {python, script, build, base, ls, plain, NULL};

	memcpy(base, d->paths.base, sizeof(base));
	if (paths_template_script(&d->paths, script, NULL) < 0)
		return false;
	if (tools_find("/usr/bin/python3", python) < 0 && tools_find("python3", python) < 0)
		return false;
	return tools_run(argv, ASK_LIMIT_MS, out, size) == 0;
}

static void say_built(struct doctor *d, struct finding *f)
{
	struct templates t;
	struct err err = {0};
	char names[200] = "";

	if (templates_find(&t, &d->paths, &err) < 0) {
		f->level = FINDING_NOTE;
		doctor_found(f, "%s", err.msg);
		return;
	}
	for (size_t i = 0; i < t.n; i++)
		add_word(names, sizeof(names), ", ", t.list[i].name);
	doctor_found(f, "built: %s (whether their recipes have changed cannot be told here)",
		     names);
	templates_free(&t);
}

void doctor_check_templates(struct doctor *d)
{
	struct finding *f = doctor_add(d, FINDING_OK, "templates");
	char output[8192], ready[120] = "", other[120] = "", build[200] = "";
	char *save = NULL;

	if (!ask(d, output, sizeof(output))) {
		say_built(d, f);
		return;
	}
	for (char *line = strtok_r(output, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *state = strchr(line, '\t'), word[80];

		if (!state)
			continue;
		*state++ = '\0';
		if (strcmp(state, "ready") == 0) {
			add_word(ready, sizeof(ready), ", ", line);
			continue;
		}
		if (strncmp(state, "recipe", 6) == 0) { /* gone, or has faults */
			snprintf(word, sizeof(word), "%.32s is built, its %.30s", line, state);
		} else {
			snprintf(word, sizeof(word), "%.32s is %.30s", line, state);
			add_word(build, sizeof(build), " ", line);
		}
		add_word(other, sizeof(other), ", ", word);
		if (strcmp(state, "not built") != 0)
			f->level = FINDING_NOTE;
	}
	if (!ready[0])
		f->level = FINDING_NOTE;
	doctor_found(f, "ready: %s%s%s", ready[0] ? ready : "none", other[0] ? "; " : "", other);
	if (build[0])
		doctor_advise(f, "podflare template build %s", build);
}
