// SPDX-License-Identifier: GPL-2.0-only
#include "promotion.h"

#include <string.h>
#include <time.h>

/* The same interval as in khugepaged-barrier, which wakes up khugepaged for another scan each time. */
#define LOOK_NS 2000000L

enum way { AT_FAULT, IN_PLACE, BY_COPY, WAYS };
static const char *const counters[WAYS] = { "thp_fault_alloc", "thp_res_collapse",
					    "thp_collapse_alloc" };

static struct {
	long ranges;
	long start[WAYS], count[WAYS];
	bool reserves; /* the kernel counts promotions in place */
	double touching; /* cost of the touches, in the unit of the clock */
	uint64_t khugepaged_start;
	long by_khugepaged; /* promotions since then */
	double half; /* cost until half of the ranges were huge; negative before that */
	long shown;
} state;

static void read_counters(long *values)
{
	vmstats(counters, values, WAYS);
	for (int way = 0; way < WAYS; way++)
		values[way] = values[way] < 0 ? 0 : values[way];
}

/* Take the counts as they are in `state`. `cost`: that of the touches and of khugepaged so far. */
static void keep(double cost)
{
	long huge = state.count[AT_FAULT] + state.count[IN_PLACE] + state.count[BY_COPY];

	if (state.half < 0 && 2 * huge >= state.ranges)
		state.half = cost;
	if (huge == state.shown)
		return;
	state.shown = huge;
	event("huge_ranges",
	      "\"ranges\": %ld, \"huge\": %ld, \"at_fault\": %ld, \"in_place\": %ld, \"by_copy\": %ld, "
	      "\"%s\": %.0f",
	      state.ranges, huge, state.count[AT_FAULT], state.count[IN_PLACE],
	      state.count[BY_COPY], clock_name(), cost);
}

void promotion_begin(long ranges)
{
	memset(&state, 0, sizeof(state));
	state.ranges = ranges;
	state.reserves = vmstat(counters[IN_PLACE]) >= 0;
	state.half = -1;
	state.shown = -1;
	read_counters(state.start);
	keep(0);
}

static void look(double cost)
{
	long now[WAYS];

	read_counters(now);
	for (int way = 0; way < WAYS; way++)
		state.count[way] = now[way] - state.start[way];
	keep(cost);
}

void promotion_look(uint64_t touch_ticks)
{
	state.touching = touch_ticks * clock_scale();
	look(state.touching);
}

/* CPU time is in ns of the scheduler's clock, which counts instructions with icount. */
static double khugepaged_cost(void)
{
	return khugepaged_ns() - state.khugepaged_start;
}

void promotion_wait(void)
{
	const struct timespec pause = { .tv_nsec = LOOK_NS };
	long before = state.count[IN_PLACE] + state.count[BY_COPY];
	long collapsed = khugepaged_collapses();
	pid_t waiter;

	state.khugepaged_start = khugepaged_ns();
	waiter = khugepaged_wait_begin();
	while (!khugepaged_wait_over(waiter)) {
		long now = khugepaged_collapses();

		/* Read one small file; reading all counters each time would affect the result. */
		if (now != collapsed)
			look(state.touching + khugepaged_cost());
		collapsed = now;
		nanosleep(&pause, NULL);
	}
	look(state.touching + khugepaged_cost());
	state.by_khugepaged = state.count[IN_PLACE] + state.count[BY_COPY] - before;
}

long promotion_report(void)
{
	double worked = khugepaged_cost();
	struct rollup rollup = smaps_rollup(0);
	long huge = rollup.anon_huge_kib * KIB / REGION;

	metric("huge_regions.percent", "%", 100.0 * huge / state.ranges);
	metric("huge_at_fault.percent", "%", 100.0 * state.count[AT_FAULT] / state.ranges);
	if (state.reserves)
		metric("huge_in_place.percent", "%", 100.0 * state.count[IN_PLACE] / state.ranges);
	metric("huge_by_copy.percent", "%", 100.0 * state.count[BY_COPY] / state.ranges);
	if (state.half >= 0)
		metric_clock("huge_after_%s.p50", state.half);
	if (state.by_khugepaged > 0)
		metric_clock("promotion_%s.mean", worked / state.by_khugepaged);
	return huge;
}
