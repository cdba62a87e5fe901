// SPDX-License-Identifier: GPL-2.0-only
/*
 * command: runs any program and measures it from outside.
 *
 *	command --clock CLOCK -- PROGRAM [ARGUMENT]...
 *
 * Both outputs of the program go to the standard error of this one, which
 * prints JSON lines to its standard output as every workload does.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define NS_PER_US 1000ULL

static uint64_t ns_of(struct timeval time)
{
	return time.tv_sec * NS_PER_S + time.tv_usec * NS_PER_US;
}

int main(int argc, char **argv)
{
	int options = 1, start[2], status, error = 0;
	struct rusage usage;
	uint64_t began, took;
	pid_t child;

	while (options < argc && strcmp(argv[options], "--"))
		options++;
	workload_begin(options, argv);
	if (options + 1 >= argc)
		workload_fail("there is no program to run");
	argv += options + 1;
	clock_begin();
	options_done();

	/* Closed by exec(2); else it tells why there was none. */
	if (pipe2(start, O_CLOEXEC) < 0)
		workload_fail("cannot make a pipe: %s", strerror(errno));
	fflush(stdout);
	began = ticks();
	child = fork();
	if (child < 0)
		workload_fail("cannot start the program: %s", strerror(errno));
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execvp(argv[0], argv);
		error = errno;
		if (write(start[1], &error, sizeof(error)) < 0)
			_exit(126);
		_exit(127);
	}
	close(start[1]);
	if (read(start[0], &error, sizeof(error)) == (ssize_t)sizeof(error))
		workload_fail("the guest cannot run the program: %s%s", strerror(error),
			      error == ENOENT ? " (--copy-in brings it into the guest)" : "");
	if (wait4(child, &status, 0, &usage) < 0)
		workload_fail("cannot wait for the program: %s", strerror(errno));
	took = ticks() - began;
	if (WIFSIGNALED(status))
		workload_fail("the program was killed by signal %d (%s)", WTERMSIG(status),
			      strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status))
		workload_fail("the program ended with exit status %d", WEXITSTATUS(status));

	metric_clock("run_%s.sum", took * clock_scale());
	/* With icount a nanosecond of the guest is an instruction. */
	metric_clock("cpu_%s.sum", ns_of(usage.ru_utime) + ns_of(usage.ru_stime));
	metric("rss_kib.max", "KiB", usage.ru_maxrss);
	metric("faults.total", "faults", usage.ru_minflt + usage.ru_majflt);
	workload_end();
}
