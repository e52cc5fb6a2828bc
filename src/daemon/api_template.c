/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/templates.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"

void api_template_list(struct request *r)
{
	struct templates *ts = &r->http->d->templates;
	json_t *all = json_array();

	for (size_t i = 0; all && i < ts->n; i++) {
		if (json_array_append_new(all, template_json(&ts->all[i], r->owner)) < 0) {
			json_decref(all);
			all = NULL;
		}
	}
	reply_json(r, 200, all ? json_pack("{s:o}", "templates", all) : NULL);
}
