// SPDX-License-Identifier: GPL-2.0-only
/*
 * stress_ng: a stressor of stress-ng(1) that does a fixed number of operations
 * and verifies the contents of memory.
 *
 * stress-ng usually counts operations in a given time. Here the time of a
 * given number of operations is measured, so that every kernel does the same
 * work, and the result is also valid with a clock of instructions.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOG "/tmp/stress_ng.log"
#define MOST_WORDS 24
/* stress-ng(1), "EXIT STATUS": not enough resources, or not implemented. */
#define NO_RESOURCE 3
#define NOT_IMPLEMENTED 4

static const char *const stressors[] = { "vm",	  "vm-rw", "madvise", "mmap", "mremap",
					 "mlock", "brk",   "fork",    NULL };
/* The option for the amount of memory; NULL if there is none. */
static const char *const sizes[] = {
	"--vm-bytes", "--vm-rw-bytes", NULL, "--mmap-bytes", "--mremap-bytes",
	NULL,	      "--brk-bytes",   NULL
};

/* The last output of stress-ng, without characters that would end a JSON string. */
static const char *last_words(void)
{
	static char text[256];
	FILE *log = fopen(LOG, "r");
	char line[256];

	while (log && fgets(line, sizeof(line), log))
		if (strstr(line, "fail:") || strstr(line, "error:"))
			snprintf(text, sizeof(text), "%s", line);
	if (log)
		fclose(log);
	for (char *each = text; *each; each++)
		if (*each == '"' || *each == '\\' || (unsigned char)*each < ' ')
			*each = ' ';
	return *text ? text : "it printed nothing";
}

static _Noreturn void stress(const char *const *words)
{
	int log = open(LOG, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	execvp(words[0], (char *const *)words);
	_exit(127);
}

int main(int argc, char **argv)
{
	const char *words[MOST_WORDS], **end = words;
	char which[32], count[32], operations[32], limit[32], bytes[32];
	struct rusage usage;
	uint64_t began, took;
	long wanted, memory;
	int stressor, status;
	pid_t child;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	stressor = option_choice("stressor", stressors);
	wanted = option_integer("operations");
	memory = option_integer("memory");
	snprintf(which, sizeof(which), "--%s", stressors[stressor]);
	snprintf(count, sizeof(count), "%ld", option_integer("instances"));
	snprintf(limit, sizeof(limit), "--%s-ops", stressors[stressor]);
	snprintf(operations, sizeof(operations), "%ld", wanted);
	snprintf(bytes, sizeof(bytes), "%ld", memory);
	clock_begin();
	options_done();

	*end++ = "stress-ng";
	*end++ = "--verify";
	*end++ = "--no-rand-seed";
	*end++ = "--oomable";
	*end++ = "--temp-path";
	*end++ = "/tmp";
	*end++ = which;
	*end++ = count;
	*end++ = limit;
	*end++ = operations;
	if (sizes[stressor]) {
		*end++ = sizes[stressor];
		*end++ = bytes;
	}
	*end = NULL;

	fflush(stdout);
	began = ticks();
	child = fork();
	if (child < 0)
		workload_fail("cannot start stress-ng: %s", strerror(errno));
	if (!child)
		stress(words);
	if (waitpid(child, &status, 0) < 0)
		workload_fail("cannot wait for stress-ng: %s", strerror(errno));
	took = ticks() - began;
	if (!WIFEXITED(status))
		workload_fail("stress-ng was killed by signal %d: %s", WTERMSIG(status),
			      last_words());
	if (WEXITSTATUS(status) == 127)
		workload_fail("stress-ng did not start: is it in this image?");
	if (WEXITSTATUS(status) == NO_RESOURCE || WEXITSTATUS(status) == NOT_IMPLEMENTED)
		workload_fail("this guest lacks what the stressor %s needs: %s",
			      stressors[stressor], last_words());
	if (WEXITSTATUS(status))
		workload_fail("stress-ng found an error (exit status %d): %s", WEXITSTATUS(status),
			      last_words());
	getrusage(RUSAGE_CHILDREN, &usage);

	metric_clock("operation_%s.mean", took * clock_scale() / wanted);
	metric("faults.mean", "faults/operation",
	       (double)(usage.ru_minflt + usage.ru_majflt) / wanted);
	metric("rss_kib.max", "KiB", usage.ru_maxrss);
	workload_end();
}
