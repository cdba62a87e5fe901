/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How ranges become huge: at their first fault, in place (a reservation that
 * khugepaged or the fault itself fills up), or by a copy of khugepaged's.
 *
 * The kernel counts these for the whole machine. A workload that uses this is
 * alone in its guest, so the counts are its own.
 */
#ifndef PROMOTION_H
#define PROMOTION_H

#include "workload.h"

/* Call it before the first touch of `ranges` 2 MiB ranges. */
void promotion_begin(long ranges);
/*
 * Count the ranges that are huge by now; if the number has changed, print an
 * event. `touch_ticks` is the cost of the touches so far, without the counting.
 */
void promotion_look(uint64_t touch_ticks);
/* Call it after the last touch: waits for khugepaged, see khugepaged_wait(), and counts meanwhile. */
void promotion_wait(void);
/*
 * Print the metrics: the share of huge ranges, how they became huge, the cost,
 * and the memory of this process. Returns the number of huge ranges.
 */
long promotion_report(void);

#endif
