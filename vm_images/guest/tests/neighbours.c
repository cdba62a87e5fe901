// SPDX-License-Identifier: GPL-2.0-only
/* Other parts of memory management that handle pages from a reservation. */
#include "tests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define COUNT 4
#define KSM "/sys/kernel/mm/ksm/"

static char *mixed(struct image *image, unsigned int pages, unsigned int round)
{
	char *start = reserved_regions(image->count);

	memset(image->seed, 0, image->count * PAGES_PER_REGION);
	for (unsigned int region = 0; region < image->count; region++)
		for (unsigned int slot = 0; slot < pages; slot++)
			put(image, start, region, slot, seed_of(region, slot, round));
	return start;
}

static void collapse_all(char *start)
{
	for (unsigned int region = 0; region < COUNT; region++)
		madvise(start + region * REGION, REGION, MADV_COLLAPSE);
}

static void rewrite(struct image *image, char *start, unsigned int step, unsigned int round)
{
	for (unsigned int page = 0; page < image->count * PAGES_PER_REGION; page += step)
		put(image, start, page / 512, page % 512, seed_of(page / 512, page % 512, round));
}

/* Merged pages are shared read-only; the remaining page may or may not be that of the slot. */
static void ksm(void)
{
	struct image *image = image_of(COUNT);
	struct counters before;
	char *start;
	long scanned;

	if (access(KSM "run", W_OK))
		skip("there is no KSM");
	start = mixed(image, 400, 0);
	/* Many equal pages, and one different page among them. */
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 0; slot < 300; slot++)
			if (slot != 33)
				put(image, start, region, slot, 1 + slot % 5);
	REQUIRE(!madvise(start, COUNT * REGION, MADV_MERGEABLE), "MADV_MERGEABLE: %s",
		strerror(errno));
	setting(KSM "pages_to_scan", "20000");
	setting(KSM "sleep_millisecs", "5");
	if (!access(KSM "smart_scan", W_OK))
		setting(KSM "smart_scan", "0");
	setting(KSM "run", "1");
	scanned = number_in(KSM "full_scans");
	for (int wait = 0; wait < 6000 && number_in(KSM "full_scans") < scanned + 4; wait++)
		usleep(10000);
	note("%ld pages share %ld", number_in(KSM "pages_sharing"), number_in(KSM "pages_shared"));
	EXPECT(number_in(KSM "pages_sharing") > 100, "nothing was merged");
	expect_contents(image, start, "merged");
	before = counters();
	collapse_all(start);
	EXPECT(!since(before).collapsed, "merged pages were promoted in place");
	expect_contents(image, start, "merged and collapsed");
	rewrite(image, start, 3, 1);
	expect_contents(image, start, "merged and written");
	setting(KSM "run", "2");
	expect_contents(image, start, "unmerged");
	setting(KSM "run", "0");
	collapse_all(start);
	expect_contents(image, start, "unmerged and collapsed");
	unmap(start, COUNT);
}

/* Swap out and in: the page is a different one then, and the slot is lost. */
static void swapped_out(void)
{
	struct image *image = image_of(COUNT);
	struct counters before;
	char *start;
	long out;

	swap_begin(256);
	start = mixed(image, 400, 0);
	out = event_count("pswpout");
	REQUIRE(!madvise(start, COUNT * REGION, MADV_PAGEOUT), "MADV_PAGEOUT: %s", strerror(errno));
	for (int wait = 0; wait < 100 && event_count("pswpout") == out; wait++)
		usleep(10000);
	EXPECT(event_count("pswpout") > out, "nothing was swapped out");
	/* Write to some pages, while others are in swap. */
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 390; slot < 430; slot++)
			put(image, start, region, slot, seed_of(region, slot, 1));
	expect_contents(image, start, "out and in");
	rewrite(image, start, 4, 2);
	before = counters();
	collapse_all(start);
	EXPECT(!since(before).collapsed, "promoted in place although swap has replaced pages");
	expect_contents(image, start, "collapsed after swap");
	unmap(start, COUNT);

	/* In the swap cache and in memory at the same time, since they were only read. */
	start = mixed(image, 300, 3);
	madvise(start, REGION, MADV_PAGEOUT);
	expect_contents(image, start, "read back");
	collapse_all(start);
	expect_contents(image, start, "collapsed out of the swap cache");
	rewrite(image, start, 2, 4);
	/* Swap out huge pages as well. */
	madvise(start, COUNT * REGION, MADV_PAGEOUT);
	expect_contents(image, start, "huge pages out and in");
	/* fork with entries in swap */
	madvise(start, COUNT * REGION, MADV_PAGEOUT);
	{
		pid_t child = begin_child();

		if (!child) {
			rewrite(image, start, 3, 5);
			expect_contents(image, start, "the child, from swap");
			test_end();
		}
		rewrite(image, start, 5, 6);
		end_child(child);
	}
	expect_contents(image, start, "the parent, from swap");
	unmap(start, COUNT);
}

/* A debugger writes to a page that does not exist yet, and to a page that is read-only for its owner. */
static void written_from_outside(void)
{
	struct image *image = image_of(1);
	struct iovec mine, theirs;
	static char page[PAGE] __attribute__((aligned(PAGE)));
	char *start;
	pid_t child;
	int status;

	threshold(512);
	start = regions(1);
	child = begin_child();
	if (!child) {
		/* In the mm of the child, the region is empty at first. */
		put(image, start, 0, 1, 11);
		raise(SIGSTOP);
		image->seed[100] = 22;
		image->seed[200] = 33;
		expect_contents(image, start, "written by another process");
		mprotect(start, REGION, PROT_READ);
		raise(SIGSTOP);
		EXPECT(*(long *)PAGE_OF(start, 0, 300) == 0x1234567890, "POKEDATA into a hole");
		EXPECT(*(long *)PAGE_OF(start, 0, 200) == 0x1234567890,
		       "POKEDATA into a read-only page");
		for (unsigned int at = 8; at < PAGE; at++)
			EXPECT(!PAGE_OF(start, 0, 300)[at],
			       "the poked page has other contents besides the word");
		test_end();
	}
	waitpid(child, &status, WUNTRACED);
	page_fill(page, 22);
	mine = (struct iovec){ page, PAGE };
	theirs = (struct iovec){ PAGE_OF(start, 0, 100), PAGE };
	EXPECT(process_vm_writev(child, &mine, 1, &theirs, 1, 0) == (ssize_t)PAGE,
	       "process_vm_writev: %s", strerror(errno));
	page_fill(page, 33);
	theirs.iov_base = PAGE_OF(start, 0, 200);
	EXPECT(process_vm_writev(child, &mine, 1, &theirs, 1, 0) == (ssize_t)PAGE,
	       "process_vm_writev: %s", strerror(errno));
	kill(child, SIGCONT);
	waitpid(child, &status, WUNTRACED);
	if (!WIFSTOPPED(status)) {
		EXPECT(false, "the child ended with %#x", status);
		return;
	}
	REQUIRE(!ptrace(PTRACE_SEIZE, child, 0, 0), "PTRACE_SEIZE: %s", strerror(errno));
	ptrace(PTRACE_INTERRUPT, child, 0, 0);
	waitpid(child, &status, 0);
	EXPECT(!ptrace(PTRACE_POKEDATA, child, PAGE_OF(start, 0, 300), 0x1234567890),
	       "POKEDATA: %s", strerror(errno));
	EXPECT(!ptrace(PTRACE_POKEDATA, child, PAGE_OF(start, 0, 200), 0x1234567890),
	       "POKEDATA: %s", strerror(errno));
	ptrace(PTRACE_DETACH, child, 0, 0);
	kill(child, SIGCONT);
	end_child(child);
	unmap(start, 1);
}

/* The threshold is reached by a write of another process, which does not return to user space in this mm. */
static void reached_from_outside(void)
{
	struct image *image = image_of(1);
	static char page[PAGE] __attribute__((aligned(PAGE)));
	struct iovec mine = { page, PAGE }, theirs;
	char *start;
	int status;
	pid_t child;

	threshold(64);
	start = regions(1);
	child = begin_child();
	if (!child) {
		for (unsigned int slot = 0; slot < 60; slot++)
			put(image, start, 0, slot, seed_of(0, slot, 0));
		raise(SIGSTOP);
		for (unsigned int slot = 60; slot < 80; slot++)
			image->seed[slot] = slot;
		expect_contents(image, start, "filled up by another process");
		rewrite(image, start, 1, 2);
		expect_contents(image, start, "written");
		test_end();
	}
	waitpid(child, &status, WUNTRACED);
	for (unsigned int slot = 60; slot < 80; slot++) {
		page_fill(page, slot);
		theirs = (struct iovec){ PAGE_OF(start, 0, slot), PAGE };
		EXPECT(process_vm_writev(child, &mine, 1, &theirs, 1, 0) == (ssize_t)PAGE,
		       "process_vm_writev: %s", strerror(errno));
	}
	kill(child, SIGCONT);
	end_child(child);
	unmap(start, 1);
}

/* Memory errors of a mapped page, and of an unused reserved page. */
static void soft_offline(void)
{
	struct image *image = image_of(1);
	char *start = mixed(image, 300, 0);

	if (madvise(PAGE_OF(start, 0, 17), PAGE, MADV_SOFT_OFFLINE))
		skip("memory cannot be taken offline page by page: %s", strerror(errno));
	expect_contents(image, start, "a mapped page was replaced");
	EXPECT(!madvise(start, REGION, MADV_COLLAPSE), "not collapsed: %s", strerror(errno));
	expect_contents(image, start, "collapsed");
	rewrite(image, start, 1, 1);
	expect_contents(image, start, "written");
	unmap(start, 1);
}

static void poisoned_unused_page(void)
{
	const char *path = "/sys/kernel/debug/hwpoison/corrupt-pfn";
	struct image *image = image_of(2);
	unsigned long first;
	char *start, text[32];
	struct counters before;

	if (access(path, W_OK))
		skip("there is no hwpoison-inject");
	start = mixed(image, 200, 0);
	first = pfn_of(start);
	REQUIRE(first && first % PAGES_PER_REGION == 0, "the first page is at pfn %#lx", first);
	before = counters();
	/* Reserved, but not mapped. Twice: below the pages that are used next, and among them. */
	for (unsigned int slot = 210; slot < 420; slot += 200) {
		int error;

		snprintf(text, sizeof(text), "%#lx", first + slot);
		error = try_write(path, text);
		note("poisoning an unused reserved page: %s", error ? strerror(-error) : "done");
	}
	for (unsigned int region = 0; region < 2; region++)
		for (unsigned int slot = 200; slot < 400; slot++)
			put(image, start, region, slot, seed_of(region, slot, 1));
	/* If the page of the slot had been mapped, the write would have been to bad memory. */
	EXPECT(pfn_of(PAGE_OF(start, 0, 210)) != first + 210, "the bad page was handed out");
	expect_contents(image, start, "one page of the block is bad");
	before = counters();
	madvise(start, REGION, MADV_COLLAPSE);
	EXPECT(!since(before).collapsed, "promoted in place with a bad page");
	EXPECT(pfn_of(PAGE_OF(start, 0, 410)) != first + 410,
	       "the bad page is part of a huge page");
	expect_contents(image, start, "collapsed");
	unmap(start, 2);
	setting("/sys/kernel/debug/hwpoison/unpoison-pfn", text);
	snprintf(text, sizeof(text), "%#lx", first + 210);
	setting("/sys/kernel/debug/hwpoison/unpoison-pfn", text);
}

static void soft_dirty(void)
{
	struct image *image = image_of(1);
	uint64_t entry = 0;
	char *start;
	int fd;

	start = mixed(image, 400, 0);
	if (try_write("/proc/self/clear_refs", "4"))
		skip("there are no soft-dirty bits");
	put(image, start, 0, 7, 99);
	fd = open("/proc/self/pagemap", O_RDONLY);
	REQUIRE(pread(fd, &entry, 8, (uintptr_t)PAGE_OF(start, 0, 7) / PAGE * 8) == 8, "pagemap");
	if (!(entry >> 55 & 1))
		skip("there are no soft-dirty bits");
	madvise(start, REGION, MADV_COLLAPSE);
	REQUIRE(pread(fd, &entry, 8, (uintptr_t)PAGE_OF(start, 0, 7) / PAGE * 8) == 8, "pagemap");
	EXPECT(entry >> 55 & 1, "promotion has lost the soft-dirty bit of a page");
	expect_contents(image, start, "promoted");
	close(fd);
	unmap(start, 1);
}

/* Compaction scans all pages, including unused reserved pages. */
static void compaction(void)
{
	struct image *image = image_of(COUNT);
	char *start = mixed(image, 256, 0);

	for (int round = 0; round < 4; round++) {
		setting("/proc/sys/vm/compact_memory", "1");
		expect_contents(image, start, "compacted");
		rewrite(image, start, 5 + round, round);
	}
	collapse_all(start);
	expect_contents(image, start, "collapsed");
	unmap(start, COUNT);
}

/* NUMA balancing makes PTEs inaccessible, and migrates pages that are accessed from another node. */
static void numa_balancing(void)
{
	struct image *image = image_of(COUNT);
	struct node nodes[MAX_NODES];
	int count = nodes_find(nodes);
	char *start;

	if (count < 2 || access("/proc/sys/kernel/numa_balancing", W_OK))
		skip("there is no NUMA balancing");
	setting("/proc/sys/kernel/numa_balancing", "1");
	start = mixed(image, 400, 0);
	for (int round = 0; round < 6; round++) {
		pin_to_node(&nodes[round % count]);
		for (int time = 0; time < 5; time++) {
			expect_contents(image, start, "read from another node");
			rewrite(image, start, 7, round + time);
		}
		if (round == 3)
			collapse_all(start);
	}
	setting("/proc/sys/kernel/numa_balancing", "0");
	unmap(start, COUNT);
}

const struct test neighbour_tests[] = {
	{ "ksm", ksm, "in-place", MATRIX, "a KSM page with a matching PFN" },
	{ "swapped_out", swapped_out, "in-place", MATRIX, "swap has replaced the page of a slot" },
	{ "written_from_outside", written_from_outside, "reserve", QUICK,
	  "a fault on behalf of another mm" },
	{ "reached_from_outside", reached_from_outside, "sync-promotion", QUICK,
	  "promotion in the mm of another process" },
	{ "soft_offline", soft_offline, "in-place", QUICK,
	  "a replaced page in the middle of a block" },
	{ "poisoned_unused_page", poisoned_unused_page, "in-place", QUICK,
	  "hwpoison on an unused page" },
	{ "soft_dirty", soft_dirty, "in-place", QUICK, "promotion loses soft-dirty bits" },
	{ "compaction", compaction, "in-place", 0, "compaction migrates an unused reserved page" },
	{ "numa_balancing", numa_balancing, "in-place", 0, "an inaccessible PTE counts as empty" },
	{ 0 },
};
