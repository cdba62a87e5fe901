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
#include "promotion.h"
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

/* How many looks at the counters there are while the regions are touched. */
#define LOOKS 16

static char *memory;
static long regions, edge;
static enum touch touch;
static enum order order;
static uint64_t seed;
/* What the touches cost before the last pause, and when they went on. */
static uint64_t touch_ticks, resumed;

static long pages_of(long region)
{
	long pages = touch == DENSE ? (long)PAGES_PER_REGION : edge - 1 + region % 3;

	return pages < (long)PAGES_PER_REGION ? pages : (long)PAGES_PER_REGION;
}

static uint64_t mark(long region, long page)
{
	return (seed << 40 ^ region << 16 ^ page) | 1;
}

/*
 * Call `visit` for each touched page, in the order of the touches, and `pause` after some of the regions, unless it is
 * NULL.
 */
static void for_each_page(void (*visit)(uint64_t *page, long region, long number),
			  void (*pause)(void))
{
	struct random random = random_of(seed, 0);
	struct deck deck;

	deck_begin(&deck);
	for (long region = 0; region < regions; region++) {
		for (long n = 0; n < pages_of(region); n++) {
			long number = order == IN_ORDER ? n : (long)deck_draw(&deck, &random, n);

			visit((uint64_t *)(memory + region * REGION + number * PAGE), region,
			      number);
		}
		if (pause && (region + 1) * LOOKS / regions != region * LOOKS / regions)
			pause();
	}
}

static void look(void)
{
	touch_ticks += ticks() - resumed;
	promotion_look(touch_ticks);
	resumed = ticks();
}

static void write_mark(uint64_t *page, long region, long number)
{
	page[0] = page[PAGE / sizeof(*page) - 1] = mark(region, number);
}

static void check_mark(uint64_t *page, long region, long number)
{
	if (page[0] != mark(region, number) ||
	    page[PAGE / sizeof(*page) - 1] != mark(region, number))
		workload_fail("page %ld of region %ld does not contain what was written", number,
			      region);
}

int main(int argc, char **argv)
{
	long eligible = 0;
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

	promotion_begin(regions);
	resumed = ticks();
	for_each_page(write_mark, look);
	metric_reserved("reserved_kib.max");
	promotion_wait();
	promotion_report();
	metric("eligible_regions.percent", "%", 100.0 * eligible / regions);
	metric_clock("touch_%s.mean", touch_ticks * clock_scale() / regions);
	metric("rss_kib.max", "KiB", smaps_rollup(0).rss_kib);
	for_each_page(check_mark, NULL);
	workload_end();
}
