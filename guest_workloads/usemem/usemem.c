// SPDX-License-Identifier: GPL-2.0-only
/*
 * usemem: processes that fill anonymous memory page by page, as usemem of
 * vm-scalability does, and give it back.
 */
#include "workload.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a process measures, in ticks; shared with its parent. */
struct result {
	uint64_t first, again, unmap;
};

/* Begins when all processes are there, so that they run at the same time. */
static void wait_for_start(const int *start)
{
	char byte;

	close(start[1]);
	if (read(start[0], &byte, 1) < 0)
		_exit(2);
}

static uint64_t write_pages(volatile char *memory, size_t size, int pass)
{
	uint64_t began = ticks();

	for (size_t offset = 0; offset < size; offset += PAGE)
		memory[offset] = pass + 1;
	return ticks() - began;
}

static _Noreturn void use(size_t size, long passes, int advice, struct result *result)
{
	char *memory = map_regions(size);
	uint64_t began;

	if (!memory)
		_exit(ENOMEM);
	advise(memory, size, advice);
	for (long pass = 0; pass < passes; pass++) {
		uint64_t took = write_pages(memory, size, pass);

		if (pass)
			result->again += took;
		else
			result->first = took;
	}
	for (size_t offset = 0; offset < size; offset += PAGE)
		if (memory[offset] != (char)passes)
			_exit(EBADMSG);
	began = ticks();
	munmap(memory, size);
	result->unmap = ticks() - began;
	_exit(0);
}

int main(int argc, char **argv)
{
	long processes, memory, passes;
	struct node nodes[MAX_NODES];
	uint64_t began, took;
	double first = 0, again = 0, unmap = 0, pages;
	int advice, node_count, status, start[2], failed = 0;
	struct rusage usage;
	struct result *results;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	processes = option_integer("processes");
	memory = option_integer("memory") & ~(long)(PAGE - 1);
	passes = option_integer("passes");
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	node_count = nodes_find(nodes);

	results = mmap(NULL, processes * sizeof(*results), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (results == MAP_FAILED || pipe(start) < 0)
		workload_fail("cannot prepare the processes: %s", strerror(errno));
	fflush(stdout);
	for (long i = 0; i < processes; i++) {
		pid_t child = fork();

		if (child < 0)
			workload_fail("cannot start process %ld: %s", i, strerror(errno));
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pin_to_cpu(cpu_of_nodes(nodes, node_count, i));
			wait_for_start(start);
			use(memory, passes, advice, &results[i]);
		}
	}
	close(start[0]);
	began = ticks();
	close(start[1]);
	for (long i = 0; i < processes; i++) {
		if (wait(&status) < 0)
			workload_fail("cannot wait for a process: %s", strerror(errno));
		if (status && !failed)
			failed = status;
	}
	took = ticks() - began;
	if (WIFSIGNALED(failed))
		workload_fail("a process was killed by signal %d", WTERMSIG(failed));
	if (WEXITSTATUS(failed) == EBADMSG)
		workload_fail("a page does not have what was written to it");
	if (failed)
		workload_fail("a process failed: %s", strerror(WEXITSTATUS(failed)));
	getrusage(RUSAGE_CHILDREN, &usage);

	for (long i = 0; i < processes; i++) {
		first += results[i].first;
		again += results[i].again;
		unmap += results[i].unmap;
	}
	pages = (double)processes * (memory / PAGE);
	metric_clock("first_%s.mean", first * clock_scale() / pages);
	if (passes > 1)
		metric_clock("again_%s.mean", again * clock_scale() / pages / (passes - 1));
	metric_clock("unmap_%s.mean", unmap * clock_scale() / pages);
	metric_clock("elapsed_%s.sum", took * clock_scale());
	metric("faults.mean", "faults/page", (double)(usage.ru_minflt + usage.ru_majflt) / pages);
	metric("rss_kib.max", "KiB", usage.ru_maxrss);
	workload_end();
}
