// SPDX-License-Identifier: GPL-2.0-only
/* Everything that gives up a reservation; and children must not inherit it. */
#include "tests.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define COUNT 4

static void touch(char *start, unsigned int count, unsigned int slot)
{
	for (unsigned int region = 0; region < count; region++)
		*PAGE_OF(start, region, slot) = 1 + slot % 100;
}

static char *touched(unsigned int count)
{
	char *start;

	threshold(512);
	start = regions(count);
	touch(start, count, 1);
	return start;
}

static void expect_reserved(long pages, const char *when)
{
	struct counters now = counters();

	EXPECT(now.reserved == pages, "%s: %ld pages are reserved, not %ld", when, now.reserved,
	       pages);
}

/* A forgotten reservation would give its pages to the next mapping at that address. */
static void unmap_remap(void)
{
	struct image *image = image_of(COUNT);
	struct counters before;
	char *start = touched(COUNT), *again;

	munmap(start, COUNT * REGION);
	expect_reserved(0, "unmapped");
	for (int round = 0; round < 20; round++) {
		before = counters();
		again = mmap(start, COUNT * REGION, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
		REQUIRE(again == start, "mmap at the same address");
		memset(image->seed, 0, COUNT * PAGES_PER_REGION);
		/* From a few pages to all of them: a reservation without unused pages must be released as well. */
		threshold(512);
		touch(start, COUNT, 0);
		threshold(1);
		for (unsigned int slot = 0; slot < PAGES_PER_REGION;
		     slot += round ? 1 + (round * 37) % 300 : 1)
			for (unsigned int region = 0; region < COUNT; region++)
				put(image, start, region, slot, seed_of(region, slot, round));
		EXPECT(since(before).alloc == COUNT, "round %d: %ld reservations", round,
		       since(before).alloc);
		expect_contents(image, start, "mapped again");
		munmap(start, COUNT * REGION);
		expect_reserved(0, "unmapped again");
	}
}

static void partial_unmap(void)
{
	struct image *image = image_of(COUNT);
	char *start = touched(COUNT), *hole = PAGE_OF(start, 1, 100);

	munmap(hole, PAGE);
	expect_reserved((COUNT - 1) * 511, "one page unmapped");
	REQUIRE(mmap(hole, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		     -1, 0) == hole,
		"mmap into the hole");
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 0; slot < PAGES_PER_REGION - 1; slot++)
			put(image, start, region, slot, seed_of(region, slot, 3));
	expect_contents(image, start, "partly mapped again");
	unmap(start, COUNT);
	expect_reserved(0, "all unmapped");
}

static void dontneed(void)
{
	struct image *image = image_of(COUNT);
	struct counters before;
	char *start = touched(COUNT);

	madvise(PAGE_OF(start, 0, 5), PAGE, MADV_DONTNEED);
	expect_reserved((COUNT - 1) * 511, "one page zapped");
	madvise(start, COUNT * REGION, MADV_DONTNEED);
	expect_reserved(0, "all zapped");
	before = counters();
	touch(start, COUNT, 2);
	EXPECT(!since(before).alloc, "a refault with a page table has made %ld reservations",
	       since(before).alloc);
	madvise(start, COUNT * REGION, MADV_DONTNEED);
	expect_contents(image, start, "zapped");
	unmap(start, COUNT);
}

static void exits(void)
{
	pid_t child = begin_child();

	if (!child) {
		touched(16);
		test_end();
	}
	end_child(child);
	expect_reserved(0, "exited");

	child = begin_child();
	if (!child) {
		touched(16);
		execl("/bin/busybox", "true", NULL);
		_exit(1);
	}
	end_child(child);
	expect_reserved(0, "another program executed");

	child = begin_child();
	if (!child) {
		touched(16);
		pause();
	}
	while (counters().reserved != 16 * 511)
		usleep(1000);
	kill(child, SIGKILL);
	end_of(child);
	expect_reserved(0, "killed");
}

/* fork() copies mm_struct to the child, including the pointer to the tree. */
static void fork_leaves_to_parent(void)
{
	struct image *image = image_of(COUNT), *childs;
	char *start = touched(COUNT);
	struct counters before;
	pid_t child;

	for (unsigned int region = 0; region < COUNT; region++)
		put(image, start, region, 1, seed_of(region, 1, 0));
	before = counters();
	child = begin_child();
	if (!child) {
		struct counters mine = counters();
		char *other;

		expect_contents(image, start, "the child before it writes");
		childs = image_copy(image);
		for (unsigned int region = 0; region < COUNT; region++) {
			put(childs, start, region, 1, seed_of(region, 1, 5));
			put(childs, start, region, 50, seed_of(region, 50, 5));
		}
		EXPECT(!since(mine).mapped && !since(mine).reserved,
		       "the child has taken %ld pages of its parent", since(mine).mapped);
		other = regions(1);
		*other = 1;
		EXPECT(since(mine).alloc == 1 && since(mine).mapped == 1,
		       "the child cannot reserve");
		expect_contents(childs, start, "the child after it has written");
		test_end();
	}
	end_child(child);
	EXPECT(!since(before).reserved, "the parent has lost %ld pages", -since(before).reserved);
	expect_contents(image, start, "the parent");
	for (unsigned int region = 0; region < COUNT; region++)
		put(image, start, region, 50, seed_of(region, 50, 6));
	/* After the reads above, these are zero pages, so COW takes the pages. */
	EXPECT(since(before).mapped >= COUNT,
	       "the parent does not take its pages from its reservation");
	expect_contents(image, start, "the parent after it has written");
	unmap(start, COUNT);
}

static void fork_storm(void)
{
	pid_t workers[6];

	for (size_t w = 0; w < ARRAY_SIZE(workers); w++) {
		workers[w] = begin_child();
		if (workers[w])
			continue;
		for (unsigned int round = 0; round < 25; round++) {
			struct image *image = image_of(COUNT);
			char *start;
			pid_t child;

			threshold(256);
			start = regions(COUNT);
			for (unsigned int region = 0; region < COUNT; region++)
				put(image, start, region, round, seed_of(region, round, w));
			child = begin_child();
			if (!child) {
				char *own = regions(2);

				for (unsigned int region = 0; region < COUNT; region++)
					put(image, start, region, round + 1,
					    seed_of(region, round, w + 1));
				own[REGION] = own[0] = 1;
				expect_contents(image, start, "child");
				if (round % 3 == 0)
					unmap(start, COUNT);
				if (round % 5 == 0)
					raise(SIGKILL);
				test_end();
			}
			for (unsigned int region = 0; region < COUNT; region++)
				put(image, start, region, round + 2, seed_of(region, round, w + 2));
			if (round % 5 == 0)
				EXPECT(WIFSIGNALED(end_of(child)), "the child was not killed");
			else
				end_child(child);
			expect_contents(image, start, "parent");
			if (round % 2)
				unmap(start, COUNT);
			free(image);
		}
		test_end();
	}
	for (size_t w = 0; w < ARRAY_SIZE(workers); w++)
		end_child(workers[w]);
	expect_reserved(0, "all have exited");
}

/* Many processes change the same counters at the same time: without atomicity it was -895. */
static void parallel_exits(void)
{
	pid_t workers[16];

	for (int round = 0; round < 4; round++) {
		for (size_t w = 0; w < ARRAY_SIZE(workers); w++) {
			workers[w] = begin_child();
			if (!workers[w]) {
				touched(4 + w);
				pause();
			}
		}
		while (counters().alloc == 0 || counters().reserved < 511 * 64)
			usleep(10000);
		for (size_t w = 0; w < ARRAY_SIZE(workers); w++)
			kill(workers[w], SIGKILL);
		for (size_t w = 0; w < ARRAY_SIZE(workers); w++)
			end_of(workers[w]);
		for (int wait = 0; wait < 50 && counters().reserved; wait++)
			usleep(20000);
		expect_reserved(0, "all were killed at once");
		expect_identity("all were killed at once");
	}
}

/* Including pages in per-CPU lists, which grow when pages are freed. */
static long free_pages(void)
{
	char line[128];
	long total = 0, count;
	FILE *file;

	setting("/proc/sys/vm/drop_caches", "3");
	total = event_count("nr_free_pages");
	file = fopen("/proc/zoneinfo", "r");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " count: %ld", &count) == 1)
			total += count;
	if (file)
		fclose(file);
	return total;
}

/* No counter shows a page that was never freed, but free memory does. */
static void memory_comes_back(void)
{
	const unsigned int rounds = 40, each = 100;
	long before = 0, lost;

	for (unsigned int round = 0; round < rounds + 2; round++) {
		pid_t child = begin_child();

		if (!child) {
			touched(each);
			test_end();
		}
		end_child(child);
		if (round == 1)
			before = free_pages();
	}
	lost = before - free_pages();
	note("%u reservations given up: %ld fewer pages are free", rounds * each, lost);
	EXPECT(lost < rounds * each / 2, "%ld pages are lost by %u reservations", lost,
	       rounds * each);
}

static void advice_and_protection(void)
{
	char *start = touched(COUNT);

	madvise(start + REGION, REGION, MADV_NOHUGEPAGE);
	expect_reserved((COUNT - 1) * 511, "MADV_NOHUGEPAGE of one region");
	madvise(start, COUNT * REGION, MADV_NOHUGEPAGE);
	expect_reserved(0, "MADV_NOHUGEPAGE of all");
	unmap(start, COUNT);

	start = touched(COUNT);
	mprotect(start + REGION, REGION, PROT_READ);
	expect_reserved(COUNT * 511, "mprotect at region borders");
	mprotect(PAGE_OF(start, 2, 1), PAGE, PROT_READ);
	expect_reserved((COUNT - 1) * 511, "mprotect inside a region");
	unmap(start, COUNT);
	expect_reserved(0, "unmapped");
}

/* If userfaultfd is registered afterwards, it must be notified of each missing page. */
static void userfaultfd_after(void)
{
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	struct counters before;
	char *start = touched(COUNT);
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	pid_t child;

	if (fd < 0)
		skip("there is no userfaultfd");
	REQUIRE(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API: %s", strerror(errno));
	range.range.start = (uintptr_t)start;
	range.range.len = 2 * REGION;
	REQUIRE(!ioctl(fd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER: %s", strerror(errno));
	expect_reserved(2 * 511, "two of four regions registered");
	before = counters();
	/* The child is not registered: it faults in an ordinary page. */
	child = begin_child();
	if (!child) {
		*PAGE_OF(start, 0, 9) = 5;
		test_end();
	}
	end_child(child);
	{
		static char page[PAGE] __attribute__((aligned(PAGE)));
		struct uffdio_copy copy = { .dst = (uintptr_t)PAGE_OF(start, 0, 9),
					    .src = (uintptr_t)page,
					    .len = PAGE };

		page_fill(page, 77);
		REQUIRE(!ioctl(fd, UFFDIO_COPY, &copy), "UFFDIO_COPY: %s", strerror(errno));
		EXPECT(page_is(PAGE_OF(start, 0, 9), 77), "not the contents of UFFDIO_COPY");
	}
	EXPECT(since(before).mapped == 0, "a registered region takes reserved pages");
	close(fd);
	/* Unregistered: ordinary pages, and copied pages stay. */
	*PAGE_OF(start, 0, 10) = 3;
	EXPECT(page_is(PAGE_OF(start, 0, 9), 77), "lost when userfaultfd was closed");
	unmap(start, COUNT);
}

static void *write_one(void *page)
{
	*(volatile char *)page = 1;
	return NULL;
}

/* Write protection by userfaultfd is a bit in each PTE, which promotion must keep. */
static void userfaultfd_protection(void)
{
#ifdef UFFDIO_WRITEPROTECT
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_writeprotect protect = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct image *image = image_of(1);
	char *start = reserved_regions(1);
	struct uffd_msg message = { 0 };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), status;
	pthread_t writer;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		skip("userfaultfd has no write protection");
	for (unsigned int slot = 0; slot < 400; slot++)
		put(image, start, 0, slot, seed_of(0, slot, 0));
	range.range.start = protect.range.start = (uintptr_t)start;
	range.range.len = REGION;
	REQUIRE(!ioctl(fd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER: %s", strerror(errno));
	protect.range.start += 17 * PAGE;
	protect.range.len = PAGE;
	REQUIRE(!ioctl(fd, UFFDIO_WRITEPROTECT, &protect), "UFFDIO_WRITEPROTECT: %s",
		strerror(errno));
	status = madvise(start, REGION, MADV_COLLAPSE);
	EXPECT(status && !huge_regions(start, 1), "a protected range was promoted");
	REQUIRE(!pthread_create(&writer, NULL, write_one, PAGE_OF(start, 0, 17)), "pthread_create");
	for (int wait = 0; wait < 500 && read(fd, &message, sizeof(message)) != sizeof(message);
	     wait++)
		usleep(10000);
	EXPECT(message.event == UFFD_EVENT_PAGEFAULT &&
		       message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
	       "a write to a protected page was not reported");
	protect.mode = 0;
	REQUIRE(!ioctl(fd, UFFDIO_WRITEPROTECT, &protect), "UFFDIO_WRITEPROTECT off: %s",
		strerror(errno));
	pthread_join(writer, NULL);
	EXPECT(*PAGE_OF(start, 0, 17) == 1, "the write is lost");
	put(image, start, 0, 17, 9);
	expect_contents(image, start, "protected and unprotected");
	close(fd);
	unmap(start, 1);
#else
	skip("the headers have no UFFDIO_WRITEPROTECT");
#endif
}

/* New pages follow the memory policy of the mapping, whatever that of old pages. */
static void mbind_after(void)
{
	char *start;

	if (node_count() < 2)
		skip("there is only one node");
	start = touched(COUNT);
	bind_to(start + REGION, REGION, 1);
	expect_reserved((COUNT - 1) * 511, "one region bound");
	unmap(start, COUNT);

	for (int node = 0; node < 2; node++) {
		start = touched(COUNT);
		bind_to(start, COUNT * REGION, node);
		expect_reserved(0, "all bound");
		for (unsigned int slot = 2; slot < 100; slot += 9)
			touch(start, COUNT, slot);
		for (unsigned int region = 0; region < COUNT; region++)
			for (unsigned int slot = 2; slot < 100; slot += 9)
				EXPECT(node_of(PAGE_OF(start, region, slot)) == node,
				       "a page is on node %d, not %d",
				       node_of(PAGE_OF(start, region, slot)), node);
		unmap(start, COUNT);

		/* Bound before the first touch: the block must be on that node. */
		start = regions(COUNT);
		bind_to(start, COUNT * REGION, node);
		for (unsigned int slot = 0; slot < 100; slot += 9)
			touch(start, COUNT, slot);
		for (unsigned int region = 0; region < COUNT; region++)
			EXPECT(node_of(PAGE_OF(start, region, 90)) == node,
			       "a reserved page is on node %d, not %d",
			       node_of(PAGE_OF(start, region, 90)), node);
		if (has_stage("reserve"))
			EXPECT(reserved_on(node) > 0, "node %d has no reserved page", node);
		unmap(start, COUNT);
	}
}

/* ---- mremap ---- */

static void mremap_contents(void)
{
	struct image *image = image_of(COUNT);
	bool keeps = has_stage("mremap");
	char *from = touched(COUNT), *to = regions(COUNT);
	struct counters before;

	/* A reservation at the destination must be given up. */
	touch(to, COUNT, 3);
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 0; slot < 200; slot += 3)
			put(image, from, region, slot, seed_of(region, slot, 0));
	image->seed[1] = 0;
	for (unsigned int region = 0; region < COUNT; region++)
		put(image, from, region, 1, seed_of(region, 1, 0));
	before = counters();
	REQUIRE(mremap(from, COUNT * REGION, COUNT * REGION, MREMAP_MAYMOVE | MREMAP_FIXED, to) ==
			to,
		"mremap: %s", strerror(errno));
	expect_reserved(keeps ? COUNT * (512 - 68) : 0, "moved");
	expect_contents(image, to, "moved");
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 2; slot < 512; slot += 3)
			put(image, to, region, slot, seed_of(region, slot, 1));
	EXPECT(since(before).alloc == 0 && since(before).mapped == (keeps ? COUNT * 170 : 0),
	       "alloc %ld, mapped %ld", since(before).alloc, since(before).mapped);
	expect_contents(image, to, "written after the move");
	if (keeps) {
		for (unsigned int page = 0; page < COUNT * PAGES_PER_REGION; page++)
			if (!image->seed[page])
				put(image, to, page / 512, page % 512,
				    seed_of(page / 512, page % 512, 2));
		EXPECT(contiguous(to, COUNT), "not one block after the move");
	}
	munmap(to, COUNT * REGION);
	expect_reserved(0, "unmapped");
}

static void mremap_forms(void)
{
	bool keeps = has_stage("mremap");
	char *from, *to, *moved;

	/* Shrink: the last regions are unmapped. */
	from = touched(COUNT);
	mremap(from, COUNT * REGION, 2 * REGION + PAGE, 0);
	expect_reserved(2 * 511, "shortened");
	unmap(from, COUNT);

	/* Different alignment. */
	from = touched(COUNT);
	to = regions(COUNT + 1);
	moved = mremap(from, COUNT * REGION, COUNT * REGION, MREMAP_MAYMOVE | MREMAP_FIXED,
		       to + PAGE);
	EXPECT(moved == to + PAGE, "mremap: %s", strerror(errno));
	expect_reserved(0, "moved by a page");
	EXPECT(*PAGE_OF(moved, 0, 1) == 2 && *PAGE_OF(moved, 3, 1) == 2 && !*PAGE_OF(moved, 2, 7),
	       "contents");
	unmap(to, COUNT + 1);

	/* From the middle of a region to the middle of another: whole regions in between keep their reservations. */
	from = touched(COUNT);
	touch(from, COUNT, 400);
	to = regions(COUNT);
	moved = mremap(from + REGION / 2, 3 * REGION, 3 * REGION, MREMAP_MAYMOVE | MREMAP_FIXED,
		       to + REGION / 2);
	EXPECT(moved == to + REGION / 2, "mremap: %s", strerror(errno));
	expect_reserved(keeps ? 2 * 510 : 0, "a part moved");
	EXPECT(*PAGE_OF(to, 1, 1) == 2 && *PAGE_OF(to, 2, 1) == 2 && *PAGE_OF(to, 0, 400) == 1,
	       "contents");
	unmap(from, COUNT);
	unmap(to, COUNT);

	/* The source stays mapped and is empty. */
	from = touched(COUNT);
	to = regions(COUNT);
	moved = mremap(from, COUNT * REGION, COUNT * REGION,
		       MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, to);
	if (moved == to) {
		expect_reserved(keeps ? COUNT * 511 : 0, "moved, not unmapped");
		touch(from, COUNT, 9);
		touch(to, COUNT, 8);
		EXPECT(!*PAGE_OF(from, 0, 1) && *PAGE_OF(to, 0, 1) == 2 &&
			       *PAGE_OF(from, 3, 9) == 10 && !*PAGE_OF(to, 3, 9),
		       "contents");
	}
	unmap(from, COUNT);
	unmap(to, COUNT);

	/* Grow. */
	from = touched(2);
	to = regions(6);
	moved = mremap(from, 2 * REGION, 6 * REGION, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	EXPECT(moved == to, "mremap: %s", strerror(errno));
	expect_reserved(keeps ? 2 * 511 : 0, "moved and grown");
	touch(to, 6, 2);
	unmap(to, 6);
	expect_reserved(0, "unmapped");
}

const struct test release_tests[] = {
	{ "unmap_remap", unmap_remap, "reserve", QUICK,
	  "a fully used reservation is skipped by a release hook" },
	{ "partial_unmap", partial_unmap, "reserve", QUICK,
	  "partial munmap and a new mapping at the same address" },
	{ "dontneed", dontneed, "reserve", QUICK, "a release hook is missing" },
	{ "exits", exits, "reserve", QUICK, "a block is leaked on exit, exec or kill" },
	{ "fork_leaves_to_parent", fork_leaves_to_parent, "reserve", QUICK,
	  "a reservation is shared with a child" },
	{ "fork_storm", fork_storm, "reserve", MATRIX, "a shared tree after memcpy" },
	{ "parallel_exits", parallel_exits, "reserve", 0, "a non-atomic change of a counter" },
	{ "memory_comes_back", memory_comes_back, "reserve", 0,
	  "pages of a reservation are never freed" },
	{ "advice_and_protection", advice_and_protection, "reserve", QUICK,
	  "a release hook is missing" },
	{ "userfaultfd_after", userfaultfd_after, "reserve", QUICK,
	  "userfaultfd registered after reserving" },
	{ "userfaultfd_protection", userfaultfd_protection, "in-place", QUICK,
	  "promotion loses the bit of userfaultfd" },
	{ "mbind_after", mbind_after, "reserve", QUICK, "mbind leaves pages on the old node" },
	{ "mremap_contents", mremap_contents, "reserve", QUICK,
	  "a page at a wrong address after mremap" },
	{ "mremap_forms", mremap_forms, "reserve", QUICK,
	  "partially moved regions keep their reservation" },
	{ 0 },
};
