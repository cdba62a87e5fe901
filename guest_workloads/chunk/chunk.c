// SPDX-License-Identifier: GPL-2.0-only
/*
 * chunk: the number of processes that fit in memory if they use it sparsely.
 *
 * Children are forked one after another, each on the next node. Each maps a
 * chunk, touches some pages in every 2 MiB region of it, and stays alive. A
 * kernel that maps a huge page in every region is out of memory after 16
 * chunks of a 16th of memory; with base pages more chunks fit.
 *
 * There are two end conditions. survivors.total is the number of children
 * when less than a chunk is available, where a strict overcommit check would
 * fail. The kernel's default check only compares with total memory, so the
 * test continues until the OOM killer kills a child: survivors_oom.total.
 */
#include "workload.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum pattern { MIXED, ONE, RANDOM, SEQUENTIAL, DENSE };
static const char *const patterns[] = { "mixed", "one", "random", "sequential", "dense", NULL };

/* The report of a child to its parent when it has touched all its pages. */
struct report {
	uint64_t touched_pages;
	uint64_t ticks;
	uint64_t faults;
	uint64_t zeroed; /* bytes */
};

static size_t chunk_bytes;
static enum pattern pattern;
static uint32_t max_pages;
static int advice;
static struct deck deck;

/* How many pages of a region to touch. */
static uint32_t amount(struct random *random)
{
	switch (pattern) {
	case ONE:
		return 1;
	case DENSE:
		return PAGES_PER_REGION;
	case RANDOM:
		return 1 + random_below(random, max_pages);
	default:
		/* One page, or many, with equal probability. */
		return random_next(random) >> 63 ? 1 + random_below(random, max_pages) : 1;
	}
}

static void touch_chunk(char *chunk, struct random random, struct report *report)
{
	bool in_order = pattern == SEQUENTIAL || pattern == DENSE;

	for (char *region = chunk; region < chunk + chunk_bytes; region += REGION) {
		uint32_t pages = amount(&random);

		for (uint32_t n = 0; n < pages; n++) {
			uint32_t page = in_order ? n : deck_draw(&deck, &random, n);

			*(volatile char *)(region + page * PAGE) = 1;
		}
		report->touched_pages += pages;
	}
}

static _Noreturn void child(int number, uint64_t seed, const struct node *node, int to_parent)
{
	struct report report = { 0 };
	struct rusage usage;
	uint64_t began;
	char *chunk;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* The OOM killer should prefer children, all equally, to other processes. */
	if (!write_text("/proc/self/oom_score_adj", "1000"))
		_exit(2);
	pin_to_node(node);
	chunk = map_regions(chunk_bytes);
	if (!chunk)
		_exit(2);
	advise(chunk, chunk_bytes, advice);
	report.zeroed = -zeroed_bytes();
	began = ticks();
	touch_chunk(chunk, random_of(seed, number), &report);
	report.ticks = ticks() - began;
	report.zeroed += zeroed_bytes();
	getrusage(RUSAGE_SELF, &usage);
	report.faults = usage.ru_minflt;
	if (write(to_parent, &report, sizeof(report)) != sizeof(report))
		_exit(2);
	for (;;)
		pause();
}

static void on_child(int signal_number)
{
	(void)signal_number; /* it only needs to interrupt ppoll() */
}

/* Wait for the report of the newest child. Returns false if any child ended instead. */
static bool await_report(int from_child, struct report *report, const sigset_t *unblocked,
			 int *ended_status, pid_t *ended)
{
	struct pollfd watched = { .fd = from_child, .events = POLLIN };

	for (;;) {
		int ready;

		*ended = waitpid(-1, ended_status, WNOHANG);
		if (*ended > 0)
			return false;
		ready = ppoll(&watched, 1, NULL, unblocked);
		if (ready < 0 && errno != EINTR)
			workload_fail("ppoll: %s", strerror(errno));
		if (ready > 0) {
			/* Without a report, the pipe was closed by a dying child. */
			if (read(from_child, report, sizeof(*report)) == sizeof(*report)) {
				*ended = waitpid(-1, ended_status, WNOHANG);
				return *ended <= 0;
			}
			*ended = waitpid(-1, ended_status, 0);
			return false;
		}
	}
}

/* Report the metrics of the children that are alive at the first end condition. */
static void report_survivors(const pid_t *pids, int count, const struct report *total,
			     uint64_t elapsed)
{
	double rss = 0, huge = 0;

	for (int i = 0; i < count; i++) {
		struct rollup rollup = smaps_rollup(pids[i]);

		rss += rollup.rss_kib;
		huge += rollup.anon_huge_kib;
	}
	metric("survivors.total", "children", count);
	metric_clock("elapsed_%s.total", elapsed * clock_scale());
	metric_clock("touch_%s.mean", total->touched_pages ?
					      total->ticks * clock_scale() / total->touched_pages :
					      0);
	metric("zeroed_kib.sum", "KiB", total->zeroed / KIB);
	if (clock_counts_instructions() && total->touched_pages)
		metric("touch_without_zeroing_insns.mean", "insns",
		       (total->ticks - zeroing_insns(total->zeroed)) / total->touched_pages);
	metric("touched_kib.sum", "KiB", total->touched_pages * (PAGE / KIB));
	metric("faults.total", "faults", total->faults);
	metric("rss_kib.sum", "KiB", rss);
	metric("anon_huge_kib.sum", "KiB", huge);
	metric("huge_regions.percent", "%",
	       count ? 100.0 * huge * KIB / ((double)count * chunk_bytes) : 0);
}

int main(int argc, char **argv)
{
	struct sigaction on_sigchld = { .sa_handler = on_child };
	struct node nodes[MAX_NODES];
	struct report total = { 0 };
	sigset_t blocked, unblocked;
	uint64_t seed, began_ns, began;
	unsigned long chunk_kib;
	bool available_reached = false;
	bool reservations;
	int node_count, max_children, count = 0, status = 0;
	long ballast_percent;
	pid_t *pids, ended = 0;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	chunk_bytes = option_integer("chunk_mib") * MIB;
	pattern = option_choice("pattern", patterns);
	max_pages = option_integer("max_pages");
	max_children = option_integer("max_children");
	ballast_percent = option_integer("ballast_percent");
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();

	if (!chunk_bytes)
		chunk_bytes = installed_kib() / 100 * (100 - ballast_percent) * KIB / 16;
	/* Round to the nearest: firmware reserves a little of the installed memory. */
	chunk_bytes = (chunk_bytes + REGION / 2) / REGION * REGION;
	if (!chunk_bytes)
		workload_fail("the chunk is smaller than one region of 2 MiB");
	chunk_kib = chunk_bytes / KIB;
	node_count = nodes_find(nodes);
	reservations = vmstat("nr_thp_reserved") >= 0;
	pids = calloc(max_children, sizeof(*pids));
	deck_begin(&deck);
	if (!pids || !write_text("/proc/self/oom_score_adj", "-1000"))
		workload_fail("cannot protect this process from the OOM killer");
	hold_ballast(nodes, node_count, ballast_percent);
	/* SIGCHLD is only unblocked in ppoll(), so none is missed between the check and the wait. */
	sigaction(SIGCHLD, &on_sigchld, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, &unblocked);
	sigdelset(&unblocked, SIGCHLD);
	event("chunk", "\"chunk_kib\": %lu, \"nodes\": %d", chunk_kib, node_count);

	began_ns = monotonic_ns();
	began = ticks();
	while (count < max_children) {
		const struct node *node = &nodes[count % node_count];
		struct report report;
		int pipe_ends[2];

		if (!available_reached && meminfo_kib("MemAvailable:") < chunk_kib) {
			available_reached = true;
			event("less_than_a_chunk_available", "\"children\": %d", count);
			report_survivors(pids, count, &total, ticks() - began);
		}
		if (pipe(pipe_ends) < 0)
			workload_fail("pipe: %s", strerror(errno));
		fflush(stdout);
		pids[count] = fork();
		if (pids[count] < 0) {
			event("fork_failed", "\"errno\": %d", errno);
			close(pipe_ends[0]);
			close(pipe_ends[1]);
			break;
		}
		if (!pids[count]) {
			close(pipe_ends[0]);
			child(count, seed, node, pipe_ends[1]);
		}
		close(pipe_ends[1]);
		if (!await_report(pipe_ends[0], &report, &unblocked, &status, &ended)) {
			close(pipe_ends[0]);
			break;
		}
		close(pipe_ends[0]);
		count++;
		total.touched_pages += report.touched_pages;
		total.ticks += report.ticks;
		total.faults += report.faults;
		total.zeroed += report.zeroed;
		event("child",
		      "\"child\": %d, \"node\": %d, \"touched_pages\": %llu, \"%s\": %.0f, \"available_kib\": %lu, "
		      "\"free_kib\": %lu, \"reserved_pages\": %ld",
		      count, node->id, (unsigned long long)report.touched_pages, clock_name(),
		      report.ticks * clock_scale(), meminfo_kib("MemAvailable:"),
		      meminfo_kib("MemFree:"), reservations ? vmstat("nr_thp_reserved") : -1);
	}
	event("stop", "\"children\": %d, \"signal\": %d, \"status\": %d, \"elapsed_ms\": %.3f",
	      count, ended > 0 && WIFSIGNALED(status) ? WTERMSIG(status) : 0,
	      ended > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 0,
	      (monotonic_ns() - began_ns) / 1e6);
	if (count == max_children)
		workload_fail("%d children did not fill memory; raise max_children or chunk_mib",
			      count);
	if (!available_reached) {
		/* The OOM killer ran before the first end condition: count all children. */
		report_survivors(pids, count, &total, ticks() - began);
	}
	metric("survivors_oom.total", "children", count);

	signal(SIGCHLD, SIG_DFL);
	for (int i = 0; i <= count && i < max_children; i++)
		if (pids[i] > 0 && pids[i] != ended)
			kill(pids[i], SIGKILL);
	/* Their memory must be freed before the counters are read for the last time. */
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	free(pids);
	workload_end();
}
