// SPDX-License-Identifier: GPL-2.0-only
/*
 * thpscale: threads that fault in huge page ranges while memory is fragmented.
 *
 * After thpscale of mmtests. A part of the free memory is filled with a file
 * in memory (memfd), of which one page in `hold_every` is then kept: what is
 * free afterwards is not contiguous, so that a huge page needs compaction.
 * Then threads, one per CPU in turn, map a range each, write its first page,
 * which is what a huge page fault costs, and write its other pages.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

struct worker {
	pthread_t thread;
	int cpu, failed;
	long ranges, first_range;
	char *memory;
};

static pthread_barrier_t start;
/* Per range: ticks for its first page and for the others, and whether a huge page came with the first. */
static uint64_t *first, *rest;
static uint64_t *huge;

static long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

static void *fault_ranges(void *argument)
{
	struct worker *worker = argument;

	pin_to_cpu(worker->cpu);
	pthread_barrier_wait(&start);
	for (long i = 0; i < worker->ranges; i++) {
		volatile char *range = worker->memory + i * REGION;
		long n = worker->first_range + i, faults;
		uint64_t began = ticks();

		range[0] = n + 1;
		first[n] = ticks() - began;
		faults = minor_faults();
		began = ticks();
		for (size_t page = 1; page < PAGES_PER_REGION; page++)
			range[page * PAGE] = n + 1;
		rest[n] = ticks() - began;
		huge[n] = minor_faults() == faults;
	}
	for (long i = 0; i < worker->ranges; i++)
		for (size_t page = 0; page < PAGES_PER_REGION; page++)
			if (worker->memory[i * REGION + page * PAGE] !=
			    (char)(worker->first_range + i + 1))
				worker->failed = EBADMSG;
	return NULL;
}

/* Fill `size` bytes and keep one page in `hold_every`. The file stays open until the program ends. */
static void fragment(size_t size, long hold_every)
{
	static char page[PAGE];
	int file = memfd_create("fragments", MFD_CLOEXEC);

	if (file < 0)
		workload_fail("memfd_create: %s", strerror(errno));
	memset(page, 1, sizeof(page));
	for (size_t offset = 0; offset < size; offset += PAGE)
		if (pwrite(file, page, PAGE, offset) != PAGE)
			workload_fail("cannot fill memory: %s", strerror(errno));
	for (size_t offset = 0; offset < size; offset += hold_every * PAGE)
		if (hold_every > 1 && fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
						offset + PAGE, (hold_every - 1) * PAGE))
			workload_fail("cannot give memory back: %s", strerror(errno));
}

static long blocks_of(const struct node *nodes, int count)
{
	long blocks = 0;

	for (int i = 0; i < count; i++)
		blocks += free_blocks(nodes[i].id);
	return blocks;
}

int main(int argc, char **argv)
{
	long threads, memory, fragment_percent, hold_every, ranges, got_huge = 0, n_base = 0;
	double fill = 0, huge_ticks = 0, base_ticks = 0, scale;
	struct node nodes[MAX_NODES];
	struct worker *workers;
	int advice, node_count;
	size_t filled;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	threads = option_integer("threads");
	memory = option_integer("memory");
	fragment_percent = option_integer("fragment_percent");
	hold_every = option_integer("hold_every");
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	scale = clock_scale();
	node_count = nodes_find(nodes);
	if (memory < (long)REGION)
		workload_fail("memory is less than a huge page");

	metric("free_blocks.before", "blocks", blocks_of(nodes, node_count));
	filled = meminfo_kib("MemFree:") / 100 * fragment_percent * KIB / PAGE * PAGE;
	fragment(filled, hold_every);
	metric("free_blocks.fragmented", "blocks", blocks_of(nodes, node_count));

	ranges = threads * (memory / REGION);
	first = values_of(ranges);
	rest = values_of(ranges);
	huge = values_of(ranges);
	workers = calloc(threads, sizeof(*workers));
	if (!workers || pthread_barrier_init(&start, NULL, threads))
		workload_fail("cannot prepare %ld threads", threads);
	for (long i = 0; i < threads; i++) {
		struct worker *worker = &workers[i];

		worker->ranges = memory / REGION;
		worker->first_range = i * worker->ranges;
		worker->cpu = cpu_of_nodes(nodes, node_count, i);
		worker->memory = map_regions(worker->ranges * REGION);
		if (!worker->memory)
			workload_fail("cannot map memory: %s", strerror(errno));
		advise(worker->memory, worker->ranges * REGION, advice);
		if (pthread_create(&worker->thread, NULL, fault_ranges, worker))
			workload_fail("cannot start thread %ld", i);
	}
	for (long i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		if (workers[i].failed)
			workload_fail("a page does not have what was written to it");
	}

	for (long n = 0; n < ranges; n++) {
		fill += first[n] + rest[n];
		got_huge += huge[n];
		if (huge[n])
			huge_ticks += first[n];
		else
			base_ticks += first[n];
		n_base += !huge[n];
	}
	metric("huge_at_first.percent", "%", 100.0 * got_huge / ranges);
	metric_clock("fill_%s.mean", fill * scale / ranges);
	if (got_huge)
		metric_clock("huge_fault_%s.mean", huge_ticks * scale / got_huge);
	if (n_base)
		metric_clock("base_fault_%s.mean", base_ticks * scale / n_base);
	sort_values(first, ranges);
	metric_clock("first_%s.p50", percentile(first, ranges, 0.50) * scale);
	metric_clock("first_%s.p95", percentile(first, ranges, 0.95) * scale);
	metric_clock("first_%s.max", first[ranges - 1] * scale);
	histogram("first_%s", first, ranges);
	workload_end();
}
