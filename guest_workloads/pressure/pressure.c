// SPDX-License-Identifier: GPL-2.0-only
/*
 * pressure: page cache and anonymous memory competing for memory.
 *
 * Most of memory is filled with clean page cache, part of which is read
 * repeatedly like the working set of a program. Then anonymous memory is
 * touched sparsely until as much as requested is in use. The kernel should
 * give up reservations before it reclaims the working set; the number of
 * refaults (workingset_refault_file) shows whether it did.
 *
 * The page cache is that of a zram device. Its blocks were never written, so
 * they read as zeros and take no memory, while their page cache does.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONTROL "/sys/class/zram-control/hot_add"
#define READ_SIZE (256 * KIB)

static char buffer[READ_SIZE];

static long counted(const char *name)
{
	long value = vmstat(name);

	return value < 0 ? 0 : value;
}

/* Pages reclaimed by kswapd and by direct reclaim. */
static long reclaimed(void)
{
	return counted("pgsteal_kswapd") + counted("pgsteal_direct");
}

/* Create a device of `size` bytes, all zeros, which takes no memory itself. */
static int device_open(size_t size)
{
	char path[64], text[32];
	int control = open(CONTROL, O_RDONLY | O_CLOEXEC), device, number;
	ssize_t length = control < 0 ? -1 : read(control, text, sizeof(text) - 1);

	if (length <= 0)
		workload_fail("this kernel has no zram device to cache: " CONTROL ": %s",
			      strerror(errno));
	close(control);
	text[length] = 0;
	number = atoi(text);
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", number);
	snprintf(text, sizeof(text), "%zu", size);
	if (!write_text(path, text))
		workload_fail("cannot size the zram device: %s", strerror(errno));
	snprintf(path, sizeof(path), "/dev/zram%d", number);
	device = open(path, O_RDONLY | O_CLOEXEC);
	if (device < 0)
		workload_fail("cannot open %s: %s", path, strerror(errno));
	/* Read page by page: read-ahead would hide refaults. */
	(void)posix_fadvise(device, 0, 0, POSIX_FADV_RANDOM);
	return device;
}

/* Read the start of the device, so that it is in the page cache and recently used. */
static void read_first(int device, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += READ_SIZE)
		if (pread(device, buffer, READ_SIZE, at) != (ssize_t)READ_SIZE)
			workload_fail("cannot read the zram device at %zu: %s", at,
				      strerror(errno));
}

int main(int argc, char **argv)
{
	size_t available, cache, hot, anonymous, regions, every;
	long percent_cache, percent_hot, percent_anonymous, percent_ballast, most, touches = 0;
	struct node nodes[MAX_NODES];
	long refaults, steals, stalls;
	uint64_t seed, *took, sum = 0, read_sum = 0;
	struct random random;
	struct deck deck;
	double scale;
	long reads = 0;
	char *start;
	int advice, device;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	percent_cache = option_integer("cache_percent");
	percent_hot = option_integer("hot_percent");
	percent_anonymous = option_integer("anonymous_percent");
	percent_ballast = option_integer("ballast_percent");
	most = option_integer("most_pages");
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	scale = clock_scale();
	hold_ballast(nodes, nodes_find(nodes), percent_ballast);
	available = meminfo_kib("MemAvailable:") * KIB;
	cache = available / 100 * percent_cache / READ_SIZE * READ_SIZE;
	hot = available / 100 * percent_hot / READ_SIZE * READ_SIZE;
	anonymous = available / 100 * percent_anonymous;
	device = device_open(cache);
	/* Twice, so that the hot part is on the active list. */
	read_first(device, cache);
	read_first(device, hot);
	read_first(device, hot);

	/* As many regions as needed for the touched pages: on average half of `most` in each. */
	regions = anonymous / ((most + 1) * PAGE / 2) + 1;
	start = map_regions(regions * REGION);
	if (!start)
		workload_fail("cannot map %zu regions: %s", regions, strerror(errno));
	advise(start, regions * REGION, advice);
	took = values_of(regions * most);
	deck_begin(&deck);
	random = random_of(seed, 0);
	/* The hot part is read sixteen times in between. */
	every = regions / 16 + 1;
	refaults = counted("workingset_refault_file");
	steals = reclaimed();
	stalls = counted("allocstall_normal") + counted("allocstall_movable") +
		 counted("allocstall_dma32");
	for (size_t region = 0; region < regions; region++) {
		uint32_t pages = 1 + random_below(&random, most);

		for (uint32_t n = 0; n < pages; n++) {
			volatile char *page =
				start + region * REGION + deck_draw(&deck, &random, n) * PAGE;
			uint64_t began = ticks();

			*page = 1;
			took[touches] = ticks() - began;
			sum += took[touches++];
		}
		if (region % every == every - 1) {
			uint64_t began = ticks();

			read_first(device, hot);
			read_sum += ticks() - began;
			reads++;
		}
		/* Stop before the OOM killer runs, which other workloads measure. */
		if (touches * PAGE >= anonymous)
			break;
	}
	refaults = counted("workingset_refault_file") - refaults;
	steals = reclaimed() - steals;
	stalls = counted("allocstall_normal") + counted("allocstall_movable") +
		 counted("allocstall_dma32") - stalls;
	sort_values(took, touches);

	metric_clock("touch_%s.p50", percentile(took, touches, 0.50) * scale);
	metric_clock("touch_%s.p99", percentile(took, touches, 0.99) * scale);
	metric_clock("touch_%s.max", took[touches - 1] * scale);
	metric_clock("touch_%s.mean", sum * scale / touches);
	if (reads)
		metric_clock("hot_read_%s.mean", read_sum * scale / reads);
	metric("touched_kib.sum", "KiB", touches * (PAGE / KIB));
	metric("refaults.total", "pages", refaults);
	metric("reclaimed.total", "pages", steals);
	metric("direct_reclaims.total", "stalls", stalls);
	metric("cache_kib.end", "KiB", meminfo_kib("Cached:") + meminfo_kib("Buffers:"));
	histogram("touch_%s", took, touches);
	workload_end();
}
