// SPDX-License-Identifier: GPL-2.0-only
/*
 * sparse: memory use of a hash table.
 *
 * Entries are written to random slots of a large table, as a hash function
 * would do. Each insertion is measured. The main result is the memory that
 * the machine uses per useful byte while the table is still sparse.
 */
#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRY 64UL
/* Number of readings of the memory in use, evenly spread over the insertions. */
#define READINGS 16

/* Memory in use; reservations are available memory, so they are not included. */
static unsigned long used_kib(void)
{
	return meminfo_kib("MemTotal:") - meminfo_kib("MemAvailable:");
}

int main(int argc, char **argv)
{
	unsigned long before_kib, most_kib = 0;
	uint64_t seed, sum = 0, *took;
	struct rollup rollup;
	struct random random;
	size_t table, slots;
	double scale, useful_kib;
	long entries;
	char *start;
	int advice;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	table = option_integer("table");
	entries = option_integer("entries");
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	scale = clock_scale();
	table -= table % REGION;
	start = table ? map_regions(table) : NULL;
	if (!start)
		workload_fail("cannot map a table of %zu bytes: %s", table, strerror(errno));
	advise(start, table, advice);
	slots = table / ENTRY;
	took = values_of(entries);
	random = random_of(seed, 0);

	before_kib = used_kib();
	for (long n = 0; n < entries; n++) {
		uint64_t slot = random_next(&random) % slots;
		char *entry = start + slot * ENTRY;
		uint64_t began = ticks();

		memset(entry, 1 + n % 255, ENTRY);
		took[n] = ticks() - began;
		if (n % (entries / READINGS + 1) == entries / READINGS || n == entries - 1) {
			unsigned long now_kib = used_kib();

			most_kib = now_kib > most_kib ? now_kib : most_kib;
		}
	}
	rollup = smaps_rollup(0);
	metric_reserved("reserved_kib.max");
	for (long n = 0; n < entries; n++)
		sum += took[n];
	sort_values(took, entries);
	useful_kib = (double)entries * ENTRY / KIB;

	metric_clock("insert_%s.p50", percentile(took, entries, 0.50) * scale);
	metric_clock("insert_%s.p99", percentile(took, entries, 0.99) * scale);
	metric_clock("insert_%s.mean", sum * scale / entries);
	metric("useful_kib.sum", "KiB", useful_kib);
	metric("rss_kib.max", "KiB", rollup.rss_kib);
	metric("anon_huge_kib.max", "KiB", rollup.anon_huge_kib);
	metric("memory_per_useful.ratio", "bytes/byte",
	       most_kib > before_kib ? (most_kib - before_kib) / useful_kib : 0);
	histogram("insert_%s", took, entries);
	workload_end();
}
