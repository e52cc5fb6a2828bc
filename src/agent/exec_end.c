/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EXIT: how a call has ended, in the words of the protocol. Stateless.
 */
#include "agent/exec.h"
#include "agent/output.h"
#include "lib/io.h"

#include <signal.h>
#include <sys/wait.h>

#define EXEC_EXIT_TIMEOUT     124
#define EXEC_EXIT_OVER_LIMIT  (128 + SIGXFSZ)
#define EXEC_EXIT_INTERRUPTED (128 + SIGINT)

void exec_end_from_wait(struct exec_end *e, int wstatus)
{
	e->signal = WIFSIGNALED(wstatus) ? WTERMSIG(wstatus) : 0;
	e->exit_code = e->signal ? 128 + e->signal : WEXITSTATUS(wstatus);
}

static const char *exec_end_reason(const struct exec_end *e)
{
	if (e->stop == EXEC_TIMED_OUT)
		return "timeout";
	if (e->stop == EXEC_CANCELLED)
		return "cancelled";
	if (e->stop == EXEC_OVER_LIMIT)
		return "output_limit";
	if (e->stop == EXEC_INTERRUPTED && e->exit_code == EXEC_EXIT_INTERRUPTED)
		return "interrupted";
	if (e->oom && e->exit_code != 0)
		return "oom";
	return e->signal ? "signaled" : "exited";
}

static int exec_end_code(const struct exec_end *e)
{
	if (e->stop == EXEC_TIMED_OUT)
		return EXEC_EXIT_TIMEOUT;
	return e->stop == EXEC_OVER_LIMIT ? EXEC_EXIT_OVER_LIMIT : e->exit_code;
}

json_t *exec_exit_object(const struct exec_end *e, struct output *o)
{
	uint64_t end_ns = e->end_ns ? e->end_ns : io_now_ns();
	uint64_t ns = e->start_ns ? end_ns - e->start_ns : 0;
	json_t *obj = json_pack("{s:i, s:s, s:s, s:I}", "exit_code", exec_end_code(e), "reason",
				exec_end_reason(e), "state", e->lost ? "lost" : "preserved",
				"duration_ms", (json_int_t)(ns / 1000000));

	if (obj && e->signal)
		json_object_set_new(obj, "signal", json_integer(e->signal));
	if (obj && o)
		output_report(o, obj, e->dropped);
	else if (obj)
		json_object_update_new(obj,
				       json_pack("{s:b, s:i}", "truncated", 0, "bytes_dropped", 0));
	return obj;
}
