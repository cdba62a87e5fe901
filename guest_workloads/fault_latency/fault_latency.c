// SPDX-License-Identifier: GPL-2.0-only
/*
 * fault_latency: the cost of individual page faults.
 *
 * The first touch of each page in a new mapping is measured. With huge pages
 * most touches do not fault, so a touch counts as a fault if it took more
 * than a fraction of the time of faults on base pages, measured just before.
 * The two differ by a factor of hundreds with icount, and of tens otherwise.
 * The number of faults according to the kernel is reported as well.
 *
 * The first touch of a 2 MiB region is also reported separately, because the
 * kernel may allocate, and zero, a huge page or a reservation there. The mean
 * over all touches is the total cost of using the memory.
 *
 * A sweep then touches new regions sparsely and densely, to measure the total
 * cost of a region for 1 to 512 of its pages. It shows for which densities
 * huge pages are cheaper, and for which they are not.
 *
 * Finally, all pages of new regions are touched, and the program waits for
 * khugepaged, to report which of them become huge, and how.
 */
#include "promotion.h"
#include "workload.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

enum order { IN_ORDER, AT_RANDOM };
static const char *const orders[] = { "sequential", "random", NULL };
enum share { NOTHING, SHARED_REGION };
static const char *const shares[] = { "nothing", "region", NULL };

#define WARM_REGIONS 4
/* Number of counter readings while the dense regions are touched. */
#define DENSE_LOOKS 16
/* A touch counts as a fault from this fraction of a base page fault on, which includes faults that zero nothing. */
#define FAULT_FRACTION 6

/* Number of pages per region that the sweep touches; the manifest has a metric for each. */
static const uint32_t densities[] = { 1, 16, 64, 96, 256, 512 };
#define DENSITIES ((int)(sizeof(densities) / sizeof(densities[0])))

static long regions, pages_per_region, thread_count, sweep_regions, dense_regions;
static enum order order;
static enum share share;
static uint64_t seed;
static int advice;
static pthread_barrier_t barrier;

struct worker {
	pthread_t thread;
	int number;
	int cpu;
	char *memory;
	long begin, end; /* its regions */
	struct deck deck;
	struct random random;
	uint64_t *first, *later; /* ticks of each touch */
	size_t first_count, later_count;
	uint64_t threshold; /* lowest number of ticks of a fault */
	long faults; /* as counted by the kernel */
	uint64_t zeroed; /* bytes zeroed for all workers; only in the first one */
};

/* Touch this worker's share of a region, and record the costs. */
static void touch_region(struct worker *worker, char *region)
{
	long step = share == SHARED_REGION ? thread_count : 1;
	long begin = share == SHARED_REGION ? worker->number : 0;
	bool first = true;
	uint16_t pages[PAGES_PER_REGION];

	/* Choose beforehand: only the touch is timed. */
	for (long n = 0; n < pages_per_region; n++)
		pages[n] = order == IN_ORDER ? n : deck_draw(&worker->deck, &worker->random, n);
	if (share == SHARED_REGION)
		pthread_barrier_wait(&barrier);
	for (long n = begin; n < pages_per_region; n += step) {
		volatile char *page = region + pages[n] * PAGE;
		uint64_t before, after;

		before = ticks();
		*page = 1;
		after = ticks();
		if (first)
			worker->first[worker->first_count++] = after - before;
		else
			worker->later[worker->later_count++] = after - before;
		first = false;
	}
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt;
}

/* Touch regions without measuring. */
static void warm_up(struct worker *worker, int with_advice)
{
	char *warm = map_regions(WARM_REGIONS * REGION);

	if (!warm)
		workload_fail("cannot map memory to warm up: %s", strerror(errno));
	advise(warm, WARM_REGIONS * REGION, with_advice);
	worker->first_count = worker->later_count = 0;
	for (int region = 0; region < WARM_REGIONS; region++)
		touch_region(worker, warm + region * REGION);
	munmap(warm, WARM_REGIONS * REGION);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	/* In a shared region all threads must draw the same pages. */
	uint64_t stream = share == SHARED_REGION ? 0 : worker->number;

	pin_to_cpu(worker->cpu);
	deck_begin(&worker->deck);
	worker->random = random_of(seed, stream);
	/* Warm up code, stack and page lists, so that their costs are not part of the first faults. */
	warm_up(worker, advice);
	/* Measure the cost of a fault on a base page. */
	warm_up(worker, ADVICE_NOHUGEPAGE);
	sort_values(worker->first, worker->first_count);
	sort_values(worker->later, worker->later_count);
	worker->threshold = (worker->later_count ?
				     percentile(worker->later, worker->later_count, 0.5) :
				     percentile(worker->first, worker->first_count, 0.5)) /
			    FAULT_FRACTION;

	deck_begin(&worker->deck);
	worker->random = random_of(seed, stream);
	worker->first_count = worker->later_count = 0;
	pthread_barrier_wait(&barrier);
	if (!worker->number)
		worker->zeroed = -zeroed_bytes();
	pthread_barrier_wait(&barrier);
	worker->faults = -faults();
	for (long region = worker->begin; region < worker->end; region++)
		touch_region(worker, worker->memory + region * REGION);
	worker->faults += faults();
	pthread_barrier_wait(&barrier);
	if (!worker->number)
		worker->zeroed += zeroed_bytes();
	return NULL;
}

/* Copy the touches that took at least `limit` ticks. */
static size_t gather(uint64_t *into, size_t at, const uint64_t *from, size_t count, uint64_t limit)
{
	for (size_t i = 0; i < count; i++)
		if (from[i] >= limit)
			into[at++] = from[i];
	return at;
}

/*
 * The clock of the sweep, in its unit. With the clock ns it is the CPU time of
 * this thread: a region takes so long that the thread may be preempted.
 */
static uint64_t sweep_clock(void)
{
	struct timespec now;

	if (clock_counts_instructions())
		return ticks();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/*
 * Touch new regions, each at one density, in rounds over all densities, so
 * that drift affects all of them equally.
 */
static void sweep(void)
{
	size_t size = sweep_regions * DENSITIES * REGION;
	uint64_t overhead = UINT64_MAX, *costs[DENSITIES];
	struct random random = random_of(seed, thread_count);
	uint16_t pages[PAGES_PER_REGION];
	char *region, *memory = map_regions(size);
	struct deck deck;

	if (!memory)
		workload_fail("cannot map %ld regions to sweep: %s", sweep_regions * DENSITIES,
			      strerror(errno));
	advise(memory, size, advice);
	deck_begin(&deck);
	for (int at = 0; at < DENSITIES; at++)
		costs[at] = values_of(sweep_regions);
	for (int n = 0; n < 1000; n++) {
		uint64_t before = sweep_clock(), after = sweep_clock();

		overhead = after - before < overhead ? after - before : overhead;
	}
	region = memory;
	for (long round = 0; round < sweep_regions; round++) {
		for (int at = 0; at < DENSITIES; at++, region += REGION) {
			uint64_t cost;

			for (uint32_t n = 0; n < densities[at]; n++)
				pages[n] = order == IN_ORDER ? n : deck_draw(&deck, &random, n);
			cost = sweep_clock();
			for (uint32_t n = 0; n < densities[at]; n++)
				*(volatile char *)(region + pages[n] * PAGE) = 1;
			cost = sweep_clock() - cost;
			costs[at][round] = cost > overhead ? cost - overhead : 0;
		}
	}
	munmap(memory, size);
	for (int at = 0; at < DENSITIES; at++) {
		char name[64];

		sort_values(costs[at], sweep_regions);
		/* Instruction counts repeat; with ns on a busy host, a low percentile is more reliable than the median. */
		for (int percent = clock_counts_instructions() ? 50 : 10; percent <= 50;
		     percent += 40) {
			snprintf(name, sizeof(name), "region_%u_%s.p%d", densities[at],
				 clock_name(), percent);
			metric(name, clock_name(),
			       percentile(costs[at], sweep_regions, percent / 100.0));
		}
	}
}

/* Touch all pages of new regions, and report which of them become huge. */
static void dense(void)
{
	struct random random = random_of(seed, thread_count + 1);
	char *memory = map_regions(dense_regions * REGION);
	long step = (dense_regions + DENSE_LOOKS - 1) / DENSE_LOOKS;
	uint16_t pages[PAGES_PER_REGION];
	uint64_t touch_ticks = 0;
	struct deck deck;

	if (!memory)
		workload_fail("cannot map %ld regions: %s", dense_regions, strerror(errno));
	advise(memory, dense_regions * REGION, advice);
	deck_begin(&deck);
	promotion_begin(dense_regions);
	for (long region = 0; region < dense_regions; region++) {
		char *start = memory + region * REGION;
		uint64_t began;

		for (uint32_t n = 0; n < PAGES_PER_REGION; n++)
			pages[n] = order == IN_ORDER ? n : deck_draw(&deck, &random, n);
		began = ticks();
		for (uint32_t n = 0; n < PAGES_PER_REGION; n++)
			*(volatile char *)(start + pages[n] * PAGE) = 1;
		touch_ticks += ticks() - began;
		if ((region + 1) % step == 0 || region + 1 == dense_regions)
			promotion_look(touch_ticks);
	}
	promotion_wait();
	promotion_report();
	munmap(memory, dense_regions * REGION);
}

int main(int argc, char **argv)
{
	struct node nodes[MAX_NODES];
	struct worker *workers;
	struct rollup rollup;
	uint64_t *first, *faulted, overhead = UINT64_MAX;
	size_t most_first, most_later, first_count = 0, fault_count = 0, touches = 0;
	double scale, sum = 0;
	long fault_total = 0;
	unsigned long rss_before;
	int node_count;
	char *memory;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	regions = option_integer("regions");
	pages_per_region = option_integer("pages_per_region");
	thread_count = option_integer("threads");
	sweep_regions = option_integer("sweep_regions");
	dense_regions = option_integer("dense_regions");
	order = option_choice("order", orders);
	share = option_choice("share", shares);
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	scale = clock_scale();
	if (regions < thread_count && share == NOTHING)
		workload_fail("%ld threads cannot divide %ld regions", thread_count, regions);
	if (pages_per_region < thread_count && share == SHARED_REGION)
		workload_fail("%ld threads cannot divide %ld pages of a region", thread_count,
			      pages_per_region);
	node_count = nodes_find(nodes);

	memory = map_regions(regions * REGION);
	workers = calloc(thread_count, sizeof(*workers));
	if (!memory || !workers)
		workload_fail("cannot map %ld regions: %s", regions, strerror(errno));
	advise(memory, regions * REGION, advice);
	pthread_barrier_init(&barrier, NULL, thread_count);
	/* In a shared region each thread has a first touch. */
	most_first = share == SHARED_REGION ? regions + WARM_REGIONS :
					      regions / thread_count + 1 + WARM_REGIONS;
	most_later = most_first * pages_per_region;
	for (int n = 0; n < thread_count; n++) {
		struct worker *worker = &workers[n];

		worker->number = n;
		worker->cpu = cpu_of_nodes(nodes, node_count, n);
		worker->memory = memory;
		worker->begin = share == SHARED_REGION ? 0 : regions * n / thread_count;
		worker->end = share == SHARED_REGION ? regions : regions * (n + 1) / thread_count;
		worker->first = values_of(most_first);
		worker->later = values_of(most_later);
	}
	first = values_of(most_first * thread_count);
	faulted = values_of((most_first + most_later) * thread_count);
	for (int n = 0; n < 1000; n++) {
		uint64_t before = ticks(), after = ticks();

		overhead = after - before < overhead ? after - before : overhead;
	}
	rss_before = smaps_rollup(0).rss_kib;

	for (int n = 1; n < thread_count; n++) {
		if (pthread_create(&workers[n].thread, NULL, work, &workers[n]))
			workload_fail("cannot start thread %d", n);
	}
	work(&workers[0]);
	for (int n = 1; n < thread_count; n++)
		pthread_join(workers[n].thread, NULL);
	rollup = smaps_rollup(0);
	metric_reserved("reserved_kib.max");

	for (int n = 0; n < thread_count; n++) {
		const struct worker *worker = &workers[n];

		first_count = gather(first, first_count, worker->first, worker->first_count, 0);
		fault_count = gather(faulted, fault_count, worker->first, worker->first_count,
				     worker->threshold);
		fault_count = gather(faulted, fault_count, worker->later, worker->later_count,
				     worker->threshold);
		sum += mean(worker->first, worker->first_count) * worker->first_count +
		       mean(worker->later, worker->later_count) * worker->later_count;
		touches += worker->first_count + worker->later_count;
		fault_total += worker->faults;
	}
	sort_values(first, first_count);
	sort_values(faulted, fault_count);
	event("timing",
	      "\"overhead_%s\": %.1f, \"threshold_%s\": %.1f, \"touches\": %zu, \"slow_touches\": %zu",
	      clock_name(), overhead * scale, clock_name(), workers[0].threshold * scale, touches,
	      fault_count);
	if (!fault_count)
		workload_fail("no touch took as long as a fault");
	metric_clock("fault_%s.p50", percentile(faulted, fault_count, 0.50) * scale);
	metric_clock("fault_%s.p90", percentile(faulted, fault_count, 0.90) * scale);
	metric_clock("fault_%s.p99", percentile(faulted, fault_count, 0.99) * scale);
	metric_clock("fault_%s.mean", mean(faulted, fault_count) * scale);
	metric_clock("fault_%s.max", faulted[fault_count - 1] * scale);
	metric_clock("first_fault_%s.p50", percentile(first, first_count, 0.50) * scale);
	metric_clock("first_fault_%s.p99", percentile(first, first_count, 0.99) * scale);
	metric_clock("touch_%s.mean", sum / touches * scale);
	metric("zeroed_kib.sum", "KiB", workers[0].zeroed / KIB);
	if (clock_counts_instructions())
		metric("touch_without_zeroing_insns.mean", "insns",
		       (sum - zeroing_insns(workers[0].zeroed)) / touches);
	metric("faults.total", "faults", fault_total);
	metric("rss_kib.max", "KiB", rollup.rss_kib > rss_before ? rollup.rss_kib - rss_before : 0);
	metric("anon_huge_kib.max", "KiB", rollup.anon_huge_kib);
	metric("touched_kib.sum", "KiB", touches * (PAGE / KIB));
	histogram("fault_%s", faulted, fault_count);
	histogram("first_fault_%s", first, first_count);
	munmap(memory, regions * REGION);
	if (sweep_regions)
		sweep();
	if (dense_regions)
		dense();
	workload_end();
}
