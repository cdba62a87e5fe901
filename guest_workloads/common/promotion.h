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

/* Before the first touch of `ranges` ranges of 2 MiB. */
void promotion_begin(long ranges);
/*
 * Look how many ranges are huge by now. An event is printed where that changed.
 * `touch_ticks` is what the touches have cost so far; looking is not in it.
 */
void promotion_look(uint64_t touch_ticks);
/* After the last touch: look while khugepaged is waited for, see khugepaged_wait(). */
void promotion_wait(void);
/*
 * Print the metrics: which share of the ranges is huge, how each became so,
 * what that cost, and the memory of this process. Returns how many are huge.
 */
long promotion_report(void);

#endif
