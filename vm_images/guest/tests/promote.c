// SPDX-License-Identifier: GPL-2.0-only
/* Promotion to a huge page: by copying, in place, by khugepaged and on return to user space. */
#include "tests.h"

#include <fcntl.h>
#include <linux/types.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define COUNT 4
#define GUP_TEST "/sys/kernel/debug/gup_test"

/* mm/gup_test.h */
struct pin_longterm_test {
	__u64 addr;
	__u64 size;
	__u32 flags;
};
#define PIN_LONGTERM_TEST_START _IOW('g', 7, struct pin_longterm_test)
#define PIN_LONGTERM_TEST_STOP _IO('g', 8)
#define PIN_LONGTERM_TEST_READ _IOW('g', 9, __u64)

enum shape { ALL, EVEN, ODD, NOT_FIRST, NOT_TAIL_STATE, RANDOM, FRONT };
enum by { COLLAPSE, KHUGEPAGED_SCAN };

static bool in_shape(enum shape shape, unsigned int slot, struct random *random)
{
	switch (shape) {
	case ALL:
		return true;
	case EVEN:
		return slot % 2 == 0;
	case ODD:
		return slot % 2 == 1;
	case NOT_FIRST:
		return slot != 0;
	/* The tail pages whose flags and fields a huge page uses. */
	case NOT_TAIL_STATE:
		return slot != 511 && (slot < 1 || slot > 3);
	case RANDOM:
		return random_below(random, 100) < 80;
	default:
		return slot < 300;
	}
}

static void write_shape(struct image *image, char *start, enum shape shape, unsigned int round)
{
	struct random random = random_of(shape, round);

	for (unsigned int region = 0; region < image->count; region++)
		for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot++)
			if (in_shape(shape, slot, &random))
				put(image, start, region, slot, seed_of(region, slot, round));
}

static void promote(char *start, enum by by)
{
	if (by == COLLAPSE) {
		for (unsigned int region = 0; region < COUNT; region++)
			EXPECT(!madvise(start + region * REGION, REGION, MADV_COLLAPSE),
			       "MADV_COLLAPSE: %s", strerror(errno));
		return;
	}
	scan_often(true);
	/* A temporary reference to a page makes it fail with EAGAIN. */
	for (int tries = 0; tries < 10 && huge_regions(start, COUNT) < COUNT; tries++)
		scans();
	scan_often(false);
}

/* A byte through a pipe: synchronizes with the other process. */
static void tell(int pipe_ends[2])
{
	if (write(pipe_ends[1], "x", 1) != 1)
		_exit(1);
}

static void await(int pipe_ends[2])
{
	char byte;

	if (read(pipe_ends[0], &byte, 1) != 1)
		_exit(1);
}

/* Parent and child write to different pages: neither may see the writes of the other. */
static void write_on_both_sides(struct image *image, char *start)
{
	int child_wrote[2], parent_wrote[2];
	pid_t child;

	REQUIRE(!pipe(child_wrote) && !pipe(parent_wrote), "pipe");
	child = begin_child();
	if (!child) {
		struct image *mine = image_copy(image);

		expect_contents(mine, start, "the child after fork");
		for (unsigned int region = 0; region < COUNT; region++)
			for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot += 3)
				put(mine, start, region, slot, seed_of(region, slot, 7));
		tell(child_wrote);
		await(parent_wrote);
		expect_contents(mine, start, "the child after its parent's writes");
		test_end();
	}
	await(child_wrote);
	expect_contents(image, start, "the parent after its child's writes");
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 1; slot < PAGES_PER_REGION; slot += 2)
			put(image, start, region, slot, seed_of(region, slot, 8));
	tell(parent_wrote);
	end_child(child);
	expect_contents(image, start, "the parent after its own writes");
	for (int i = 0; i < 2; i++) {
		close(child_wrote[i]);
		close(parent_wrote[i]);
	}
}

/* Split a huge page in each possible way, then write to it. */
static void split_and_write(struct image *image, char *start)
{
	munmap(PAGE_OF(start, 0, 5), PAGE);
	REQUIRE(mmap(PAGE_OF(start, 0, 5), PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		"mmap");
	image->seed[5] = 0;
	mprotect(PAGE_OF(start, 1, 9), PAGE, PROT_READ);
	mprotect(PAGE_OF(start, 1, 9), PAGE, PROT_READ | PROT_WRITE);
	madvise(PAGE_OF(start, 2, 7), 3 * PAGE, MADV_DONTNEED);
	memset(image->seed + 2 * PAGES_PER_REGION + 7, 0, 3);
	mlock(PAGE_OF(start, 3, 100), PAGE);
	munlock(PAGE_OF(start, 3, 100), PAGE);
	madvise(PAGE_OF(start, 3, 300), 50 * PAGE, MADV_COLD);
	expect_contents(image, start, "split");
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = region; slot < PAGES_PER_REGION; slot += 2)
			put(image, start, region, slot, seed_of(region, slot, 9));
	expect_contents(image, start, "split and written");
	/* Split not only the page tables, but the folios. */
	try_write("/sys/kernel/debug/split_huge_pages", "1");
	expect_contents(image, start, "split in physical memory");
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot += 3)
			put(image, start, region, slot, seed_of(region, slot, 10));
	expect_contents(image, start, "split in physical memory and written");
}

static void promoted(enum shape shape, enum by by)
{
	struct counters before = counters(), delta;
	struct image *image = image_of(COUNT);
	char *start = reserved_regions(COUNT);

	/* The holes are zero pages here, and empty PTEs below. */
	expect_contents(image, start, "before");
	write_shape(image, start, shape, 0);
	if (has_stage("reserve"))
		EXPECT(since(before).alloc == COUNT, "%ld reservations", since(before).alloc);
	promote(start, by);
	EXPECT(huge_regions(start, COUNT) == COUNT, "%u of %d regions are huge",
	       huge_regions(start, COUNT), COUNT);
	delta = since(before);
	if (has_stage("in-place"))
		EXPECT(delta.collapsed == COUNT && !delta.copied && !delta.reserved,
		       "in place %ld, by copy %ld, still reserved %ld", delta.collapsed,
		       delta.copied, delta.reserved);
	expect_contents(image, start, "promoted");
	write_on_both_sides(image, start);
	unmap(start, COUNT);

	memset(image->seed, 0, COUNT * PAGES_PER_REGION);
	start = reserved_regions(COUNT);
	write_shape(image, start, shape, 1);
	promote(start, by);
	expect_contents(image, start, "promoted over holes");
	split_and_write(image, start);
	unmap(start, COUNT);
	free(image);
}

static void promote_all(void)
{
	promoted(ALL, COLLAPSE);
}

static void promote_holes(void)
{
	promoted(EVEN, COLLAPSE);
	promoted(ODD, COLLAPSE);
	promoted(FRONT, COLLAPSE);
}

static void promote_tail_state(void)
{
	promoted(NOT_FIRST, COLLAPSE);
	promoted(NOT_TAIL_STATE, COLLAPSE);
}

static void promote_random(void)
{
	promoted(RANDOM, COLLAPSE);
}

static void promote_by_khugepaged(void)
{
	promoted(RANDOM, KHUGEPAGED_SCAN);
	promoted(ALL, KHUGEPAGED_SCAN);
}

/* khugepaged promotes a region at the threshold, and not before; this includes regions without a reservation. */
static void khugepaged_threshold(void)
{
	struct image *image = image_of(8);
	char *start, *dense;

	/* Without a reservation: its pages are there before huge pages are allowed. */
	huge_pages(false);
	dense = regions(1);
	for (unsigned int slot = 0; slot < 255; slot++)
		*PAGE_OF(dense, 0, slot) = 1;
	huge_pages(true);
	/* Set the threshold after all writes, to avoid promotion on return to user space. */
	start = reserved_regions(8);
	for (unsigned int region = 0; region < 8; region++)
		for (unsigned int slot = 0; slot < (region < 4 ? 256 : 255); slot++)
			put(image, start, region, slot * 2 % 512 + (slot >= 256),
			    seed_of(region, slot, 0));
	threshold(256);
	scan_often(true);
	for (int tries = 0; tries < 10 && huge_regions(start, 8) < 4; tries++)
		scans();
	scans();
	scan_often(false);
	EXPECT(huge_regions(start, 8) == 4, "%u of 4 regions with 256 pages are huge",
	       huge_regions(start, 8));
	EXPECT(!huge_regions(dense, 1), "a region without a reservation and 255 pages is huge");
	expect_contents(image, start, "promoted at the threshold");
	unmap(start, 8);
	unmap(dense, 1);
}

/* Dumps while khugepaged scans. */
static void scan_against_dump(void)
{
	struct image *image = image_of(8);
	char *start;

	scan_often(true);
	for (int round = 0; round < 6; round++) {
		memset(image->seed, 0, 8 * PAGES_PER_REGION);
		start = reserved_regions(8);
		threshold(64);
		for (unsigned int slot = 0; slot < 512; slot += 4) {
			for (unsigned int region = 0; region < 8; region++)
				put(image, start, region, slot, seed_of(region, slot, round));
			if (slot % 32 == 0)
				dump();
		}
		scans();
		expect_contents(image, start, "scanned and dumped");
		unmap(start, 8);
	}
	scan_often(false);
}

/* ---- what must not be promoted in place, or not now ---- */

struct outcome {
	int error;
	struct counters delta;
};

static struct outcome collapse(char *start)
{
	struct counters before = counters();
	int error = madvise(start, REGION, MADV_COLLAPSE) ? errno : 0;

	return (struct outcome){ error, since(before) };
}

static char *written(struct image *image, unsigned int pages)
{
	char *start = reserved_regions(1);

	memset(image->seed, 0, PAGES_PER_REGION);
	for (unsigned int slot = 0; slot < pages; slot++)
		put(image, start, 0, slot, seed_of(0, slot, pages));
	return start;
}

static void shared_with_child(void)
{
	struct image *image = image_of(1);
	char *start = written(image, 512);
	struct outcome outcome;
	pid_t child = begin_child();
	int told[2];

	if (!child)
		pause();
	/* A range without a writable page is skipped. */
	put(image, start, 0, 9, 200);
	outcome = collapse(start);
	EXPECT(!outcome.error && !outcome.delta.collapsed,
	       "shared pages were promoted in place (%d)", outcome.error);
	expect_contents(image, start, "copied while shared");
	kill(child, SIGKILL);
	end_of(child);
	unmap(start, 1);

	/* Promote while a child that shares the pages continues to write. */
	start = written(image, 400);
	REQUIRE(!pipe(told), "pipe");
	child = begin_child();
	if (!child) {
		await(told);
		expect_contents(image, start, "the child, its parent promoted");
		for (unsigned int slot = 0; slot < 512; slot++)
			put(image, start, 0, slot, seed_of(0, slot, 3));
		expect_contents(image, start, "the child, written");
		test_end();
	}
	*(volatile char *)PAGE_OF(start, 0, 450) = 0;
	collapse(start);
	for (unsigned int slot = 0; slot < 512; slot += 2)
		put(image, start, 0, slot, seed_of(0, slot, 4));
	tell(told);
	end_child(child);
	expect_contents(image, start, "the parent");
	unmap(start, 1);

	/* Shared before, and now exclusive again. */
	start = written(image, 512);
	child = begin_child();
	if (!child) {
		for (unsigned int slot = 0; slot < 512; slot++)
			*PAGE_OF(start, 0, slot) = 1;
		test_end();
	}
	end_child(child);
	for (unsigned int slot = 0; slot < 512; slot++)
		put(image, start, 0, slot, seed_of(0, slot, 5));
	outcome = collapse(start);
	EXPECT(!outcome.error, "not promoted after the child has exited: %s",
	       strerror(outcome.error));
	expect_contents(image, start, "promoted after the child has exited");
	unmap(start, 1);
}

static void migrated_away(void)
{
	struct image *image = image_of(1);
	struct outcome outcome;
	char *start;

	if (node_count() < 2)
		skip("there is only one node");
	/* Migrate away: the page of this slot now belongs to someone else. And back: most likely to another page. */
	for (int times = 1; times <= 2; times++) {
		void *pages[3];
		int nodes[3], status[3];

		start = written(image, 400);
		for (int time = 0; time < times; time++) {
			for (int i = 0; i < 3; i++) {
				pages[i] = PAGE_OF(start, 0, 17 + i * 100);
				nodes[i] = !node_of(pages[i]);
			}
			EXPECT(!syscall(SYS_move_pages, 0, 3, pages, nodes, status, 2),
			       "move_pages: %s", strerror(errno));
		}
		expect_contents(image, start, "migrated");
		outcome = collapse(start);
		EXPECT(!outcome.error && !outcome.delta.collapsed,
		       "in place with foreign pages: %ld", outcome.delta.collapsed);
		expect_contents(image, start, "copied after migration");
		for (unsigned int slot = 0; slot < 512; slot++)
			put(image, start, 0, slot, seed_of(0, slot, 6));
		expect_contents(image, start, "written after migration");
		unmap(start, 1);
	}
}

/* A pin by vmsplice: the pipe has a reference. */
static void pinned_by_pipe(void)
{
	struct image *image = image_of(1);
	char *start = written(image, 400), *there = malloc(PAGE);
	struct iovec page = { PAGE_OF(start, 0, 33), PAGE };
	struct outcome outcome;
	int ends[2];

	REQUIRE(!pipe(ends), "pipe");
	REQUIRE(vmsplice(ends[1], &page, 1, 0) == (ssize_t)PAGE, "vmsplice: %s", strerror(errno));
	outcome = collapse(start);
	EXPECT(outcome.error && !outcome.delta.collapsed && !outcome.delta.copied,
	       "promoted with a pinned page");
	EXPECT(read(ends[0], there, PAGE) == (ssize_t)PAGE && page_is(there, image->seed[33]),
	       "wrong contents in the pipe");
	close(ends[0]);
	close(ends[1]);
	expect_contents(image, start, "was pinned");
	outcome = collapse(start);
	EXPECT(!outcome.error, "not promoted after the pin was gone: %s", strerror(outcome.error));
	if (has_stage("in-place"))
		EXPECT(outcome.delta.collapsed == 1, "not in place after the pin was gone");
	expect_contents(image, start, "promoted");
	unmap(start, 1);
}

/* A long-term pin of existing pages, and of pages that it faults in; then fork. */
static void pinned_long_term(void)
{
	static char seen[4 * PAGE] __attribute__((aligned(PAGE)));
	struct pin_longterm_test pin = { .size = sizeof(seen) };
	__u64 address = (uintptr_t)seen;
	int device = open(GUP_TEST, O_RDWR);

	if (device < 0)
		skip("there is no " GUP_TEST);
	for (unsigned int for_write = 0; for_write < 2; for_write++) {
		struct image *image = image_of(1);
		char *start = written(image, 300);
		struct outcome outcome;
		pid_t child;

		/* 298 and 299 exist, 300 and 301 do not; a read-only pin takes pages for these too. */
		pin.addr = (uintptr_t)PAGE_OF(start, 0, 298);
		pin.flags = for_write;
		REQUIRE(!ioctl(device, PIN_LONGTERM_TEST_START, &pin),
			"PIN_LONGTERM_TEST_START: %s", strerror(errno));
		outcome = collapse(start);
		EXPECT(!outcome.delta.collapsed && !outcome.delta.copied,
		       "promoted with pinned pages");
		child = begin_child();
		if (!child) {
			expect_contents(image, start, "the child of a pinned parent");
			for (unsigned int slot = 290; slot < 310; slot++)
				put(image, start, 0, slot, seed_of(0, slot, 1));
			test_end();
		}
		end_child(child);
		for (unsigned int slot = 290; slot < 310; slot++)
			put(image, start, 0, slot, seed_of(0, slot, 2));
		REQUIRE(!ioctl(device, PIN_LONGTERM_TEST_READ, &address),
			"PIN_LONGTERM_TEST_READ: %s", strerror(errno));
		for (unsigned int i = 0; i < 4; i++)
			EXPECT(page_is(seen + i * PAGE, image->seed[298 + i]),
			       "page %u of a pin (%s) does not contain what its owner has written",
			       i, for_write ? "for writing" : "for reading");
		ioctl(device, PIN_LONGTERM_TEST_STOP);
		expect_contents(image, start, "was pinned");
		outcome = collapse(start);
		expect_contents(image, start, "collapsed after the pin");
		unmap(start, 1);
	}
	close(device);
}

static void mlocked(void)
{
	struct image *image = image_of(1);
	struct outcome outcome;
	char *start = written(image, 400);

	REQUIRE(!mlock(start, REGION), "mlock: %s", strerror(errno));
	expect_contents(image, start, "mlocked");
	outcome = collapse(start);
	EXPECT(!outcome.delta.collapsed, "mlocked pages were promoted in place");
	expect_contents(image, start, "mlocked and collapsed");
	munlock(start, REGION);
	unmap(start, 1);

	/* Pages are in a per-CPU batch before they are on the unevictable list. */
	start = written(image, 400);
	for (unsigned int slot = 0; slot < 400; slot += 7)
		mlock(PAGE_OF(start, 0, slot), PAGE);
	munlock(start, REGION);
	outcome = collapse(start);
	expect_contents(image, start, "mlocked once and collapsed");
	for (unsigned int slot = 0; slot < 512; slot++)
		put(image, start, 0, slot, seed_of(0, slot, 3));
	expect_contents(image, start, "written");
	unmap(start, 1);
	EXPECT(event_count("nr_mlock") >= 0, "nr_mlock is negative");
}

/* Pages without swap backing count as file pages while isolated. */
static void lazy_free(void)
{
	long isolated = event_count("nr_isolated_anon") + event_count("nr_isolated_file");
	struct image *image = image_of(1);
	char *start = written(image, 400);
	struct outcome outcome;

	madvise(start, 100 * PAGE, MADV_FREE);
	outcome = collapse(start);
	EXPECT(!outcome.error, "not collapsed: %s", strerror(outcome.error));
	for (unsigned int slot = 100; slot < 512; slot++)
		EXPECT(page_is(PAGE_OF(start, 0, slot), image->seed[slot]), "page %u", slot);
	/* Freed pages have their old contents or are zero; pages written again keep their contents. */
	for (unsigned int slot = 0; slot < 100; slot++)
		EXPECT(page_is(PAGE_OF(start, 0, slot), image->seed[slot]) ||
			       page_is(PAGE_OF(start, 0, slot), 0),
		       "page %u", slot);
	for (unsigned int slot = 0; slot < 512; slot++)
		put(image, start, 0, slot, seed_of(0, slot, 3));
	setting("/proc/sys/vm/drop_caches", "1");
	expect_contents(image, start, "written after MADV_FREE");
	unmap(start, 1);
	EXPECT(event_count("nr_isolated_anon") + event_count("nr_isolated_file") == isolated,
	       "isolated pages: %ld before, %ld now", isolated,
	       event_count("nr_isolated_anon") + event_count("nr_isolated_file"));
}

/* Where the zero page was mapped: the deposited page table must be empty. */
static void deposited_table(void)
{
	struct image *image = image_of(1);

	for (int round = 0; round < 8; round++) {
		char *start = written(image, 300);

		expect_contents(image, start, "zero pages in all holes");
		EXPECT(!collapse(start).error, "not collapsed");
		/* A split uses and fills the deposited table; unmapping everything frees it. */
		mprotect(PAGE_OF(start, 0, round * 60), PAGE, PROT_READ);
		expect_contents(image, start, "split");
		mprotect(start, REGION, PROT_READ | PROT_WRITE);
		if (round % 2)
			madvise(start, REGION, MADV_DONTNEED),
				memset(image->seed, 0, PAGES_PER_REGION);
		for (unsigned int slot = 0; slot < 512; slot += 5)
			put(image, start, 0, slot, seed_of(0, slot, round));
		expect_contents(image, start, "split and written");
		unmap(start, 1);
	}
}

/* The charge is correct: 512 pages charged, 512 uncharged, and the memcg can be removed. */
static void memcg_fold(void)
{
	pid_t child = begin_child();

	if (!child) {
		struct image *image = image_of(COUNT);
		long empty, charged, huge, after;
		char *start;

		memcg_enter("fold", 0);
		start = reserved_regions(COUNT);
		empty = memcg_number("fold", "memory.current");
		write_shape(image, start, FRONT, 0);
		charged = memcg_number("fold", "memory.current");
		promote(start, COLLAPSE);
		huge = memcg_number("fold", "memory.current");
		note("charged %ld KiB for written pages, %ld KiB more for unused ones",
		     (charged - empty) / 1024, (huge - charged) / 1024);
		EXPECT(labs((huge - charged) / (long)PAGE - COUNT * 212) < 128,
		       "%ld pages charged for %d", (huge - charged) / (long)PAGE, COUNT * 212);
		expect_contents(image, start, "promoted");
		split_and_write(image, start);
		munmap(start, COUNT * REGION);
		after = memcg_number("fold", "memory.current");
		EXPECT((after - empty) / (long)PAGE < 400,
		       "%ld pages are charged when all is unmapped", (after - empty) / (long)PAGE);
		memcg_leave("fold");
		test_end();
	}
	end_child(child);
}

/* Pages stay charged to their memcg; a huge page has only one memcg. */
static void memcg_moved(void)
{
	pid_t child = begin_child();

	if (!child) {
		struct image *image = image_of(1);
		struct outcome outcome;
		char *start;

		memcg_enter("moved-from", 0);
		start = written(image, 300);
		memcg_enter("moved-to", 0);
		outcome = collapse(start);
		EXPECT(!outcome.delta.collapsed, "in place with the pages of another memcg");
		for (unsigned int slot = 0; slot < 512; slot++)
			put(image, start, 0, slot, seed_of(0, slot, 3));
		expect_contents(image, start, "collapsed");
		munmap(start, REGION);

		/* Half of each. */
		memcg_enter("moved-from", 0);
		start = written(image, 200);
		memcg_enter("moved-to", 0);
		for (unsigned int slot = 200; slot < 400; slot++)
			put(image, start, 0, slot, seed_of(0, slot, 4));
		outcome = collapse(start);
		EXPECT(!outcome.delta.collapsed, "in place with the pages of two memcgs");
		expect_contents(image, start, "collapsed");
		munmap(start, REGION);

		/* No room for the unused pages. */
		start = written(image, 300);
		memcg_enter("moved-to", memcg_number("moved-to", "memory.current") / 1024 + 400);
		outcome = collapse(start);
		EXPECT(!outcome.delta.collapsed && outcome.delta.reserved == 0,
		       "promoted without room: error %d", outcome.error);
		expect_contents(image, start, "not promoted");
		munmap(start, REGION);
		memcg_leave("moved-to");
		memcg_leave("moved-from");
		test_end();
	}
	end_child(child);
}

/* ---- promotion on return to user space ---- */

static void hop(unsigned int turn)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(turn % cpus, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

static void sync_promotion(void)
{
	struct image *image = image_of(8);
	struct counters before;
	char *start;

	threshold(256);
	before = counters();
	start = regions(8);
	hop(1);
	for (unsigned int region = 0; region < 8; region++)
		for (unsigned int slot = 0; slot < 255; slot++)
			put(image, start, region, slot * 2 + 1, seed_of(region, slot, 0));
	EXPECT(!since(before).collapsed && !huge_regions(start, 8), "promoted with 255 pages");
	for (unsigned int region = 0; region < 8; region++)
		put(image, start, region, 0, seed_of(region, 0, 1));
	EXPECT(since(before).collapsed == 8 && huge_regions(start, 8) == 8 && !since(before).copied,
	       "%ld of 8 in place at the 256th page, %ld by copy", since(before).collapsed,
	       since(before).copied);
	expect_contents(image, start, "promoted");
	unmap(start, 8);
}

/* Pages may be in LRU batches of other CPUs, which promotion must handle. */
static void hopping_writer(void)
{
	struct image *image = image_of(4);
	struct counters before;
	char *start;
	int tries;

	threshold(256);
	before = counters();
	start = regions(4);
	for (unsigned int region = 0; region < 4; region++)
		for (unsigned int slot = 0; slot < 512; slot++) {
			hop(slot);
			put(image, start, region, slot, seed_of(region, slot, 0));
		}
	note("changing the CPU at each page: %ld of 4 in place", since(before).collapsed);
	expect_contents(image, start, "written from all CPUs");
	scan_often(true);
	for (tries = 0; tries < 20 && huge_regions(start, 4) < 4; tries++)
		scans();
	scan_often(false);
	note("khugepaged has promoted them after %d scans", 2 * tries);
	EXPECT(huge_regions(start, 4) == 4, "khugepaged has not promoted them: %u of 4",
	       huge_regions(start, 4));
	expect_contents(image, start, "promoted");
	unmap(start, 4);
}

static char *hopped;

static void *hopper(void *argument)
{
	long me = (long)argument;

	for (unsigned int region = 0; region < 6; region++)
		for (unsigned int slot = 0; slot < 512; slot++) {
			if (slot % 5 == 0)
				hop(slot / 5 + me);
			if (slot % 4 == me)
				memset(PAGE_OF(hopped, region, slot) + 8, seed_of(region, slot, 0),
				       PAGE - 8);
			PAGE_OF(hopped, region, slot * 37 % 512)[me] = me + 1;
		}
	return NULL;
}

static void hopping_threads(void)
{
	unsigned int wrong = 0;
	struct counters before;
	pthread_t threads[4];

	threshold(256);
	before = counters();
	hopped = regions(6);
	for (long i = 0; i < 4; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, hopper, (void *)i), "pthread_create");
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	note("four threads that change CPUs: %ld of 6 in place", since(before).collapsed);
	for (unsigned int region = 0; region < 6; region++)
		for (unsigned int slot = 0; slot < 512; slot++) {
			const unsigned char *page = (void *)PAGE_OF(hopped, region, slot);

			for (unsigned int at = 0; at < PAGE; at++)
				wrong += page[at] != (at < 4 ? at + 1 :
						      at < 8 ? 0 :
							       seed_of(region, slot, 0));
		}
	EXPECT(!wrong, "%u bytes are wrong", wrong);
	unmap(hopped, 6);
}

/* Faults in a system call, and in execve. */
static void sync_from_kernel(void)
{
	struct counters before = counters();
	int zero = open("/dev/zero", O_RDONLY);
	char *start;

	threshold(256);
	hop(0);
	start = regions(2);
	EXPECT(read(zero, start, REGION + REGION / 2) == (ssize_t)(REGION + REGION / 2), "read: %s",
	       strerror(errno));
	EXPECT(since(before).collapsed == 2, "%ld of 2 in place", since(before).collapsed);
	for (unsigned int slot = 0; slot < 2 * 512; slot++)
		EXPECT(page_is(start + slot * PAGE, 0), "page %u is not zero", slot);
	unmap(start, 2);
	close(zero);
	for (int round = 0; round < 4; round++) {
		pid_t child = begin_child();

		if (!child) {
			start = regions(1);
			for (unsigned int slot = 0; slot < 255; slot++)
				*PAGE_OF(start, 0, slot) = 1;
			/* execve reads this argument from the region, up to the 256th page. */
			strcpy(PAGE_OF(start, 0, 300), "true");
			execl("/bin/busybox", PAGE_OF(start, 0, 300), NULL);
			_exit(1);
		}
		end_child(child);
	}
}

const struct test promote_tests[] = {
	{ "khugepaged_threshold", khugepaged_threshold, "copy", 0,
	  "khugepaged collapses below the threshold" },
	{ "scan_against_dump", scan_against_dump, "copy", MATRIX, "a scan races with a dump" },
	{ "promote_all", promote_all, "in-place", QUICK,
	  "stale state in tail pages: promote, fork, split, write, compare" },
	{ "promote_holes", promote_holes, "in-place", 0,
	  "unused pages are not zeroed by promotion" },
	{ "promote_tail_state", promote_tail_state, "in-place", 0, "wrong flags of tail pages" },
	{ "promote_random", promote_random, "in-place", QUICK | MATRIX,
	  "stale state in tail pages" },
	{ "promote_by_khugepaged", promote_by_khugepaged, "in-place", MATRIX,
	  "stale state in tail pages" },
	{ "shared_with_child", shared_with_child, "in-place", QUICK,
	  "shared pages become an exclusive huge page" },
	{ "migrated_away", migrated_away, "in-place", QUICK,
	  "migration away and back: the page is not checked" },
	{ "pinned_by_pipe", pinned_by_pipe, "in-place", QUICK, "an external reference is lost" },
	{ "pinned_long_term", pinned_long_term, "in-place", 0,
	  "references to tail pages by a pin; fork with a pin" },
	{ "mlocked", mlocked, "in-place", QUICK, "mlock's batches" },
	{ "lazy_free", lazy_free, "in-place", QUICK,
	  "MADV_FREE pages: wrong class of NR_ISOLATED" },
	{ "deposited_table", deposited_table, "in-place", QUICK,
	  "a deposited page table that is not empty" },
	{ "memcg_fold", memcg_fold, "in-place", QUICK, "memcg data of tail pages is not merged" },
	{ "memcg_moved", memcg_moved, "in-place", QUICK, "pages of two memcgs become one" },
	{ "sync_promotion", sync_promotion, "sync-promotion", QUICK,
	  "not promoted at the threshold" },
	{ "hopping_writer", hopping_writer, "sync-promotion", 0, "LRU batches of other CPUs" },
	{ "hopping_threads", hopping_threads, "sync-promotion", MATRIX,
	  "LRU batches of other CPUs" },
	{ "sync_from_kernel", sync_from_kernel, "sync-promotion", QUICK,
	  "promotion in an exiting mm" },
	{ 0 },
};
