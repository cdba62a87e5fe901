// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork_load: many short-lived processes, as in a kernel build.
 *
 * Each job is a busybox shell that starts a few programs in a pipe; each of
 * them execs, maps and touches a little memory, and exits. Several jobs run
 * at a time. This shows the effect of a series on fork, exec and exit.
 */
#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const char script[] =
	"seq 1 2000 | sed 's/1/one/g' | sort -r | awk '{ n += length($0); a[n % 64] = $0 } END { print n }' |"
	" tr 0-9 a-j | md5sum >/dev/null && seq 1 500 | gzip -c | gunzip -c | wc -l | grep -q 500";

int main(int argc, char **argv)
{
	long jobs, width, running = 0, started = 0, ended = 0;
	struct rusage usage;
	uint64_t began, took;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	jobs = option_integer("jobs");
	width = option_integer("width");
	clock_begin();
	options_done();
	fflush(stdout);
	began = ticks();
	while (ended < jobs) {
		int status;

		if (started < jobs && running < width) {
			pid_t child = fork();

			if (child < 0)
				workload_fail("cannot start job %ld: %s", started, strerror(errno));
			if (!child) {
				execlp("sh", "sh", "-c", script, NULL);
				_exit(127);
			}
			started++;
			running++;
			continue;
		}
		if (wait(&status) < 0)
			workload_fail("cannot wait for a job: %s", strerror(errno));
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			workload_fail("a job failed (wait status %#x)", status);
		running--;
		ended++;
	}
	took = ticks() - began;
	getrusage(RUSAGE_CHILDREN, &usage);

	metric_clock("job_%s.mean", took * clock_scale() / jobs);
	metric("faults.mean", "faults/job", (double)(usage.ru_minflt + usage.ru_majflt) / jobs);
	metric("rss_kib.max", "KiB", usage.ru_maxrss);
	workload_end();
}
