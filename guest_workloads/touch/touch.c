// SPDX-License-Identifier: GPL-2.0-only
/*
 * touch: known writes to memory, with a check of the contents.
 *
 * Checks that every page is zero at first, and contains what was written
 * later, even after a fork whose child overwrites its copy. It fails if the
 * kernel hands out a page twice, or without clearing it.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS_PER_PAGE (PAGE / sizeof(uint64_t))

static const char *const yes_no[] = { "no", "yes", NULL };

static char *memory;
static long region_count, pages_per_region, step;

static uint64_t mark(uint64_t seed, long region, long page)
{
	return seed * 0x9e3779b97f4a7c15ULL ^ ((uint64_t)region << 16 | page) ^ 1;
}

static uint64_t *page_at(long region, long n)
{
	return (uint64_t *)(memory + region * REGION + n * step % PAGES_PER_REGION * PAGE);
}

static void write_all(uint64_t seed, bool check_zero)
{
	for (long region = 0; region < region_count; region++) {
		for (long n = 0; n < pages_per_region; n++) {
			uint64_t *words = page_at(region, n);

			/* Write first: a read would map the zero page, which is a different code path. */
			words[0] = mark(seed, region, n);
			for (size_t i = 1; check_zero && i < WORDS_PER_PAGE; i++)
				if (words[i])
					workload_fail(
						"page %ld of region %ld is not zero at first: %#llx",
						n, region, (unsigned long long)words[i]);
			words[WORDS_PER_PAGE - 1] = words[0];
		}
	}
}

static bool check_all(uint64_t seed)
{
	for (long region = 0; region < region_count; region++) {
		for (long n = 0; n < pages_per_region; n++) {
			const uint64_t *words = page_at(region, n);

			if (words[0] != mark(seed, region, n) ||
			    words[WORDS_PER_PAGE - 1] != words[0])
				return false;
		}
	}
	return true;
}

/* Writes of a child to its copy must not be visible here, nor ours there. */
static void fork_and_check(uint64_t seed)
{
	pid_t child;
	int status;

	fflush(stdout);
	child = fork();
	if (child < 0)
		workload_fail("fork: %s", strerror(errno));
	if (!child) {
		if (!check_all(seed))
			_exit(2);
		write_all(seed + 1, false);
		_exit(check_all(seed + 1) ? 0 : 3);
	}
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status))
		workload_fail("the child read wrong contents, or died (wait status %#x)", status);
	if (!check_all(seed))
		workload_fail("memory changed when a child wrote its copy");
}

int main(int argc, char **argv)
{
	struct rollup rollup;
	uint64_t seed;
	long reserved;
	bool verify, with_fork;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	region_count = option_integer("memory") / REGION;
	pages_per_region = option_integer("pages_per_region");
	step = option_integer("step");
	verify = option_choice("verify", yes_no);
	with_fork = option_choice("fork", yes_no);
	clock_begin();
	options_done();
	if (!region_count)
		workload_fail("the memory is smaller than one region of 2 MiB");
	if (step % 2 == 0)
		workload_fail("step must be odd, or pages would be touched twice");
	memory = map_regions(region_count * REGION);
	if (!memory)
		workload_fail("cannot map the memory: %s", strerror(errno));

	write_all(seed, verify);
	rollup = smaps_rollup(0);
	/* Fold per-CPU counters first (Documentation/admin-guide/sysctl/vm.rst, stat_refresh). */
	write_text("/proc/sys/vm/stat_refresh", "1");
	reserved = vmstat("nr_thp_reserved");
	if (verify && !check_all(seed))
		workload_fail("memory does not contain what was written");
	if (with_fork)
		fork_and_check(seed);
	metric("rss_kib.max", "KiB", rollup.rss_kib);
	metric("anon_huge_kib.max", "KiB", rollup.anon_huge_kib);
	metric("touched_kib.sum", "KiB", region_count * pages_per_region * (PAGE / KIB));
	if (reserved >= 0)
		metric("reserved_pages.total", "pages", reserved);
	workload_end();
}
