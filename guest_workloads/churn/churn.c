// SPDX-License-Identifier: GPL-2.0-only
/*
 * churn: an allocator that returns pages and uses them again.
 *
 * An arena is filled. Then runs of its pages, with random lengths and
 * positions, are returned with MADV_DONTNEED or MADV_FREE and written again,
 * as jemalloc or Go's runtime do. Returning pages and refaults are measured.
 * Returning a part of a huge page splits it each time.
 */
#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_FREE
#define MADV_FREE 8
#endif

static const char *const returns[] = { "dontneed", "free", NULL };
static const int advices[] = { MADV_DONTNEED, MADV_FREE };

int main(int argc, char **argv)
{
	uint64_t seed, *gave, *wrote, gave_sum = 0, wrote_sum = 0, pages = 0;
	long runs, most, first_huge_kib;
	struct rollup rollup;
	struct random random;
	size_t arena, arena_pages;
	double scale;
	char *start;
	int advice, way;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	arena = option_integer("arena");
	runs = option_integer("runs");
	most = option_integer("most_pages");
	way = option_choice("return", returns);
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	scale = clock_scale();
	arena -= arena % REGION;
	arena_pages = arena / PAGE;
	if ((size_t)most > arena_pages)
		workload_fail("runs of %ld pages do not fit into an arena of %zu", most,
			      arena_pages);
	start = map_regions(arena);
	if (!start)
		workload_fail("cannot map an arena of %zu bytes: %s", arena, strerror(errno));
	advise(start, arena, advice);
	gave = values_of(runs);
	wrote = values_of(runs);
	random = random_of(seed, 0);
	for (size_t page = 0; page < arena_pages; page++)
		*(volatile long *)(start + page * PAGE) = page;
	first_huge_kib = smaps_rollup(0).anon_huge_kib;

	for (long n = 0; n < runs; n++) {
		uint32_t length = 1 + random_below(&random, most);
		char *run = start + random_below(&random, arena_pages - length + 1) * PAGE;
		uint64_t began, between, ended;

		began = ticks();
		if (madvise(run, length * PAGE, advices[way]))
			workload_fail("cannot return %u pages: %s", length, strerror(errno));
		between = ticks();
		for (uint32_t page = 0; page < length; page++)
			*(volatile long *)(run + page * PAGE) = n;
		ended = ticks();
		gave[n] = between - began;
		wrote[n] = ended - between;
		gave_sum += between - began;
		wrote_sum += ended - between;
		pages += length;
	}
	rollup = smaps_rollup(0);
	metric_reserved("reserved_kib.max");
	sort_values(gave, runs);
	sort_values(wrote, runs);

	metric_clock("return_%s.mean", gave_sum * scale / pages);
	metric_clock("return_%s.p99", percentile(gave, runs, 0.99) * scale);
	metric_clock("refault_%s.mean", wrote_sum * scale / pages);
	metric_clock("refault_%s.p99", percentile(wrote, runs, 0.99) * scale);
	metric("churned_kib.sum", "KiB", pages * (PAGE / KIB));
	metric("rss_kib.max", "KiB", rollup.rss_kib);
	metric("anon_huge_kib.start", "KiB", first_huge_kib);
	metric("anon_huge_kib.end", "KiB", rollup.anon_huge_kib);
	workload_end();
}
