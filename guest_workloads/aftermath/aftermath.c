// SPDX-License-Identifier: GPL-2.0-only
/*
 * aftermath: what a sparse process costs others, while it lives and after it
 * has ended.
 *
 * Other workloads measure the process that touches memory. This one measures
 * the next process and the neighbour: a sparse process touches a page or some
 * pages of each 2 MiB range, and then
 *
 *  - exits: are its 2 MiB blocks free again, and does the next process that
 *    asks for huge pages get them?
 *  - unmaps, exits, or gives up its reservations: what does this cost?
 *  - lives on while a neighbour on the same node allocates base pages: are
 *    these on the node of the neighbour?
 *  - lives on while the administrator asks for hugetlb pages: are there any?
 *  - lives on while memory is compacted: can its ranges still be promoted in
 *    place?
 *  - is in a memcg with a small limit: how much memory does it hold that is
 *    charged to nobody?
 *
 * Each part has processes of its own, and starts when the memory of the part
 * before is free again, in blocks as large as possible.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define THP "/sys/kernel/mm/transparent_hugepage/"
#define HUGETLB "/proc/sys/vm/nr_hugepages"
#define MEMCG "/sys/fs/cgroup/aftermath"

static struct node nodes[MAX_NODES];
static int node_count;
static uint64_t seed;
static long pages_per_range;

/* ---- what the kernel says ---- */

static size_t free_bytes(int node)
{
	char path[64], line[128];
	unsigned long kib = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	file = fopen(path, "re");
	/* A kernel without NUMA has no such file, and one node. */
	if (!file)
		return meminfo_kib("MemFree:") * KIB;
	while (fgets(line, sizeof(line), file)) {
		char *at = strstr(line, "MemFree:");

		if (at)
			kib = strtoul(at + strlen("MemFree:"), NULL, 10);
	}
	fclose(file);
	return kib * KIB;
}

/* Counters are per CPU; this adds them up (Documentation/admin-guide/sysctl/vm.rst, stat_refresh). */
static long counted(const char *name)
{
	write_text("/proc/sys/vm/stat_refresh", "1");
	return vmstat(name);
}

static bool has_reservations(void)
{
	return vmstat("nr_thp_reserved") >= 0;
}

static long hugetlb_pages(void)
{
	FILE *file = fopen(HUGETLB, "re");
	long pages = -1;

	if (file && fscanf(file, "%ld", &pages) != 1)
		pages = -1;
	if (file)
		fclose(file);
	return pages;
}

static void set_hugetlb_pages(long pages)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", pages);
	if (!write_text(HUGETLB, text))
		workload_fail("cannot change the number of hugetlb pages: %s", strerror(errno));
}

static void compact(void)
{
	if (!write_text("/proc/sys/vm/compact_memory", "1"))
		workload_fail("this kernel does not compact memory: %s", strerror(errno));
}

/*
 * Start from the same state of memory in each part. Pages on per-CPU lists keep their blocks from being free; an
 * allocation that fails empties these lists (mm/page_alloc.c), and compaction does not.
 */
static void settle(void)
{
	long before = hugetlb_pages(), free = 0;

	write_text("/proc/sys/vm/drop_caches", "3");
	if (before >= 0) {
		for (int n = 0; n < node_count; n++)
			free += free_bytes(nodes[n].id) / REGION;
		set_hugetlb_pages(before + free);
		set_hugetlb_pages(before);
	}
	compact();
}

/* ---- processes ---- */

static char *map_ranges(long ranges)
{
	char *start = map_regions(ranges * REGION);

	if (!start)
		workload_fail("cannot map %ld ranges: %s", ranges, strerror(errno));
	return start;
}

/* Write to pages `first` to `last` - 1 of each range, counted in a random order that is the same each time. */
static void touch_ranges(char *start, long ranges, long first, long last)
{
	struct random random = random_of(seed, 1);
	uint32_t shift = random_below(&random, PAGES_PER_REGION) | 1;

	for (long range = 0; range < ranges; range++)
		for (long n = first; n < last; n++)
			*(volatile char *)(start + range * REGION +
					   n * shift % PAGES_PER_REGION * PAGE) = 1 + range % 100;
}

/*
 * Start a process on a node that touches `pages` pages in each of `ranges` ranges, and then waits; return when it has
 * done so, or has been killed. `memcg` (NULL: none) is the cgroup.procs file of the memcg to join.
 */
static pid_t sparse_begin(const struct node *node, long ranges, long pages, const char *memcg)
{
	pid_t sparse;
	int ready[2];
	char byte;

	if (pipe2(ready, O_CLOEXEC))
		workload_fail("cannot make a pipe: %s", strerror(errno));
	fflush(stdout);
	sparse = fork();
	if (sparse < 0)
		workload_fail("cannot start a process: %s", strerror(errno));
	if (!sparse) {
		/* If memory ends, this process is the one to kill. */
		write_text("/proc/self/oom_score_adj", "1000");
		if (memcg && !write_text(memcg, "0"))
			_exit(1);
		pin_to_node(node);
		touch_ranges(map_ranges(ranges), ranges, 0, pages);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	/* End of file, if it has been killed. */
	if (read(ready[0], &byte, 1) < 0)
		workload_fail("cannot wait for a process: %s", strerror(errno));
	close(ready[0]);
	return sparse;
}

static void sparse_end(pid_t sparse)
{
	kill(sparse, SIGKILL);
	if (waitpid(sparse, NULL, 0) != sparse)
		workload_fail("a process is gone: %s", strerror(errno));
}

/* ---- the parts ---- */

/* A sparse process lives and dies. The next one asks for huge pages. */
static void blocks_come_back(long percent)
{
	int node = nodes[0].id;
	long before, after, ranges, huge;
	char *start;

	settle();
	before = free_blocks(node);
	ranges = before * percent / 100;
	if (ranges < 1)
		workload_fail("node %d has only %ld free blocks", node, before);
	sparse_end(sparse_begin(&nodes[0], ranges, 1, NULL));
	after = free_blocks(node);
	metric("free_blocks_before.total", "blocks", before);
	metric("free_blocks_after.total", "blocks", after);
	metric("blocks_back.percent", "%", 100.0 * after / before);

	pin_to_node(&nodes[0]);
	start = map_ranges(ranges);
	advise(start, ranges * REGION, ADVICE_HUGEPAGE);
	touch_ranges(start, ranges, 0, 1);
	huge = smaps_rollup(0).anon_huge_kib / (REGION / KIB);
	munmap(start, ranges * REGION);
	metric("next_huge.percent", "%", 100.0 * (huge < ranges ? huge : ranges) / ranges);
}

/* The cost of a range: its first touch, munmap(), and exit. */
static void cost_of_the_end(long ranges)
{
	double scale = clock_scale();
	pid_t sparse;
	uint64_t began, empty;
	char *start;

	settle();
	pin_to_cpu(cpu_of_nodes(nodes, node_count, 0));
	start = map_ranges(ranges);
	/* The page tables of the mapping are there, so that the first touch is that of a range. */
	*(volatile char *)start = 1;
	began = ticks();
	touch_ranges(start + REGION, ranges - 1, 0, 1);
	metric_clock("first_touch_%s.mean", (ticks() - began) * scale / (ranges - 1));
	touch_ranges(start, ranges, 1, pages_per_range);
	began = ticks();
	munmap(start, ranges * REGION);
	metric_clock("munmap_%s.mean", (ticks() - began) * scale / ranges);

	sparse = sparse_begin(&nodes[0], 1, 1, NULL);
	began = ticks();
	sparse_end(sparse);
	empty = ticks() - began;
	sparse = sparse_begin(&nodes[0], ranges, pages_per_range, NULL);
	began = ticks();
	sparse_end(sparse);
	/* Without what the exit of any process costs. */
	metric_clock("exit_%s.mean", ((double)(ticks() - began) - empty) * scale / ranges);
}

/*
 * Let the kernel give up all reservations, in the first of these ways that it knows: as huge pages are no longer
 * enabled, or as caches are dropped. Returns what it cost.
 */
static uint64_t dump(long *dumped)
{
	static const char *const enabled = THP "enabled";
	long before = counted("thp_res_dump");
	uint64_t began, took;

	began = ticks();
	if (!write_text(enabled, "never"))
		workload_fail("cannot disable huge pages: %s", strerror(errno));
	took = ticks() - began;
	write_text(enabled, "always");
	*dumped = counted("thp_res_dump") - before;
	if (*dumped)
		return took;
	/* The first time, this frees other caches as well. */
	began = ticks();
	write_text("/proc/sys/vm/drop_caches", "2");
	took = ticks() - began;
	*dumped = counted("thp_res_dump") - before;
	return took;
}

/* A sparse process lives on, but its reservations are given up. */
static void dump_while_it_lives(long percent)
{
	int node = nodes[0].id;
	pid_t sparse;
	long before, dumped;
	uint64_t took;

	if (!has_reservations())
		return;
	settle();
	before = free_blocks(node);
	sparse = sparse_begin(&nodes[0], before * percent / 100, 1, NULL);
	took = dump(&dumped);
	if (dumped) {
		metric_clock("dump_%s.mean", took * clock_scale() / dumped);
		compact();
		metric("blocks_back_after_dump.percent", "%", 100.0 * free_blocks(node) / before);
	}
	sparse_end(sparse);
}

/* A sparse process has all of a node; a neighbour on that node needs base pages. */
static void neighbour(long percent)
{
	size_t size, all = 0;
	long pages, remote = 0, ranges;
	pid_t sparse;
	void **page;
	int *on;
	char *start;

	if (node_count < 2)
		return;
	settle();
	size = free_bytes(nodes[0].id) / 100 * percent / PAGE * PAGE;
	pages = size / PAGE;
	for (int n = 0; n < node_count; n++)
		all += free_bytes(nodes[n].id);
	/* More than the node has, but less than the machine has. */
	ranges = free_bytes(nodes[0].id) / 100 * 120 / REGION;
	if (ranges > (long)(all / 4 * 3 / REGION))
		ranges = all / 4 * 3 / REGION;
	sparse = sparse_begin(&nodes[0], ranges, 1, NULL);
	pin_to_node(&nodes[0]);
	start = map_ranges(size / REGION + 1);
	advise(start, size, ADVICE_NOHUGEPAGE);
	page = malloc(pages * sizeof(*page));
	on = malloc(pages * sizeof(*on));
	if (!page || !on)
		workload_fail("no memory for the nodes of %ld pages", pages);
	for (long i = 0; i < pages; i++) {
		page[i] = start + i * PAGE;
		*(volatile char *)page[i] = 1;
	}
	/* Without nodes to move to, move_pages(2) says where the pages are. */
	if (syscall(SYS_move_pages, 0, pages, page, NULL, on, 0))
		workload_fail("move_pages: %s", strerror(errno));
	for (long i = 0; i < pages; i++)
		remote += on[i] != nodes[0].id;
	metric("neighbour_remote.percent", "%", 100.0 * remote / pages);
	munmap(start, (size / REGION + 1) * REGION);
	free(page);
	free(on);
	sparse_end(sparse);
}

/* Sparse processes have most of each node; then hugetlb pages are wanted. */
static void hugetlb(long percent, long wanted_percent)
{
	pid_t sparse[MAX_NODES];
	long wanted = 0, before = hugetlb_pages(), got;

	if (before < 0)
		return;
	settle();
	for (int n = 0; n < node_count; n++)
		wanted += free_blocks(nodes[n].id) * wanted_percent / 100;
	for (int n = 0; n < node_count; n++)
		sparse[n] =
			sparse_begin(&nodes[n], free_blocks(nodes[n].id) * percent / 100, 1, NULL);
	set_hugetlb_pages(before + wanted);
	got = hugetlb_pages() - before;
	set_hugetlb_pages(before);
	for (int n = 0; n < node_count; n++)
		sparse_end(sparse[n]);
	metric("hugetlb_wanted.total", "pages", wanted);
	metric("hugetlb_got.percent", "%", 100.0 * got / wanted);
}

/* Ranges are filled in part, memory is compacted, the rest is filled: can they be promoted in place? */
static void in_place_after_compaction(long ranges)
{
	long made, in_place;
	char *start;

	/* In kernels that do not promote in place, there is no such counter. */
	if (vmstat("thp_res_collapse") < 0)
		return;
	settle();
	made = counted("thp_res_alloc");
	in_place = counted("thp_res_collapse");
	pin_to_node(&nodes[0]);
	start = map_ranges(ranges);
	touch_ranges(start, ranges, 0, pages_per_range);
	compact();
	touch_ranges(start, ranges, pages_per_range, PAGES_PER_REGION);
	for (long range = 0; range < ranges; range++)
		/* A range that is huge by now is left as it is; any failure shows in the counters. */
		(void)madvise(start + range * REGION, REGION, MADV_COLLAPSE);
	made = counted("thp_res_alloc") - made;
	in_place = counted("thp_res_collapse") - in_place;
	for (long range = 0; range < ranges; range++)
		for (unsigned long page = 0; page < PAGES_PER_REGION; page++)
			if (start[range * REGION + page * PAGE] != 1 + range % 100 ||
			    start[range * REGION + page * PAGE + 1])
				workload_fail("page %lu of range %ld has wrong contents", page,
					      range);
	munmap(start, ranges * REGION);
	if (made)
		metric("in_place_after_compaction.percent", "%", 100.0 * in_place / made);
}

/* A sparse process in a memcg with a small limit. */
static void memcg(long limit_mib, long percent)
{
	long ranges, before, reserved;
	pid_t sparse;
	char text[32];

	if (!has_reservations())
		return;
	settle();
	ranges = meminfo_kib("MemFree:") / (REGION / KIB) * percent / 100;
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	snprintf(text, sizeof(text), "%ld", limit_mib * (long)MIB);
	if ((mkdir(MEMCG, 0755) && errno != EEXIST) || !write_text(MEMCG "/memory.max", text))
		workload_fail("cannot limit a memcg: %s", strerror(errno));
	before = counted("nr_thp_reserved");
	sparse = sparse_begin(&nodes[0], ranges, 1, MEMCG "/cgroup.procs");
	reserved = counted("nr_thp_reserved") - before;
	sparse_end(sparse);
	rmdir(MEMCG);
	metric("memcg_uncharged_kib.max", "KiB", reserved * (double)(PAGE / KIB));
	metric("memcg_uncharged.percent", "%",
	       100.0 * reserved * (PAGE / KIB) / (limit_mib * (MIB / KIB)));
}

int main(int argc, char **argv)
{
	long percent, ranges, neighbour_percent, wanted_percent, limit_mib;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	percent = option_integer("memory_percent");
	ranges = option_integer("ranges");
	pages_per_range = option_integer("pages");
	neighbour_percent = option_integer("neighbour_percent");
	wanted_percent = option_integer("hugetlb_percent");
	limit_mib = option_integer("limit_mib");
	clock_begin();
	options_done();
	node_count = nodes_find(nodes);

	neighbour(neighbour_percent);
	hugetlb(percent, wanted_percent);
	in_place_after_compaction(ranges);
	memcg(limit_mib, percent);
	blocks_come_back(percent);
	dump_while_it_lives(percent);
	cost_of_the_end(ranges);
	workload_end();
}
