// SPDX-License-Identifier: GPL-2.0-only
/* What reservations leave to others: huge pages, hugetlb, local memory, memory within limits. */
#include "tests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>

#define NODE 0
#define HUGETLB "/proc/sys/vm/nr_hugepages"
#define NODE_HUGETLB "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
#define COMPACT "/proc/sys/vm/compact_memory"

static void run_on(int node)
{
	struct node nodes[MAX_NODES];
	int count = nodes_find(nodes);

	for (int n = 0; n < count; n++)
		if (nodes[n].id == node)
			pin_to_node(&nodes[n]);
}

/* A process on a node that has touched one page in each of some regions, and waits until it is killed. */
static pid_t sparse_process(int node, unsigned int count)
{
	int ready[2];
	pid_t child;
	char byte;

	REQUIRE(!pipe(ready), "pipe: %s", strerror(errno));
	child = begin_child();
	if (!child) {
		char *start;

		run_on(node);
		start = regions(count);
		for (unsigned int region = 0; region < count; region++)
			*PAGE_OF(start, region, 0) = 1;
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	REQUIRE(read(ready[0], &byte, 1) == 1, "the sparse process has ended");
	close(ready[0]);
	return child;
}

static void kill_process(pid_t child)
{
	kill(child, SIGKILL);
	end_of(child);
}

/* All but a few of the regions of a sparse process have a reservation. */
static void expect_reserved(unsigned int count)
{
	struct counters now = counters();

	EXPECT(now.reserved >= (long)count * 480,
	       "%ld pages are reserved for %u regions; in all %ld reservations, %ld failed, %ld were given up",
	       now.reserved, count, now.alloc, now.failed, now.dumped);
}

/*
 * How many hugetlb pages there are after asking for some, until all are
 * returned. Asked for three times, as compaction may be deferred.
 */
static long most_hugetlb_pages(const char *path, long wanted)
{
	char text[32];
	long got = 0;

	snprintf(text, sizeof(text), "%ld", wanted);
	for (int tries = 0; tries < 3 && got < wanted; tries++) {
		setting(path, text);
		got = number_in(path);
	}
	setting(path, "0");
	return got;
}

static void blocks_after_exit(void)
{
	long before, after, never;
	unsigned int count;
	pid_t child;

	threshold(512);
	setting(COMPACT, "1");
	before = free_blocks(NODE);
	count = before * 7 / 10;
	setting(THP "enabled", "never");
	kill_process(sparse_process(NODE, count));
	never = free_blocks(NODE);
	setting(THP "enabled", "always");
	child = sparse_process(NODE, count);
	expect_reserved(count);
	kill_process(child);
	after = free_blocks(NODE);
	note("%ld free blocks of 2 MiB, %ld after a process without huge pages, %ld after %u reservations",
	     before, never, after, count);
	EXPECT(never >= before - before / 20, "blocks disappear without reservations: %ld of %ld",
	       never, before);
	EXPECT(after >= before - before / 20, "%ld of %ld blocks are free again", after, before);
}

/*
 * Given up while the process lives on, a block has pages in use, which
 * compaction moves for those who want a huge page. When the process has
 * exited, it is free without compaction.
 */
static void blocks_after_dump(void)
{
	long before, living, after;
	unsigned int count;
	pid_t child;

	threshold(512);
	setting(COMPACT, "1");
	before = free_blocks(NODE);
	count = before * 7 / 10;
	child = sparse_process(NODE, count);
	expect_reserved(count);
	/* Without debugfs or a shrinker, they are given up when huge pages are no longer enabled. */
	if (!dump()) {
		setting(THP "enabled", "never");
		setting(THP "enabled", "always");
	}
	EXPECT(counters().reserved < (long)count * 40, "%ld pages are still reserved",
	       counters().reserved);
	living = access(NODE_HUGETLB, W_OK) ? -1 : most_hugetlb_pages(NODE_HUGETLB, before);
	kill_process(child);
	after = free_blocks(NODE);
	note("%ld free blocks of 2 MiB; after %u reservations were given up: %ld for hugetlb, %ld free after the exit",
	     before, count, living, after);
	EXPECT(living < 0 || living >= before - before / 10, "hugetlb gets %ld of %ld blocks",
	       living, before);
	EXPECT(after >= before - before / 20, "%ld of %ld blocks are free again", after, before);
}

/* Whether freed pages are overwritten, which then is most of the cost of freeing them. */
static bool frees_are_checked(void)
{
	return !system(
		"zcat /proc/config.gz | grep -qE '^CONFIG_(PAGE_POISONING|KASAN|DEBUG_VM)=y'");
}

static uint64_t cost_of_unmapping(int pages, const char *enabled, unsigned int touched)
{
	const unsigned int count = 32;
	uint64_t least = UINT64_MAX;

	threshold(pages);
	setting(THP "enabled", enabled);
	for (int round = 0; round < 7; round++) {
		uint64_t began, took;
		char *start = regions(count);

		for (unsigned int region = 0; region < count; region++)
			for (unsigned int slot = 0; slot < touched; slot++)
				*PAGE_OF(start, region, slot * 5 % 512) = 1;
		began = ticks();
		munmap(start, count * REGION);
		took = ticks() - began;
		unmap(start, count);
		least = took < least ? took : least;
	}
	setting(THP "enabled", "always");
	return least / count;
}

/*
 * A reservation with one page in use is given back as about one block, like a
 * huge page. One with many holes costs no more than the pages in use do.
 */
static void cheap_unmap(void)
{
	static const unsigned int touched[] = { 1, 200 };
	uint64_t huge;

	if (frees_are_checked())
		skip("this kernel checks or overwrites freed pages, which costs more than freeing them");
	pin_to_cpu(0);
	huge = cost_of_unmapping(1, "always", 1);
	for (size_t i = 0; i < ARRAY_SIZE(touched); i++) {
		uint64_t reserved = cost_of_unmapping(512, "always", touched[i]);
		uint64_t base = cost_of_unmapping(512, "never", touched[i]);
		uint64_t limit = 2 * base + 2 * huge;

		note("unmapping a region with %u pages in use: %llu ticks with a reservation, %llu without; a huge page %llu",
		     touched[i], (unsigned long long)reserved, (unsigned long long)base,
		     (unsigned long long)huge);
		EXPECT(reserved < limit, "unmapping a reservation takes %llu ticks, more than %llu",
		       (unsigned long long)reserved, (unsigned long long)limit);
	}
}

static unsigned long node_free_pages(int node)
{
	char path[64], key[32];
	unsigned long value, found = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/vmstat", node);
	file = fopen(path, "r");
	while (file && fscanf(file, "%31s %lu", key, &value) == 2)
		if (!strcmp(key, "nr_free_pages"))
			found = value;
	if (file)
		fclose(file);
	return found;
}

/* The number of pages of a new process on a node that are not on that node. */
static long remote_pages(int node, long pages)
{
	char *start = map_regions((size_t)pages * PAGE);
	void **page = calloc(pages, sizeof(*page));
	int *on = calloc(pages, sizeof(*on));
	long remote = 0;

	REQUIRE(start && page && on, "no memory");
	madvise(start, (size_t)pages * PAGE, MADV_NOHUGEPAGE);
	for (long i = 0; i < pages; i++) {
		page[i] = start + i * PAGE;
		*(volatile char *)page[i] = 1;
	}
	REQUIRE(!syscall(SYS_move_pages, 0, pages, page, NULL, on, 0), "move_pages: %s",
		strerror(errno));
	for (long i = 0; i < pages; i++) {
		/* A page that is being moved has no node: wait for it. */
		for (int tries = 0; tries < 100 && on[i] < 0; tries++) {
			*(volatile char *)page[i] = 1;
			syscall(SYS_move_pages, 0, 1UL, page + i, NULL, on + i, 0);
		}
		EXPECT(on[i] >= 0, "page %ld: %s", i, strerror(-on[i]));
		remote += on[i] >= 0 && on[i] != node;
	}
	munmap(start, (size_t)pages * PAGE);
	free(page);
	free(on);
	return remote;
}

/* Reserved memory of a node is free for those who need it, before memory of other nodes is. */
static void neighbour_stays_local(void)
{
	long pages, remote;
	pid_t child;

	if (node_count() < 2)
		skip("there is only one node");
	threshold(512);
	run_on(NODE);
	pages = node_free_pages(NODE) / 512 / 6 * 512;
	remote = remote_pages(NODE, pages);
	EXPECT(!remote, "%ld of %ld pages are remote without reservations", remote, pages);
	/* A fifth more than the node has. */
	child = sparse_process(NODE, node_free_pages(NODE) / 512 * 12 / 10);
	remote = remote_pages(NODE, pages);
	note("%ld of %ld pages of a neighbour are remote; %ld pages of the node are reserved",
	     remote, pages, reserved_on(NODE));
	EXPECT(!remote, "%ld of %ld pages are remote although the node has reserved ones", remote,
	       pages);
	kill_process(child);
}

static void hugetlb_gets_reserved(void)
{
	pid_t children[MAX_NODES];
	int nodes = node_count();
	long wanted = 0, without, with;

	if (access(HUGETLB, W_OK))
		skip("this kernel has no hugetlb pages");
	threshold(512);
	setting(COMPACT, "1");
	for (int node = 0; node < nodes; node++)
		wanted += free_blocks(node) / 2;
	without = most_hugetlb_pages(HUGETLB, wanted);
	for (int node = 0; node < nodes; node++)
		children[node] = sparse_process(node, free_blocks(node) * 8 / 10);
	with = most_hugetlb_pages(HUGETLB, wanted);
	note("%ld hugetlb pages wanted, %ld without reservations, %ld with", wanted, without, with);
	EXPECT(without >= wanted * 9 / 10, "%ld of %ld hugetlb pages without reservations", without,
	       wanted);
	/* Some of the pages that are in use cannot be moved at the time: those of a batch for example. */
	EXPECT(with >= without - without / 20,
	       "%ld of %ld hugetlb pages, although the rest is only reserved", with, without);
	for (int node = 0; node < nodes; node++)
		kill_process(children[node]);
}

/* Who asks for huge pages gets them at the first touch, whatever the threshold. */
static void asked_for(void)
{
	const unsigned int count = 8;
	struct counters before;
	char *start;

	for (int pages = 1; pages <= 512; pages = pages == 1 ? 256 : pages * 2) {
		threshold(pages);
		start = regions(count);
		REQUIRE(!madvise(start, count * REGION, MADV_HUGEPAGE), "madvise: %s",
			strerror(errno));
		before = counters();
		for (unsigned int region = 0; region < count; region++)
			*PAGE_OF(start, region, 7) = 1;
		EXPECT(huge_regions(start, count) == count && !since(before).alloc,
		       "threshold %d: %u of %u regions are huge, %ld reservations", pages,
		       huge_regions(start, count), count, since(before).alloc);
		unmap(start, count);
	}
}

/* A reservation made before advice that asks for huge pages goes on. */
static void asked_for_later(void)
{
	struct image *image = image_of(4);
	struct counters before;
	char *start;

	threshold(512);
	before = counters();
	start = regions(4);
	for (unsigned int region = 0; region < 4; region++)
		put(image, start, region, 3, seed_of(region, 3, 0));
	madvise(start, 4 * REGION, MADV_HUGEPAGE);
	for (unsigned int region = 0; region < 4; region++)
		for (unsigned int slot = 4; slot < 40; slot++)
			put(image, start, region, slot, seed_of(region, slot, 0));
	EXPECT(since(before).alloc == 4 && since(before).mapped == 4 * 37,
	       "%ld reservations, %ld pages handed out", since(before).alloc, since(before).mapped);
	expect_contents(image, start, "advised");
	unmap(start, 4);
}

/* The memory that a memcg reserves without being charged is bounded by its limit. */
static void memcg_bounded(void)
{
	const long limit_kib = 16384;
	pid_t child = begin_child();

	if (!child) {
		struct counters before = counters(), delta;
		unsigned int count = meminfo_kib("MemFree:") / 2048 / 2;
		char *start;

		memcg_enter("bounded", limit_kib);
		threshold(512);
		start = regions(count);
		for (unsigned int region = 0; region < count; region++)
			*PAGE_OF(start, region, 5) = 1;
		delta = since(before);
		note("a memcg with a limit of %ld KiB: %u regions, %ld reservations, %ld KiB uncharged",
		     limit_kib, count, delta.alloc, delta.reserved * 4);
		EXPECT(delta.alloc > 0, "no reservation");
		EXPECT(delta.reserved * 4 <= limit_kib, "%ld KiB are reserved, the limit is %ld",
		       delta.reserved * 4, limit_kib);
		EXPECT(delta.alloc + delta.failed == count,
		       "%ld reservations and %ld failures for %u first writes", delta.alloc,
		       delta.failed, count);
		unmap(start, count);
		memcg_leave("bounded");
		test_end();
	}
	end_child(child);
}

static uint64_t cost_of_first_touch(int pages, unsigned int count)
{
	uint64_t least = UINT64_MAX;

	threshold(pages);
	for (int round = 0; round < 7; round++) {
		char *start = regions(count);
		uint64_t began, took;

		began = ticks();
		for (unsigned int region = 0; region < count; region++)
			*PAGE_OF(start, region, 0) = 1;
		took = ticks() - began;
		unmap(start, count);
		least = took < least ? took : least;
	}
	return least;
}

/* With init_on_alloc=1, only the pages that are used are zeroed, not the whole reservation. */
static void init_on_alloc(void)
{
	const unsigned int count = 32;
	uint64_t reserved, huge;

	if (system("grep -q init_on_alloc=1 /proc/cmdline"))
		skip("init_on_alloc is not set");
	pin_to_cpu(0);
	huge = cost_of_first_touch(1, count);
	reserved = cost_of_first_touch(512, count);
	note("first touch of a region: %llu ticks with a reservation, %llu with a huge page",
	     (unsigned long long)reserved / count, (unsigned long long)huge / count);
	EXPECT(reserved < huge / 2, "a first touch costs %.0f %% of that of a huge page",
	       100.0 * reserved / huge);
}

/*
 * Compaction may move a page in use out of its block, as any other page. The
 * range is then promoted by copying.
 */
static void compacted_ranges(void)
{
	const unsigned int count = 48;
	struct image *image = image_of(count);
	struct counters before = counters(), delta;
	char *start;

	threshold(512);
	run_on(NODE);
	start = regions(count);
	for (unsigned int region = 0; region < count; region++)
		for (unsigned int slot = 0; slot < 200; slot++)
			put(image, start, region, slot, seed_of(region, slot, 0));
	setting(COMPACT, "1");
	expect_contents(image, start, "compacted");
	for (unsigned int region = 0; region < count; region++)
		for (unsigned int slot = 200; slot < PAGES_PER_REGION; slot++)
			put(image, start, region, slot, seed_of(region, slot, 0));
	for (unsigned int region = 0; region < count; region++)
		madvise(start + region * REGION, REGION, MADV_COLLAPSE);
	delta = since(before);
	note("%u regions: %ld reservations, %ld promoted in place, %ld by copy", count, delta.alloc,
	     delta.collapsed, delta.copied);
	EXPECT(delta.alloc == count && delta.collapsed + delta.copied == count,
	       "of %ld reservations, %ld are promoted in place and %ld by copy after compaction",
	       delta.alloc, delta.collapsed, delta.copied);
	EXPECT(huge_regions(start, count) == count, "%u of %u regions are huge",
	       huge_regions(start, count), count);
	expect_contents(image, start, "promoted");
	unmap(start, count);
}

static char *some_reserved(unsigned int count)
{
	char *start;

	threshold(512);
	start = regions(count);
	for (unsigned int region = 0; region < count; region++)
		*PAGE_OF(start, region, 1) = 1;
	EXPECT(counters().reserved == (long)count * 511, "%ld pages reserved", counters().reserved);
	return start;
}

/* Advice that memory is not needed soon, and disabling huge pages, give up reservations. */
static void advice_gives_up(void)
{
	static const int advices[] = { MADV_COLD, MADV_PAGEOUT };
	char *start;

	for (size_t i = 0; i < ARRAY_SIZE(advices); i++) {
		struct counters before = counters();

		start = some_reserved(4);
		EXPECT(!madvise(PAGE_OF(start, 1, 9), PAGE, advices[i]), "madvise %d: %s",
		       advices[i], strerror(errno));
		EXPECT(since(before).reserved == 3 * 511, "advice %d for one page: %ld reserved",
		       advices[i], since(before).reserved);
		EXPECT(!madvise(start, 4 * REGION, advices[i]), "madvise %d: %s", advices[i],
		       strerror(errno));
		EXPECT(!since(before).reserved, "advice %d for all: %ld reserved", advices[i],
		       since(before).reserved);
		EXPECT(!since(before).dumped, "advice %d: counted as a dump", advices[i]);
		unmap(start, 4);
	}
}

static void disabled_gives_up(void)
{
	struct counters before = counters();
	char *start = some_reserved(4);

	setting(THP "enabled", "never");
	EXPECT(!since(before).reserved, "enabled=never: %ld reserved", since(before).reserved);
	EXPECT(since(before).dumped == 4, "enabled=never: %ld dumps for 4 reservations",
	       since(before).dumped);
	setting(THP "enabled", "always");
	unmap(start, 4);

	before = counters();
	start = some_reserved(4);
	huge_pages(false);
	EXPECT(!since(before).reserved, "PR_SET_THP_DISABLE: %ld reserved", since(before).reserved);
	EXPECT(!since(before).dumped, "PR_SET_THP_DISABLE: counted as a dump");
	huge_pages(true);
	unmap(start, 4);
}

const struct test aftermath_tests[] = {
	{ "blocks_after_exit", blocks_after_exit, "reserve", 0,
	  "a page of each block stays in a per-CPU list, so that there are no huge pages afterwards" },
	{ "blocks_after_dump", blocks_after_dump, "pressure", 0,
	  "a page of each block stays in a per-CPU list when it is given up" },
	{ "cheap_unmap", cheap_unmap, "reserve", 0, "a reservation is freed page by page" },
	{ "neighbour_stays_local", neighbour_stays_local, "pressure", 0,
	  "a node is reserved down to its watermarks, and its reservations are not given up" },
	{ "hugetlb_gets_reserved", hugetlb_gets_reserved, "pressure", 0,
	  "reservations are kept from allocations of their order" },
	{ "asked_for", asked_for, "reserve", QUICK, "MADV_HUGEPAGE does not map a huge page" },
	{ "asked_for_later", asked_for_later, "reserve", QUICK,
	  "MADV_HUGEPAGE loses an existing reservation" },
	{ "memcg_bounded", memcg_bounded, "reserve", QUICK,
	  "a memcg holds many times its limit in reserved pages" },
	{ "init_on_alloc", init_on_alloc, "reserve", QUICK,
	  "a whole block is zeroed at the first touch" },
	{ "compacted_ranges", compacted_ranges, "in-place", 0,
	  "a range that has lost pages of its block to compaction is never promoted" },
	{ "advice_gives_up", advice_gives_up, "reserve", QUICK,
	  "memory that is not needed soon keeps its reservation" },
	{ "disabled_gives_up", disabled_gives_up, "pressure", QUICK,
	  "reservations stay although huge pages are disabled" },
	{ 0 },
};
