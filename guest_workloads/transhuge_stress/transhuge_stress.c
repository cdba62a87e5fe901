// SPDX-License-Identifier: GPL-2.0-only
/*
 * transhuge_stress: runs the kernel's transhuge-stress (selftests/mm).
 *
 * In a loop over a mapping, it writes to each range, checks whether that made
 * the range huge, and frees all but its last page, so that huge pages are
 * split and memory becomes fragmented.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NS_PER_MS 1e6
#define LOG "/tmp/transhuge_stress.log"

static _Noreturn void stress(const char *seconds, const char *mebibytes)
{
	int log = open(LOG, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	execlp("transhuge-stress", "transhuge-stress", "-d", seconds, mebibytes, (char *)NULL);
	_exit(127);
}

int main(int argc, char **argv)
{
	double ms, slowest_ms = 0, sum_ms = 0;
	long succeeded, failed, different, sum_succeeded = 0, sum_failed = 0, loops = 0;
	char seconds[32], mebibytes[32], line[256];
	int status;
	pid_t child;
	FILE *log;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	snprintf(seconds, sizeof(seconds), "%ld", option_integer("seconds"));
	snprintf(mebibytes, sizeof(mebibytes), "%lu", option_integer("memory") / MIB);
	clock_begin();
	options_done();
	fflush(stdout);

	child = fork();
	if (child < 0)
		workload_fail("cannot start transhuge-stress: %s", strerror(errno));
	if (!child)
		stress(seconds, mebibytes);
	if (waitpid(child, &status, 0) < 0)
		workload_fail("cannot wait for transhuge-stress: %s", strerror(errno));
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		workload_fail("transhuge-stress did not start: is it in this image?");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		workload_fail("transhuge-stress failed (wait status %#x)", status);

	log = fopen(LOG, "r");
	while (log && fgets(line, sizeof(line), log)) {
		/* Its "page" is a huge page, in microseconds, which is more precise than the time of a loop. */
		if (sscanf(line,
			   "# %*f s/loop, %lf ms/page, %*f MiB/s %ld succeed, %ld failed, %ld different",
			   &ms, &succeeded, &failed, &different) != 4)
			continue;
		loops++;
		sum_ms += ms;
		slowest_ms = ms > slowest_ms ? ms : slowest_ms;
		sum_succeeded += succeeded;
		sum_failed += failed;
	}
	if (!loops)
		workload_fail("transhuge-stress reported no loop");

	/* It reads the guest's clock, which with icount advances by a nanosecond per instruction. */
	metric_clock("range_%s.mean", sum_ms / loops * NS_PER_MS);
	metric_clock("range_%s.max", slowest_ms * NS_PER_MS);
	metric("made_huge.percent", "%", 100.0 * sum_succeeded / (sum_succeeded + sum_failed));
	metric("loops.total", "loops", loops);
	workload_end();
}
