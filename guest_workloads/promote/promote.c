// SPDX-License-Identifier: GPL-2.0-only
/*
 * promote: which regions khugepaged makes huge, and at which cost.
 *
 * The program touches regions, and then waits for khugepaged. With --touch
 * dense every page is touched, so every region should be huge at the end, by
 * the fault or by promotion. With --touch edge, one page less than --edge,
 * exactly that many, and one more are touched in turn: if --edge is the
 * threshold, the last two of three are promoted.
 *
 * The contents are checked at the end: a promotion must not change them.
 */
#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum touch { DENSE, EDGE };
static const char *const touches[] = { "dense", "edge", NULL };
enum order { IN_ORDER, AT_RANDOM };
static const char *const orders[] = { "sequential", "random", NULL };

static char *memory;
static long regions, edge;
static enum touch touch;
static enum order order;
static uint64_t seed;

static long pages_of(long region)
{
	long pages = touch == DENSE ? (long)PAGES_PER_REGION : edge - 1 + region % 3;

	return pages < (long)PAGES_PER_REGION ? pages : (long)PAGES_PER_REGION;
}

static uint64_t mark(long region, long page)
{
	return (seed << 40 ^ region << 16 ^ page) | 1;
}

/* Call `visit` for each touched page, in the order of the touches. */
static void for_each_page(void (*visit)(uint64_t *page, long region, long number))
{
	struct random random = random_of(seed, 0);
	struct deck deck;

	deck_begin(&deck);
	for (long region = 0; region < regions; region++) {
		for (long n = 0; n < pages_of(region); n++) {
			long number = order == IN_ORDER ? n : (long)deck_draw(&deck, &random, n);

			visit((uint64_t *)(memory + region * REGION + number * PAGE), region, number);
		}
	}
}

static void write_mark(uint64_t *page, long region, long number)
{
	page[0] = page[PAGE / sizeof(*page) - 1] = mark(region, number);
}

static void check_mark(uint64_t *page, long region, long number)
{
	if (page[0] != mark(region, number) || page[PAGE / sizeof(*page) - 1] != mark(region, number))
		workload_fail("page %ld of region %ld does not contain what was written", number, region);
}

static long counted(const char *name)
{
	long value = vmstat(name);

	return value < 0 ? 0 : value;
}

int main(int argc, char **argv)
{
	long huge_before, huge_after, copies, in_place, by_khugepaged, eligible = 0;
	uint64_t began, touch_ticks, wait_ticks, worked_ns;
	struct rollup rollup;
	bool reserves;
	int advice;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	regions = option_integer("regions");
	touch = option_choice("touch", touches);
	edge = option_integer("edge");
	order = option_choice("order", orders);
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	memory = map_regions(regions * REGION);
	if (!memory)
		workload_fail("cannot map %ld regions: %s", regions, strerror(errno));
	advise(memory, regions * REGION, advice);
	for (long region = 0; region < regions; region++)
		eligible += pages_of(region) >= edge || touch == DENSE;
	/* A kernel with reservations counts promotions in place. */
	reserves = vmstat("thp_res_collapse") >= 0;

	in_place = -counted("thp_res_collapse");
	began = ticks();
	for_each_page(write_mark);
	touch_ticks = ticks() - began;
	huge_before = smaps_rollup(0).anon_huge_kib * KIB / REGION;
	copies = -counted("thp_collapse_alloc");
	by_khugepaged = -counted("thp_res_collapse");
	worked_ns = khugepaged_ns();
	began = ticks();
	khugepaged_wait();
	wait_ticks = ticks() - began;
	worked_ns = khugepaged_ns() - worked_ns;
	copies += counted("thp_collapse_alloc");
	in_place += counted("thp_res_collapse");
	by_khugepaged += counted("thp_res_collapse");
	rollup = smaps_rollup(0);
	huge_after = rollup.anon_huge_kib * KIB / REGION;
	event("promotion", "\"huge_before\": %ld, \"huge_after\": %ld, \"wait_%s\": %.0f", huge_before, huge_after,
	      clock_name(), wait_ticks * clock_scale());
	for_each_page(check_mark);

	metric("huge_regions.percent", "%", 100.0 * huge_after / regions);
	metric("eligible_regions.percent", "%", 100.0 * eligible / regions);
	metric("promoted_by_copy.total", "ranges", copies);
	if (reserves)
		metric("promoted_in_place.total", "ranges", in_place);
	if (copies + by_khugepaged > 0) {
		double each = (double)worked_ns / (copies + by_khugepaged);

		/* CPU time is in ns of the scheduler's clock, which counts instructions with icount. */
		metric_clock("promotion_%s.mean", each);
	}
	metric_clock("touch_%s.mean", touch_ticks * clock_scale() / regions);
	metric("rss_kib.max", "KiB", rollup.rss_kib);
	workload_end();
}
