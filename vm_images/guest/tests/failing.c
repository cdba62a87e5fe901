// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocation failures: Documentation/fault-injection/fault-injection.rst.
 *
 * /proc/thread-self/fail-nth makes exactly the n-th of the next allocations of
 * this thread fail, so that all allocations on a path can be tested in turn.
 */
#include "tests.h"

#include <fcntl.h>

#define COUNT 2
#define SLAB "/sys/kernel/debug/failslab/"
#define PAGES "/sys/kernel/debug/fail_page_alloc/"
#define NTH "/proc/thread-self/fail-nth"
#define MOST 60

static void arm(void)
{
	static const char *const attributes[] = { SLAB, PAGES };
	char path[128];

	if (access(NTH, W_OK) || access(SLAB "probability", W_OK) ||
	    access(PAGES "probability", W_OK))
		skip("this kernel has no fault injection");
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++) {
		snprintf(path, sizeof(path), "%sverbose", attributes[i]);
		setting(path, "0");
		snprintf(path, sizeof(path), "%signore-gfp-wait", attributes[i]);
		setting(path, "N");
	}
	setting(PAGES "ignore-gfp-highmem", "N");
	setting(PAGES "min-order", "0");
}

/* The write that disables it allocates memory as well, and may fail. */
static void stop_failing(void)
{
	while (try_write("/proc/self/make-it-fail", "0") == -ENOMEM)
		;
}

static int nth_fd = -1;

static void fail_nth(int n)
{
	static pid_t owner;
	char text[16];
	int length = snprintf(text, sizeof(text), "%d", n);

	/* The open file belongs to the task that opened it. */
	if (nth_fd < 0 || owner != getpid())
		nth_fd = open(NTH, O_RDWR | O_CLOEXEC);
	owner = getpid();
	REQUIRE(pwrite(nth_fd, text, length, 0) == length, NTH ": %s", strerror(errno));
}

/* Disable what fail_nth() has enabled. Returns whether the n-th allocation was reached, and failed. */
static bool nth_failed(void)
{
	char text[16] = "";

	REQUIRE(pread(nth_fd, text, sizeof(text) - 1, 0) > 0, NTH ": %s", strerror(errno));
	pwrite(nth_fd, "0", 1, 0);
	return atoi(text) == 0;
}

/* Each allocation of a first write fails in turn: the write succeeds, and a failure to reserve is counted. */
static void fail_first_write(void)
{
	unsigned int hits = 0, uncounted = 0;
	struct counters before;

	arm();
	threshold(512);
	counters();
	for (int n = 1; n < MOST; n++) {
		struct image *image = image_of(COUNT);
		char *start = regions(COUNT), *page = PAGE_OF(start, 0, 9);
		struct counters delta;
		bool hit;

		/* Upper page tables usually exist already: the test is about the reservation. */
		*PAGE_OF(start, 1, 0) = 0;
		before = counters();
		fail_nth(n);
		*(volatile char *)page = 0;
		hit = nth_failed();
		delta = since(before);
		if (hit) {
			hits++;
			uncounted += !delta.alloc && !delta.failed;
		}
		for (unsigned int slot = 0; slot < 511; slot++)
			put(image, start, 0, slot, seed_of(0, slot, n));
		expect_contents(image, start, "an allocation of the first write has failed");
		unmap(start, COUNT);
		expect_identity("an allocation of the first write has failed");
		free(image);
		if (!hit)
			break;
	}
	note("%u allocations failed in turn; %u failures left the range without a reservation and uncounted",
	     hits, uncounted);
	EXPECT(hits >= 3, "only %u allocations could be made to fail", hits);
	EXPECT(counters().failed > 0, "no failure to reserve was counted");
}

/* In an mm without reservations, all nodes of the tree have to be allocated. */
static void fail_first_of_mm(void)
{
	unsigned int hits = 0;

	arm();
	threshold(512);
	for (int n = 1; n < MOST; n++) {
		pid_t child = begin_child();
		int status;

		if (!child) {
			struct image *image = image_of(COUNT);
			char *start = regions(COUNT);
			bool hit;

			fail_nth(n);
			*(volatile char *)PAGE_OF(start, 0, 9) = 0;
			hit = nth_failed();
			for (unsigned int slot = 0; slot < 511; slot++)
				put(image, start, slot % 2, slot, seed_of(0, slot, n));
			expect_contents(image, start,
					"an allocation of the first reservation has failed");
			fflush(stdout);
			_exit(reported() ? 2 : hit);
		}
		status = end_of(child);
		EXPECT(WIFEXITED(status) && WEXITSTATUS(status) < 2,
		       "allocation %d: ended with %#x", n, status);
		expect_identity("an allocation of the first reservation has failed");
		if (!status)
			break;
		hits++;
	}
	note("%u allocations failed in turn", hits);
	EXPECT(hits >= 6, "only %u allocations could be made to fail", hits);
}

/* Nodes of the tree fail with a probability of 50 %; nodes that were allocated before a failure stay in the tree. */
static void fail_tree_nodes(void)
{
	static const char filter[] = "/sys/kernel/slab/radix_tree_node/failslab";
	struct counters before = counters();

	arm();
	if (access(filter, W_OK))
		skip("there is no %s", filter);
	threshold(512);
	setting(filter, "1");
	setting(SLAB "cache-filter", "Y");
	setting(SLAB "task-filter", "Y");
	setting(SLAB "times", "-1");
	setting(SLAB "interval", "1");
	setting(SLAB "probability", "50");
	for (int round = 0; round < 60; round++) {
		pid_t child = begin_child();

		if (!child) {
			char *start = regions(1);

			setting("/proc/self/make-it-fail", "1");
			*(volatile char *)PAGE_OF(start, 0, 9) = 1;
			stop_failing();
			page_fill(PAGE_OF(start, 0, 10), 7);
			EXPECT(*PAGE_OF(start, 0, 9) == 1 && page_is(PAGE_OF(start, 0, 10), 7),
			       "contents");
			test_end();
		}
		end_child(child);
	}
	setting(SLAB "probability", "0");
	setting(SLAB "cache-filter", "N");
	setting(filter, "0");
	note("%ld reservations, %ld without", since(before).alloc, 60 - since(before).alloc);
	EXPECT(since(before).alloc < 60 && since(before).alloc > 0, "%ld of 60 reservations",
	       since(before).alloc);
	expect_identity("nodes of the tree could not be allocated");
}

/* A page that was taken, but cannot be mapped after another failure, does not go back and is not lost. */
static void fail_later_writes(void)
{
	unsigned int hits = 0;

	arm();
	for (int n = 1; n < MOST; n++) {
		struct image *image = image_of(COUNT);
		char *start = reserved_regions(COUNT);
		bool hit;

		fail_nth(n);
		*(volatile char *)PAGE_OF(start, 0, 9) = 0;
		hit = nth_failed();
		hits += hit;
		/* A page where the zero page is mapped. */
		EXPECT(!*(volatile char *)PAGE_OF(start, 1, 9), "not zero");
		fail_nth(n);
		*(volatile char *)PAGE_OF(start, 1, 9) = 0;
		hits += nth_failed();
		for (unsigned int slot = 3; slot < 400; slot += 3)
			put(image, start, slot % 2, slot, seed_of(0, slot, n));
		expect_contents(image, start, "an allocation of a later write has failed");
		unmap(start, COUNT);
		expect_identity("an allocation of a later write has failed");
		free(image);
		if (!hit)
			break;
	}
	note("%u allocations failed", hits);
}

static void fail_promotion(void)
{
	unsigned int hits = 0, promoted = 0;

	arm();
	for (int n = 1; n < MOST; n++) {
		struct image *image = image_of(COUNT);
		char *start = reserved_regions(COUNT);
		bool hit;

		for (unsigned int slot = 0; slot < 400; slot++)
			put(image, start, slot % 2, slot, seed_of(0, slot, n));
		fail_nth(n);
		promoted += !madvise(start, REGION, MADV_COLLAPSE);
		hit = nth_failed();
		hits += hit;
		expect_contents(image, start, "an allocation of promotion has failed");
		for (unsigned int slot = 1; slot < 400; slot += 2)
			put(image, start, 0, slot, seed_of(0, slot, n + 1));
		expect_contents(image, start, "and was written to");
		unmap(start, COUNT);
		expect_identity("an allocation of promotion has failed");
		free(image);
		if (!hit)
			break;
	}
	note("%u allocations failed, %u times promoted", hits, promoted);
	EXPECT(hits >= 1 && promoted >= 1, "%u failures, %u promotions", hits, promoted);
}

/* Rollback after an error: reservations have to be where the pages are. */
static void fail_mremap(void)
{
	unsigned int hits = 0, errors = 0;

	arm();
	for (int n = 1; n < MOST; n++) {
		struct image *image = image_of(4);
		char *from = reserved_regions(4), *to = regions(4), *where;
		bool hit;

		for (unsigned int slot = 0; slot < 400; slot++)
			put(image, from, slot % 4, slot, seed_of(slot % 4, slot, n));
		fail_nth(n);
		where = mremap(from, 4 * REGION, 4 * REGION, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		hit = nth_failed();
		hits += hit;
		if (where == MAP_FAILED) {
			errors++;
			where = from;
		}
		expect_contents(image, where, "an allocation of mremap has failed");
		for (unsigned int slot = 100; slot < 500; slot++)
			put(image, where, slot % 4, slot, seed_of(slot % 4, slot, n + 1));
		expect_contents(image, where, "and was written to");
		munmap(from, 5 * REGION);
		munmap(to, 5 * REGION);
		EXPECT(!counters().reserved, "%ld pages reserved when all is unmapped",
		       counters().reserved);
		expect_identity("an allocation of mremap has failed");
		free(image);
		if (!hit)
			break;
	}
	note("%u allocations failed, %u times mremap did", hits, errors);
	EXPECT(hits >= 2, "%u failures", hits);
}

static void fail_fork(void)
{
	unsigned int hits = 0;

	arm();
	for (int n = 1; n < 4 * MOST; n += n < 20 ? 1 : 7) {
		struct image *image = image_of(COUNT);
		char *start = reserved_regions(COUNT);
		pid_t child;
		bool hit;

		for (unsigned int slot = 0; slot < 300; slot++)
			put(image, start, slot % 2, slot, seed_of(0, slot, n));
		fflush(stdout);
		fail_nth(n);
		child = fork();
		if (!child) {
			*PAGE_OF(start, 0, 400) = 1;
			_exit(!page_is(PAGE_OF(start, 0, 2), image->seed[2]));
		}
		hit = nth_failed();
		hits += hit;
		if (child > 0)
			EXPECT(!end_of(child), "the child reads wrong contents");
		expect_contents(image, start, "an allocation of fork has failed");
		unmap(start, COUNT);
		expect_identity("an allocation of fork has failed");
		free(image);
		if (!hit)
			break;
	}
	note("%u allocations failed", hits);
	EXPECT(hits >= 5, "%u failures", hits);
}

/* One allocation in fifty fails, with many threads: nothing is lost. */
static void fail_at_random(void)
{
	long failed;
	struct counters before = counters();
	pid_t children[4];

	arm();
	threshold(128);
	setting(SLAB "times", "-1");
	setting(PAGES "times", "-1");
	setting(SLAB "interval", "1");
	setting(PAGES "interval", "1");
	setting(SLAB "task-filter", "Y");
	setting(PAGES "task-filter", "Y");
	setting(SLAB "probability", "2");
	setting(PAGES "probability", "2");
	for (size_t c = 0; c < ARRAY_SIZE(children); c++) {
		children[c] = begin_child();
		if (children[c])
			continue;
		for (unsigned int round = 0; round < 20; round++) {
			struct image *image = image_of(COUNT);
			char *start;

			start = regions(COUNT);
			setting("/proc/self/make-it-fail", "1");
			for (unsigned int i = 0; i < COUNT * 300; i++) {
				unsigned int page = (i * 1201 + round) % (COUNT * 512);

				put(image, start, page / 512, page % 512,
				    seed_of(page, page, round + c));
				if (i % 200 == 199)
					madvise(start + i % COUNT * REGION, REGION, MADV_COLLAPSE);
			}
			stop_failing();
			expect_contents(image, start, "one allocation in fifty has failed");
			unmap(start, COUNT);
			free(image);
		}
		test_end();
	}
	for (size_t c = 0; c < ARRAY_SIZE(children); c++)
		end_child(children[c]);
	setting(SLAB "probability", "0");
	setting(PAGES "probability", "0");
	failed = since(before).failed;
	note("%ld reservations, %ld failed, %ld in place, %ld by copy", since(before).alloc, failed,
	     since(before).collapsed, since(before).copied);
	EXPECT(failed > 0, "no failure to reserve was counted");
}

const struct test failing_tests[] = {
	{ "fail_first_write", fail_first_write, "reserve", 0,
	  "a failed reservation is lost or not counted" },
	{ "fail_first_of_mm", fail_first_of_mm, "reserve", 0,
	  "remains of a tree that could not grow" },
	{ "fail_tree_nodes", fail_tree_nodes, "reserve", 0,
	  "remains of a tree that could not grow" },
	{ "fail_later_writes", fail_later_writes, "reserve", 0,
	  "a page is lost when its charge fails" },
	{ "fail_promotion", fail_promotion, "in-place", 0, "promotion is not rolled back" },
	{ "fail_mremap", fail_mremap, "reserve", 0, "mremap's rollback on error: injected ENOMEM" },
	{ "fail_fork", fail_fork, "reserve", 0, "a failed fork shares the parent's tree" },
	{ "fail_at_random", fail_at_random, "in-place", 0, "allocation and charge paths fail" },
	{ 0 },
};
