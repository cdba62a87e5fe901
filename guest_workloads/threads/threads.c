// SPDX-License-Identifier: GPL-2.0-only
/*
 * threads: how much threads that fault in the same address space slow each
 * other down.
 *
 * The same number of pages is touched in one address space, first by one
 * thread, then by all threads at the same time. The result is the elapsed time
 * per touch. With real CPUs it decreases with the number of threads, until
 * locks are contended. With icount all CPUs share one clock, so it is the
 * number of instructions of all CPUs per touch: the excess over a single
 * thread is waiting.
 */
#include "workload.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum share { OWN_REGIONS, SAME_REGION };
static const char *const shares[] = { "nothing", "region", NULL };

static long regions, pages_per_region;
static enum share share;
static pthread_barrier_t barrier;
static char *memory;

struct worker {
	pthread_t thread;
	int number, count, cpu;
	uint64_t began, ended;
};

static void *work(void *argument)
{
	struct worker *worker = argument;
	bool same = share == SAME_REGION;
	long region = same ? 0 : regions * worker->number / worker->count;
	long end = same ? regions : regions * (worker->number + 1) / worker->count;

	pin_to_cpu(worker->cpu);
	pthread_barrier_wait(&barrier);
	worker->began = ticks();
	for (; region < end; region++)
		for (long page = same ? worker->number : 0; page < pages_per_region;
		     page += same ? worker->count : 1)
			*(volatile char *)(memory + region * REGION + page * PAGE) = 1;
	worker->ended = ticks();
	pthread_barrier_wait(&barrier);
	return NULL;
}

/*
 * Touch everything with `count` threads. Returns the ticks from the start of the first to the end of the last. Memory
 * is reported for the `last` call.
 */
static uint64_t touch_with(struct worker *workers, int count, int advice, bool last)
{
	uint64_t began = UINT64_MAX, ended = 0;

	memory = map_regions(regions * REGION);
	if (!memory)
		workload_fail("cannot map %ld regions: %s", regions, strerror(errno));
	advise(memory, regions * REGION, advice);
	pthread_barrier_init(&barrier, NULL, count);
	for (int n = 0; n < count; n++) {
		workers[n].number = n;
		workers[n].count = count;
		if (n && pthread_create(&workers[n].thread, NULL, work, &workers[n]))
			workload_fail("cannot start thread %d", n);
	}
	work(&workers[0]);
	for (int n = 0; n < count; n++) {
		if (n)
			pthread_join(workers[n].thread, NULL);
		began = workers[n].began < began ? workers[n].began : began;
		ended = workers[n].ended > ended ? workers[n].ended : ended;
	}
	pthread_barrier_destroy(&barrier);
	if (last) {
		metric("rss_kib.max", "KiB", smaps_rollup(0).rss_kib);
		metric_reserved("reserved_kib.max");
	}
	munmap(memory, regions * REGION);
	return ended - began;
}

int main(int argc, char **argv)
{
	struct node nodes[MAX_NODES];
	struct worker *workers;
	double one, all, touches;
	int node_count, advice;
	long threads;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	regions = option_integer("regions");
	pages_per_region = option_integer("pages_per_region");
	threads = option_integer("threads");
	share = option_choice("share", shares);
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	if (share == OWN_REGIONS && regions < threads)
		workload_fail("%ld threads cannot divide %ld regions", threads, regions);
	if (share == SAME_REGION && pages_per_region < threads)
		workload_fail("%ld threads cannot divide %ld pages of a region", threads,
			      pages_per_region);
	node_count = nodes_find(nodes);
	workers = calloc(threads, sizeof(*workers));
	if (!workers)
		workload_fail("no memory for %ld threads", threads);
	for (int n = 0; n < threads; n++)
		workers[n].cpu = cpu_of_nodes(nodes, node_count, n);

	/* Warm up code, stacks and page lists, so that their costs are not part of the first faults. */
	touch_with(workers, threads, advice, false);
	touches = (double)regions * pages_per_region;
	one = touch_with(workers, 1, advice, false) * clock_scale() / touches;
	all = touch_with(workers, threads, advice, true) * clock_scale() / touches;
	metric_clock("touch_%s.one", one);
	metric_clock("touch_%s.all", all);
	metric("touch_cost.ratio", "all / one", all / one);
	workload_end();
}
