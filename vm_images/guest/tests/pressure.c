// SPDX-License-Identifier: GPL-2.0-only
/* Memory pressure: dumps, the shrinker, memcg limits, nodes, memory offlining. */
#include "tests.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>

#define COUNT 32

static char *filled(struct image *image, unsigned int round)
{
	char *start;

	threshold(512);
	start = regions(image->count);
	for (unsigned int region = 0; region < image->count; region++)
		for (unsigned int slot = region % 7; slot < PAGES_PER_REGION; slot += 61)
			put(image, start, region, slot, seed_of(region, slot, round));
	return start;
}

static void drop_caches(void)
{
	struct image *image = image_of(COUNT);
	char *start = filled(image, 0);
	struct counters before = counters();

	REQUIRE(before.reserved > COUNT * 400, "%ld pages are reserved", before.reserved);
	setting("/proc/sys/vm/drop_caches", "2");
	EXPECT(counters().reserved < before.reserved / 10, "drop_caches=2 leaves %ld of %ld pages",
	       counters().reserved, before.reserved);
	EXPECT(since(before).dumped > 0, "no dump was counted");
	expect_contents(image, start, "dumped");
	/* Pages written afterwards are not from the block. */
	for (unsigned int region = 0; region < COUNT; region++)
		put(image, start, region, 60, seed_of(region, 60, 1));
	expect_contents(image, start, "dumped and written");
	unmap(start, COUNT);
}

static void debugfs_lists(void)
{
	struct image *image = image_of(COUNT);
	char *start = filled(image, 0), line[256], mm[64];
	unsigned long address, pfn, unused_total = 0;
	unsigned int unused, mine = 0;
	int pid, node;
	FILE *file = fopen("/sys/kernel/debug/thp_reserve/blocks", "r");

	if (!file)
		skip("this kernel has no list of reservations");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%d %63s %lx %lx %d %u", &pid, mm, &address, &pfn, &node,
			   &unused) != 6)
			continue;
		unused_total += unused;
		mine += pid == getpid() && address >= (uintptr_t)start &&
			address < (uintptr_t)start + COUNT * REGION &&
			pfn % PAGES_PER_REGION == 0 &&
			pfn_of((char *)address + 7 * PAGE) / 512 * 512 <= pfn + 512;
	}
	fclose(file);
	EXPECT(mine == COUNT, "%u of %d regions are listed", mine, COUNT);
	EXPECT((long)unused_total == counters().reserved,
	       "%lu unused pages are listed, %ld are reserved", unused_total, counters().reserved);
	EXPECT(try_write("/sys/kernel/debug/thp_reserve/dump", "2") == -EINVAL, "dump accepts 2");
	dump();
	EXPECT(!counters().reserved, "%ld pages are left after a dump", counters().reserved);
	expect_contents(image, start, "dumped");
	unmap(start, COUNT);
}

#define TRACING "/sys/kernel/tracing/"

/* Each event is traced as often as it is counted. A reservation whose pages are all in use reports no page. */
static void traced(void)
{
	static const char *const events[] = { "alloc", "map", "move", "release", "collapse" };
	unsigned int seen[ARRAY_SIZE(events)] = {}, released = 0, without_page = 0;
	char path[128], line[512], *start, *target;
	struct counters before, delta;
	FILE *file;

	if (access(TRACING "events/huge_memory/mm_thp_resv_alloc", F_OK))
		skip("this kernel has no tracepoints");
	threshold(512);
	target = regions(1);
	close(open(TRACING "trace", O_WRONLY | O_TRUNC));
	before = counters();
	for (size_t e = 0; e < ARRAY_SIZE(events); e++) {
		snprintf(path, sizeof(path), TRACING "events/huge_memory/mm_thp_resv_%s/enable",
			 events[e]);
		setting(path, "1");
	}
	start = regions(4);
	/* Locked, so that full regions are not promoted. */
	mlock2(start, REGION, MLOCK_ONFAULT);
	for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot++)
		*PAGE_OF(start, 0, slot) = 1;
	for (unsigned int region = 1; region < 4; region++)
		*PAGE_OF(start, region, region) = 1;
	munlock(start, REGION);
	threshold(1);
	madvise(PAGE_OF(start, 3, 0), REGION, MADV_COLLAPSE);
	REQUIRE(mremap(PAGE_OF(start, 2, 0), REGION, REGION, MREMAP_MAYMOVE | MREMAP_FIXED,
		       target) == target,
		"mremap: %s", strerror(errno));
	unmap(target, 1);
	munmap(PAGE_OF(start, 3, 0), REGION);
	munmap(start, 2 * REGION);
	for (size_t e = 0; e < ARRAY_SIZE(events); e++) {
		snprintf(path, sizeof(path), TRACING "events/huge_memory/mm_thp_resv_%s/enable",
			 events[e]);
		setting(path, "0");
	}
	delta = since(before);
	file = fopen(TRACING "trace", "r");
	REQUIRE(file, "%strace: %s", TRACING, strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		for (size_t e = 0; e < ARRAY_SIZE(events); e++) {
			const char *nr_unused = strstr(line, "nr_unused=");

			snprintf(path, sizeof(path), "mm_thp_resv_%s:", events[e]);
			if (!strstr(line, path) || !nr_unused)
				continue;
			seen[e]++;
			if (!strcmp(events[e], "release")) {
				released += atoi(nr_unused + strlen("nr_unused="));
				without_page += !!strstr(line, "node=-1 nr_unused=0");
			}
		}
	}
	fclose(file);
	EXPECT(seen[0] == 4 && delta.alloc == 4, "%u reservations traced, %ld counted", seen[0],
	       delta.alloc);
	EXPECT(seen[1] == delta.mapped, "%u pages handed out traced, %ld counted", seen[1],
	       delta.mapped);
	EXPECT(seen[2] == 1, "%u moves traced", seen[2]);
	EXPECT(seen[3] == 3 && released == delta.released,
	       "%u given up traced with %u pages, %ld pages counted", seen[3], released,
	       delta.released);
	EXPECT(seen[4] == delta.collapsed && seen[4] == 1, "%u promotions traced, %ld counted",
	       seen[4], delta.collapsed);
	EXPECT(without_page == 1, "%u of the reservations given up had no page", without_page);
}

static long free_kib_of(int node)
{
	char path[64], line[128];
	long free_kib = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	file = fopen(path, "r");
	REQUIRE(file, "%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		char *at = strstr(line, "MemFree:");

		if (at)
			free_kib = atol(at + strlen("MemFree:"));
	}
	fclose(file);
	return free_kib;
}

/* Allocate more memory of a node than is free; returns false if the process was killed. */
static bool fill_node(int node, long beyond_kib)
{
	pid_t child = begin_child();

	if (!child) {
		size_t size = (free_kib_of(node) + beyond_kib) * KIB / REGION * REGION;
		char *start;

		start = map_regions(size);
		madvise(start, size, MADV_NOHUGEPAGE);
		bind_to(start, size, node);
		for (size_t at = 0; at < size; at += PAGE)
			start[at] = 1;
		_exit(0);
	}
	return !end_of(child);
}

/* Reclaim begins well before a node is full, so many regions are needed. */
#define NODE_REGIONS 160

static void right_node(void)
{
	int nodes = node_count(), victim = 1;
	long before[MAX_NODES], after;
	struct image *images[MAX_NODES];
	char *starts[MAX_NODES];

	if (nodes < 2)
		skip("there is only one node");
	threshold(512);
	for (int node = 0; node < nodes; node++) {
		images[node] = image_of(NODE_REGIONS);
		starts[node] = regions(NODE_REGIONS);
		bind_to(starts[node], NODE_REGIONS * REGION, node);
		for (unsigned int region = 0; region < NODE_REGIONS; region++)
			put(images[node], starts[node], region, 3, seed_of(region, 3, node));
	}
	for (int node = 0; node < nodes; node++) {
		before[node] = reserved_on(node);
		EXPECT(before[node] == NODE_REGIONS * 511, "node %d holds %ld reserved pages", node,
		       before[node]);
	}
	EXPECT(fill_node(victim, NODE_REGIONS * 700), "killed although %d MiB were reserved",
	       NODE_REGIONS * 2);
	for (int node = 0; node < nodes; node++) {
		after = reserved_on(node);
		note("node %d: %ld reserved pages, then %ld", node, before[node], after);
		if (node == victim)
			EXPECT(after < before[node],
			       "node %d was short of memory and kept its reservations", node);
		else
			EXPECT(after == before[node], "node %d lost %ld pages for node %d", node,
			       before[node] - after, victim);
		expect_contents(images[node], starts[node], "after pressure");
		unmap(starts[node], NODE_REGIONS);
	}
}

/*
 * One node is full, while processes make and give up reservations on the other node. This does not help a process that
 * is bound to the full node, so the OOM killer has to run.
 */
static void one_node_full(void)
{
	struct counters before = counters();
	long kills = event_count("oom_kill");
	pid_t reserving[4], filling;
	long least = LONG_MAX;
	bool ended = false;

	if (node_count() < 2)
		skip("there is only one node");
	if (swap_is_on())
		skip("with swap a node is never full");
	threshold(512);
	for (size_t r = 0; r < ARRAY_SIZE(reserving); r++) {
		reserving[r] = begin_child();
		while (!reserving[r]) {
			char *start = regions(16);

			bind_to(start, 16 * REGION, 1);
			for (unsigned int region = 0; region < 16; region++)
				*PAGE_OF(start, region, 3) = 1;
			unmap(start, 16);
		}
	}
	filling = begin_child();
	if (!filling) {
		setting("/proc/self/oom_score_adj", "1000");
		fill_node(0, 1 << 20);
		_exit(0);
	}
	/* Filling takes some time, but there must be progress within a minute. */
	for (int wait = 0; wait < 600 && !ended; wait++) {
		long now = free_kib_of(0);

		if (now < least) {
			least = now;
			wait = 0;
		}
		usleep(100000);
		ended = waitpid(filling, NULL, WNOHANG) == filling;
	}
	EXPECT(ended && event_count("oom_kill") > kills,
	       "no process was killed within a minute although node 0 is full");
	EXPECT(!since(before).dumped, "%ld reservations on node 1 were given up for node 0",
	       since(before).dumped);
	if (!ended) {
		kill(filling, SIGKILL);
		end_of(filling);
	}
	for (size_t r = 0; r < ARRAY_SIZE(reserving); r++) {
		kill(reserving[r], SIGKILL);
		end_of(reserving[r]);
	}
}

/* All memory is reserved and then needed: tests reclaim and its recursion; there must be no OOM kill. */
static void all_memory_reserved(void)
{
	long total = 0;
	struct counters before = counters(), now;
	unsigned int count = meminfo_kib("MemAvailable:") / 2048 * 9 / 10;
	struct image *image = image_of(count);
	uint64_t began;
	char *start;

	threshold(512);
	start = regions(count);
	for (unsigned int region = 0; region < count; region++)
		put(image, start, region, region % 512, seed_of(region, region, 0));
	now = since(before);
	note("%u regions: %ld reserved, %ld failed, %ld dumped", count, now.alloc, now.failed,
	     now.dumped);
	/* Dump all of it as fast as possible. */
	began = monotonic_ns();
	if (dump()) {
		note("a dump of %ld pages took %.0f ms", now.reserved,
		     (monotonic_ns() - began) / 1e6);
		EXPECT(counters().reserved < now.reserved / 10 + 512, "%ld pages are left",
		       counters().reserved);
	}
	for (unsigned int region = 0; region < count; region++)
		total += page_is(PAGE_OF(start, region, region % 512),
				 image->seed[region * 512 + region % 512]);
	EXPECT(total == count, "%ld of %u pages are right after the dump", total, count);
	/* Write half of the regions completely: they fit. */
	for (unsigned int region = 0; region < count / 2; region++)
		for (unsigned int slot = 0; slot < 512; slot++)
			put(image, start, region, slot, seed_of(region, slot, 1));
	for (unsigned int region = 0; region < count / 2; region += 7)
		for (unsigned int slot = 0; slot < 512; slot++)
			EXPECT(page_is(PAGE_OF(start, region, slot),
				       image->seed[region * 512 + slot]),
			       "region %u page %u", region, slot);
	unmap(start, count);
}

/* More regions than fit in memory, with one page each: there must be no OOM kill. */
static void sparse_beyond_memory(void)
{
	struct counters before = counters(), now;
	unsigned int count = (unsigned int)(installed_kib() / 2048 * 3);
	pid_t child = begin_child();

	if (!child) {
		char *start = regions(count);
		unsigned int wrong = 0;

		threshold(256);
		for (unsigned int region = 0; region < count; region++)
			page_fill(PAGE_OF(start, region, region * 37 % 512), seed_of(region, 0, 0));
		for (unsigned int region = 0; region < count; region++)
			wrong += !page_is(PAGE_OF(start, region, region * 37 % 512),
					  seed_of(region, 0, 0));
		EXPECT(!wrong, "%u of %u pages are wrong", wrong, count);
		test_end();
	}
	end_child(child);
	now = since(before);
	note("%u regions: %ld reserved, %ld failed, %ld dumped", count, now.alloc, now.failed,
	     now.dumped);
	EXPECT(now.alloc + now.failed >= count, "%ld first writes for %u regions",
	       now.alloc + now.failed, count);
}

/* Processes make reservations, exit, fork and are killed while memory is short. */
static void dump_against_exit(void)
{
	unsigned int each = (unsigned int)(installed_kib() / 2048 / 3);
	pid_t workers[6], dumper = begin_child();

	if (!dumper) {
		for (;;) {
			dump();
			usleep(2000);
		}
	}
	for (size_t w = 0; w < ARRAY_SIZE(workers); w++) {
		workers[w] = begin_child();
		if (workers[w])
			continue;
		for (unsigned int round = 0; round < 3; round++) {
			char *start = regions(each);
			unsigned int wrong = 0;

			for (unsigned int region = 0; region < each; region++) {
				page_fill(PAGE_OF(start, region, region * 37 % 512),
					  seed_of(region, w, round));
				if (region % 64 == w) {
					pid_t child = begin_child();

					if (!child) {
						char *own = regions(4);

						for (unsigned int slot = 0; slot < 64; slot++)
							page_fill(PAGE_OF(own, slot % 4, slot),
								  slot + 1);
						if (region % 128 == w)
							raise(SIGKILL);
						for (unsigned int slot = 0; slot < 64; slot++)
							EXPECT(page_is(PAGE_OF(own, slot % 4, slot),
								       slot + 1),
							       "child");
						test_end();
					}
					end_of(child);
				}
			}
			for (unsigned int region = 0; region < each; region++)
				wrong += !page_is(PAGE_OF(start, region, region * 37 % 512),
						  seed_of(region, w, round));
			EXPECT(!wrong, "%u of %u pages are wrong", wrong, each);
			unmap(start, each);
		}
		test_end();
	}
	for (size_t w = 0; w < ARRAY_SIZE(workers); w++)
		end_child(workers[w]);
	kill(dumper, SIGKILL);
	end_of(dumper);
}

/* ---- memcg ---- */

/* The number of regions with one page each that fit in a memcg. */
static unsigned int fits(const char *enabled, int pages, long kib)
{
	volatile unsigned int *progress =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const unsigned int most = 20000;
	unsigned int reached;
	int status;
	pid_t child;

	setting(THP "enabled", enabled);
	threshold(pages);
	child = begin_child();
	if (!child) {
		char *start;

		memcg_enter("limited", kib);
		start = regions(most);
		if (!strcmp(enabled, "never"))
			madvise(start, most * REGION, MADV_NOHUGEPAGE);
		for (unsigned int region = 0; region < most; region++) {
			*PAGE_OF(start, region, region * 37 % 512) = 1;
			*progress = region + 1;
		}
		_exit(0);
	}
	status = end_of(child);
	reached = *progress;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		note("not killed at the limit; ended with %#x", status);
	munmap((void *)progress, PAGE);
	memcg_enter("limited", 0);
	memcg_leave("limited");
	return reached;
}

static void memcg_one_page_a_region(void)
{
	unsigned int never, reserved;

	if (swap_is_on())
		skip("with swap a memcg is not killed at its limit");
	never = fits("never", 1, 65536);
	reserved = fits("always", 256, 65536);
	note("64 MiB, one page per region: %u regions without huge pages, %u with reservations",
	     never, reserved);
	EXPECT(never > 1000, "the limit does not work: %u regions", never);
	EXPECT(reserved >= never - never / 50, "%u regions with reservations, %u without", reserved,
	       never);
	/* There is memory for a reservation of each region, but the limit leaves little room for their descriptors. */
	never = fits("never", 1, 5120);
	reserved = fits("always", 256, 5120);
	note("5 MiB, one page per region: %u regions without huge pages, %u with reservations",
	     never, reserved);
	EXPECT(reserved >= never - 4, "%u regions with reservations, %u without", reserved, never);
}

#define FAMILY "/sys/fs/cgroup/family/"

/* The number of pages of a memcg below a limit shared with another memcg, which has one page in each of its regions. */
static unsigned int fits_beside(bool reservations, unsigned int idle_regions)
{
	volatile unsigned int *progress =
		mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	volatile unsigned int *ready = progress + PAGE / sizeof(*progress);
	unsigned int reached;
	pid_t idle, busy;

	threshold(reservations ? 512 : 1);
	/* The parent has the limit and no processes. */
	memcg_enter("family", 16384);
	setting("/sys/fs/cgroup/cgroup.procs", "0");
	setting(FAMILY "cgroup.subtree_control", "+memory");
	idle = begin_child();
	if (!idle) {
		char *start;

		memcg_enter("family/idle", 0);
		start = regions(idle_regions);
		if (!reservations)
			madvise(start, idle_regions * REGION, MADV_NOHUGEPAGE);
		for (unsigned int region = 0; region < idle_regions; region++)
			*PAGE_OF(start, region, region % 512) = 1;
		*ready = 1;
		for (;;)
			pause();
	}
	while (!*ready)
		usleep(10000);
	busy = begin_child();
	if (!busy) {
		const unsigned int most = 16384;
		char *start;

		setting("/proc/self/oom_score_adj", "1000");
		memcg_enter("family/busy", 0);
		start = mmap(NULL, most * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
		madvise(start, most * PAGE, MADV_NOHUGEPAGE);
		for (unsigned int page = 0; page < most; page++) {
			start[page * PAGE] = 1;
			*progress = page + 1;
		}
		_exit(0);
	}
	end_of(busy);
	kill(idle, SIGKILL);
	end_of(idle);
	reached = *progress;
	munmap((void *)progress, 2 * PAGE);
	memcg_leave("family/idle");
	memcg_leave("family/busy");
	memcg_leave("family");
	return reached;
}

static void memcg_shared_limit(void)
{
	struct counters before = counters();
	unsigned int without, with;

	if (swap_is_on())
		skip("with swap a memcg is not killed at its limit");
	without = fits_beside(false, 600);
	with = fits_beside(true, 600);
	note("next to a memcg with 600 regions: %u pages without reservations, %u with, %ld dumped",
	     without, with, since(before).dumped);
	EXPECT(without > 1000 && without < 4096, "the limit does not work: %u pages", without);
	/* The descriptors of 600 reservations take 22 pages. */
	EXPECT(with + 10 >= without, "%u pages with reservations, %u without", with, without);
}

static void memcg_limit_contents(void)
{
	pid_t child = begin_child();

	if (!child) {
		struct image *image = image_of(24);
		char *start;

		memcg_enter("contents", 32768);
		threshold(256);
		start = regions(24);
		for (unsigned int round = 0; round < 3; round++) {
			/* 24 regions with 255 pages are 24 MiB; none is promoted. */
			for (unsigned int slot = round; slot < 255; slot += 3)
				for (unsigned int region = 0; region < 24; region++)
					put(image, start, region, slot,
					    seed_of(region, slot, round));
			expect_contents(image, start, "below the limit");
		}
		memcg_leave("contents");
		test_end();
	}
	end_child(child);
}

static void memcg_counts(void)
{
	pid_t child = begin_child();

	if (!child) {
		struct counters before;
		long group, parent, pages;
		char *start;

		memcg_enter("counts", 0);
		threshold(512);
		before = counters();
		start = regions(16);
		for (unsigned int region = 0; region < 16; region++)
			*PAGE_OF(start, region, 3) = 1;
		pages = since(before).reserved;
		REQUIRE(pages >= 4 * 511, "%ld pages reserved, %ld failures to reserve", pages,
			since(before).failed);
		/* memory.stat is up to date to within two seconds (cgroup-v2.rst). */
		for (int wait = 0; wait < 40; wait++) {
			group = memcg_stat("counts", "memory.stat", "thp_reserved");
			if (group == pages * (long)PAGE)
				break;
			usleep(200000);
		}
		parent = memcg_stat("", "memory.stat", "thp_reserved");
		EXPECT(group == pages * (long)PAGE, "thp_reserved is %ld pages, not %ld",
		       group / (long)PAGE, pages);
		EXPECT(parent >= group, "the root memcg has fewer pages than its child: %ld",
		       parent);
		unmap(start, 16);
		for (int wait = 0; wait < 40 && group; wait++) {
			usleep(200000);
			group = memcg_stat("counts", "memory.stat", "thp_reserved");
		}
		EXPECT(!group, "thp_reserved is %ld when all is unmapped", group);
		/* Remove the memcg before its pages are freed. */
		start = regions(8);
		for (unsigned int region = 0; region < 8; region++)
			*PAGE_OF(start, region, 3) = 1;
		memcg_leave("counts");
		for (unsigned int region = 0; region < 8; region++)
			*PAGE_OF(start, region, 4) = 1;
		unmap(start, 8);
		test_end();
	}
	end_child(child);
}

/* ---- memory offlining and contiguous allocation ---- */

#define BLOCKS "/sys/devices/system/memory/"

/* Whether a memory block, such as "memory17", only contains movable memory. */
static bool is_movable(const char *block)
{
	char path[300], zone[64] = "";
	int fd;

	snprintf(path, sizeof(path), BLOCKS "%s/valid_zones", block);
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, zone, sizeof(zone) - 1) < 0)
		zone[0] = 0;
	close(fd);
	return !strncmp(zone, "Movable", 7);
}

static void memory_offline(void)
{
	struct image *image = image_of(COUNT);
	struct dirent *entry;
	unsigned int gone = 0, tried = 0;
	char path[300], *start, online[64][300];
	DIR *directory = opendir(BLOCKS);

	if (!directory)
		skip("memory cannot be taken offline");
	start = filled(image, 0);
	while ((entry = readdir(directory)) && tried < 64) {
		if (strncmp(entry->d_name, "memory", 6) || entry->d_name[6] < '0' ||
		    entry->d_name[6] > '9')
			continue;
		if (!is_movable(entry->d_name))
			continue;
		tried++;
		snprintf(path, sizeof(path), BLOCKS "%s/state", entry->d_name);
		if (!try_write(path, "offline"))
			memcpy(online[gone++], path, sizeof(path));
		if (gone == 4)
			break;
	}
	closedir(directory);
	if (!tried)
		skip("there is no movable memory; boot with movablecore=");
	note("%u blocks offline of %u tried", gone, tried);
	EXPECT(gone, "no memory block can be taken offline with reservations in it");
	expect_contents(image, start, "memory offline");
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 0; slot < 64; slot++)
			put(image, start, region, slot, seed_of(region, slot, 2));
	expect_contents(image, start, "written with memory offline");
	while (gone--)
		setting(online[gone], "online_movable");
	expect_contents(image, start, "memory online again");
	unmap(start, COUNT);
}

/*
 * A reservation whose pages are all in use does not block offlining: the pages are migrated, and the memory goes
 * offline, with its page structures poisoned. These must not be accessed, neither for a promotion nor at exit.
 */
static void offline_in_use(void)
{
	/* More than one memory block, as one of them has pages allocated early at boot. */
	const unsigned int count = 96;
	struct image *image = image_of(count);
	unsigned long block_bytes, block = 0, tried = 0;
	unsigned int there = 0;
	bool gone = false;
	char path[300], name[32], text[32] = "", *start;
	int fd = open(BLOCKS "block_size_bytes", O_RDONLY);

	if (fd < 0)
		skip("memory cannot be taken offline");
	REQUIRE(read(fd, text, sizeof(text) - 1) > 0, "block_size_bytes");
	close(fd);
	block_bytes = strtoul(text, NULL, 16);
	threshold(512);
	start = regions(count);
	/* movablecore= uses the end of memory. */
	bind_to(start, count * REGION, node_count() - 1);
	/* Locked ranges are not promoted: the reservation stays. */
	REQUIRE(!mlock2(start, count * REGION, MLOCK_ONFAULT), "mlock2: %s", strerror(errno));
	for (unsigned int region = 0; region < count; region++)
		for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot++)
			put(image, start, region, slot, seed_of(region, slot, 0));
	for (unsigned int region = 0; region < count && !gone; region++) {
		block = pfn_of(PAGE_OF(start, region, 0)) * PAGE / block_bytes;
		snprintf(name, sizeof(name), "memory%lu", block);
		if (block == tried || !is_movable(name))
			continue;
		tried = block;
		snprintf(path, sizeof(path), BLOCKS "%s/state", name);
		gone = !try_write(path, "offline");
	}
	if (!tried)
		skip("there is no movable memory; boot with movablecore=");
	EXPECT(gone, "no memory block can be taken offline");
	for (unsigned int region = 0; region < count; region++)
		there += pfn_of(PAGE_OF(start, region, 0)) * PAGE / block_bytes == block;
	EXPECT(!gone || !there, "%u pages are still in %s", there, name);
	expect_contents(image, start, "memory offline");
	munlock(start, count * REGION);
	for (unsigned int region = 0; region < count / 2; region++)
		madvise(PAGE_OF(start, region, 0), REGION, MADV_COLLAPSE);
	expect_contents(image, start, "collapsed with memory offline");
	try_write(TRACING "events/huge_memory/mm_thp_resv_release/enable", "1");
	unmap(start, count);
	try_write(TRACING "events/huge_memory/mm_thp_resv_release/enable", "0");
	if (gone)
		setting(path, "online_movable");
}

/* Contiguous allocation in memory with reservations: they cannot be migrated, so they must be given up. */
static void contiguous_allocation(void)
{
	const char *area = "/sys/kernel/debug/cma/reserved/";
	long pages, worked = 0;
	char path[128], text[32];
	unsigned int count;
	struct image *image;
	char *start;

	snprintf(path, sizeof(path), "%scount", area);
	pages = number_in(path);
	if (pages < 1024)
		skip("there is no contiguous memory area; boot with cma=");
	/* Use all memory: the area is only used when little other memory is free. */
	count = meminfo_kib("MemAvailable:") / 2048 * 8 / 10;
	image = image_of(count);
	threshold(512);
	start = regions(count);
	for (unsigned int region = 0; region < count; region++)
		put(image, start, region, region % 512, seed_of(region, region, 0));
	snprintf(text, sizeof(text), "%ld", pages / 4);
	for (int attempt = 0; attempt < 3; attempt++) {
		snprintf(path, sizeof(path), "%salloc", area);
		if (try_write(path, text))
			continue;
		worked++;
		snprintf(path, sizeof(path), "%sfree", area);
		setting(path, text);
	}
	note("%ld of 3 allocations of %s pages", worked, text);
	EXPECT(worked, "no contiguous memory although all but %u pages are unused reserved pages",
	       count);
	for (unsigned int region = 0; region < count; region++)
		EXPECT(page_is(PAGE_OF(start, region, region % 512),
			       image->seed[region * 512 + region % 512]),
		       "region %u", region);
	unmap(start, count);
}

const struct test pressure_tests[] = {
	{ "drop_caches", drop_caches, "shrinker", QUICK, "the shrinker does not run" },
	{ "debugfs_lists", debugfs_lists, "debugfs", QUICK, "the list of reservations is wrong" },
	{ "traced", traced, "tracepoints", QUICK,
	  "an event is not traced, or accesses removed pages" },
	{ "right_node", right_node, "shrinker", MATRIX,
	  "wrong node: pages of node N freed when node M is short" },
	{ "one_node_full", one_node_full, "pressure", 0,
	  "giving up reservations on another node counts as progress" },
	{ "all_memory_reserved", all_memory_reserved, "pressure", MATRIX,
	  "the dump frees a million pages at once" },
	{ "sparse_beyond_memory", sparse_beyond_memory, "pressure", MATRIX,
	  "reclaim recursion; an OOM kill although "
	  "pages are only reserved" },
	{ "dump_against_exit", dump_against_exit, "pressure", MATRIX,
	  "a reservation is lost in a race with exit" },
	{ "memcg_one_page_a_region", memcg_one_page_a_region, "memcg-limit", MATRIX,
	  "a process in a 64 MiB memcg that "
	  "touches one page per region is killed" },
	{ "memcg_shared_limit", memcg_shared_limit, "memcg-limit", MATRIX,
	  "uncharged pages are in a stock and not "
	  "found" },
	{ "memcg_limit_contents", memcg_limit_contents, "memcg-limit", MATRIX,
	  "contents are lost at the limit" },
	{ "memcg_counts", memcg_counts, "memcg-stat", QUICK,
	  "thp_reserved in memory.stat is wrong" },
	{ "memory_offline", memory_offline, "pressure", 0, "offline is blocked by reservations" },
	{ "offline_in_use", offline_in_use, "pressure", 0,
	  "a reservation accesses pages that it no longer owns" },
	{ "contiguous_allocation", contiguous_allocation, "pressure", 0,
	  "CMA is blocked by reservations" },
	{ 0 },
};
