// SPDX-License-Identifier: GPL-2.0-only
/* Counters, the knob, and what a first write does. */
#include "tests.h"

#include <pthread.h>
#include <sys/mount.h>

#define COUNT 8

static const char *const names[] = {
	"nr_thp_reserved", "thp_res_alloc",    "thp_res_alloc_failed",
	"thp_res_mapped",  "thp_res_released",
};

/* Names and values are in two tables, so a missing or extra name shifts all later ones. */
static void vmstat_names(void)
{
	long before, faults, pages_kib, free_kib;
	char *start;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		EXPECT(vmstat(names[i]) >= 0, "/proc/vmstat has no %s", names[i]);
	if (has_stage("pressure"))
		EXPECT(vmstat("thp_res_dump") >= 0, "/proc/vmstat has no thp_res_dump");
	if (has_stage("copy"))
		EXPECT(vmstat("thp_res_copy") >= 0, "/proc/vmstat has no thp_res_copy");
	if (has_stage("in-place"))
		EXPECT(vmstat("thp_res_filled") >= 0 && vmstat("thp_res_collapse") >= 0,
		       "/proc/vmstat lacks a counter of promotions");

	/* Node counters before and after the new one. */
	pages_kib = event_count("nr_anon_pages") * 4;
	EXPECT(labs(pages_kib - (long)meminfo_kib("AnonPages:")) < 4096,
	       "nr_anon_pages is %ld KiB, AnonPages %lu", pages_kib, meminfo_kib("AnonPages:"));
	free_kib = event_count("nr_free_pages") * 4;
	EXPECT(labs(free_kib - (long)meminfo_kib("MemFree:")) < 16384,
	       "nr_free_pages is %ld KiB, MemFree %lu", free_kib, meminfo_kib("MemFree:"));
	EXPECT(labs(event_count("nr_page_table_pages") * 4 - (long)meminfo_kib("PageTables:")) <
		       1024,
	       "nr_page_table_pages is not PageTables");
	EXPECT(event_count("nr_dirty_background_threshold") > 0 &&
		       event_count("nr_dirty_threshold") > 0,
	       "thresholds after the node counters do not match their names");

	/* The last counter: both tables have the same length. */
	if (!access("/sys/kernel/mm/ksm/run", F_OK))
		EXPECT(vmstat("cow_ksm") >= 0, "/proc/vmstat has no cow_ksm");

	/* Events before and after the new ones, whose number is known to the test. */
	threshold(1);
	before = event_count("thp_fault_alloc");
	faults = event_count("pgfault");
	start = regions(COUNT);
	for (unsigned int region = 0; region < COUNT; region++)
		*PAGE_OF(start, region, 1) = 1;
	EXPECT(event_count("thp_fault_alloc") - before == COUNT, "thp_fault_alloc: %ld of %d",
	       event_count("thp_fault_alloc") - before, COUNT);
	EXPECT(event_count("pgfault") - faults >= COUNT, "pgfault: %ld",
	       event_count("pgfault") - faults);
	before = event_count("thp_split_pmd");
	for (unsigned int region = 0; region < COUNT; region++)
		munmap(PAGE_OF(start, region, 7), PAGE);
	EXPECT(event_count("thp_split_pmd") - before == COUNT, "thp_split_pmd: %ld of %d",
	       event_count("thp_split_pmd") - before, COUNT);
	unmap(start, COUNT);
}

static void threshold_bounds(void)
{
	static const char *const wrong[] = {
		"0",   "513", "-1",	    "x",	  "",
		"1 2", "1x",  "4294967296", "4294967297", "99999999999999999999"
	};
	const char *path = THP "promotion_threshold";

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		int error = *wrong[i] ? try_write(path, wrong[i]) : try_write(path, "\n");

		/* Documentation/ABI/testing/sysfs-kernel-mm-transparent-hugepage knows no other error. */
		EXPECT(error == -EINVAL, "\"%s\" gives %s", wrong[i],
		       error ? strerror(-error) : "no error");
	}
	EXPECT(number_in(path) == 256, "a rejected value has changed it to %ld", number_in(path));
	for (int good = 1; good <= 512; good += 511) {
		threshold(good);
		EXPECT(number_in(path) == good, "%d reads back as %ld", good, number_in(path));
	}
}

/* At 1 the first write maps a huge page, as without the series. */
static void threshold_one(void)
{
	struct counters before = counters();
	char *start;

	threshold(1);
	start = regions(COUNT);
	for (unsigned int region = 0; region < COUNT; region++)
		*PAGE_OF(start, region, 3) = 1;
	EXPECT(!since(before).alloc && !since(before).reserved, "%ld reservations",
	       since(before).alloc);
	EXPECT(huge_regions(start, COUNT) == COUNT, "%u of %d regions are huge",
	       huge_regions(start, COUNT), COUNT);
	unmap(start, COUNT);
}

/* Pages that are handed out have old contents: see --prefill. */
static void zeroed_pages(void)
{
	struct image *image = image_of(COUNT);
	struct counters before = counters(), delta;
	char *start;

	threshold(512);
	start = regions(COUNT);
	for (unsigned int region = 0; region < COUNT; region++)
		*(volatile char *)PAGE_OF(start, region, 7 + region) = 0;
	delta = since(before);
	if (has_stage("reserve")) {
		EXPECT(delta.alloc == COUNT && !delta.failed, "%ld reservations, %ld failed",
		       delta.alloc, delta.failed);
		EXPECT(delta.mapped == COUNT && delta.reserved == COUNT * 511,
		       "mapped %ld, reserved %ld", delta.mapped, delta.reserved);
	}
	/* A byte of each page except for the last, so that no region is full. */
	for (unsigned int page = 0; page < COUNT * PAGES_PER_REGION; page++)
		if ((page + 1) % PAGES_PER_REGION)
			*(volatile char *)(start + page * PAGE + page % PAGE) = 0;
	expect_contents(image, start, "only zeros were written");
	if (has_stage("reserve")) {
		delta = since(before);
		EXPECT(delta.mapped == COUNT * 511 && delta.reserved == COUNT,
		       "mapped %ld, reserved %ld", delta.mapped, delta.reserved);
	}
	for (unsigned int page = 0; page < COUNT * PAGES_PER_REGION; page++)
		put(image, start, page / PAGES_PER_REGION, page % PAGES_PER_REGION,
		    seed_of(page / PAGES_PER_REGION, page % PAGES_PER_REGION, 0));
	expect_contents(image, start, "all pages written");
	unmap(start, COUNT);
}

/* One aligned block, with each page in its slot. */
static void own_place(void)
{
	struct image *image = image_of(COUNT);
	char *start;

	threshold(512);
	start = regions(COUNT);
	for (unsigned int page = 0; page < COUNT * PAGES_PER_REGION; page++) {
		/* Each page once, in a non-sequential order. */
		unsigned int other = page * 1201 % (COUNT * PAGES_PER_REGION);

		put(image, start, other / PAGES_PER_REGION, other % PAGES_PER_REGION,
		    seed_of(other, other, 1));
	}
	EXPECT(contiguous(start, COUNT), "a region is not one aligned block");
	expect_contents(image, start, "written in non-sequential order");
	unmap(start, COUNT);
}

/* With threshold 1 the code is not used. Test other thresholds, with contents, at the limit and above. */
static void thresholds(void)
{
	static const int values[] = { 2, 3, 17, 64, 255, 256, 257, 384, 511, 512 };

	/* Pages in the LRU batches of another CPU keep a range from being promoted on return to user space. */
	pin_to_cpu(0);
	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		struct image *image = image_of(1);
		struct counters before;
		char *start;

		threshold(values[i]);
		before = counters();
		start = regions(1);
		for (int slot = 0; slot < values[i] - 1; slot++)
			put(image, start, 0, slot, seed_of(0, slot, values[i]));
		EXPECT(since(before).alloc == 1 && since(before).mapped == values[i] - 1,
		       "threshold %d: alloc %ld, mapped %ld", values[i], since(before).alloc,
		       since(before).mapped);
		EXPECT(!huge_regions(start, 1), "threshold %d: huge after %d pages", values[i],
		       values[i] - 1);
		put(image, start, 0, values[i] - 1, seed_of(0, values[i] - 1, values[i]));
		if (has_stage("sync-promotion"))
			EXPECT(huge_regions(start, 1) == 1 && since(before).collapsed == 1,
			       "threshold %d: not promoted at the threshold", values[i]);
		else if (has_stage("in-place")) {
			scan_often(true);
			for (int tries = 0; tries < 10 && !huge_regions(start, 1); tries++)
				scans();
			scan_often(false);
			EXPECT(huge_regions(start, 1) == 1,
			       "threshold %d: khugepaged did not promote", values[i]);
		}
		expect_contents(image, start, "after the threshold was reached");
		unmap(start, 1);
		free(image);
	}
}

/* A read of the zero page reserves nothing; the first write after it does. */
static void read_then_write(void)
{
	struct image *image = image_of(COUNT);
	struct counters before = counters(), delta;
	char *start;

	start = regions(COUNT);
	expect_contents(image, start, "read only");
	EXPECT(!since(before).alloc && !since(before).reserved, "reads made %ld reservations",
	       since(before).alloc);
	for (unsigned int region = 0; region < COUNT; region++)
		put(image, start, region, 5, seed_of(region, 5, 0));
	delta = since(before);
	if (has_stage("zero-page"))
		EXPECT(delta.alloc == COUNT && delta.mapped == COUNT, "alloc %ld, mapped %ld",
		       delta.alloc, delta.mapped);
	expect_contents(image, start, "read all, write one");
	unmap(start, COUNT);

	/* Zero pages of 4 KiB. */
	setting(THP "use_zero_page", "0");
	memset(image->seed, 0, COUNT * PAGES_PER_REGION);
	start = regions(COUNT);
	expect_contents(image, start, "small zero pages");
	before = counters();
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 1; slot < 30; slot += 3)
			put(image, start, region, slot, seed_of(region, slot, 1));
	if (has_stage("zero-page"))
		EXPECT(since(before).alloc == COUNT && since(before).mapped == COUNT * 10,
		       "alloc %ld, mapped %ld", since(before).alloc, since(before).mapped);
	expect_contents(image, start, "read all, write some");
	unmap(start, COUNT);
}

/* Over existing pages, a reservation would contain a second page for the same address. */
static void not_over_pages(void)
{
	struct image *image = image_of(COUNT);
	struct counters before;
	char *start = regions(COUNT);

	huge_pages(false);
	for (unsigned int region = 0; region < COUNT; region++)
		put(image, start, region, region, seed_of(region, region, 0));
	expect_contents(image, start, "one page each, the others read");
	huge_pages(true);
	before = counters();
	for (unsigned int region = 0; region < COUNT; region++)
		for (unsigned int slot = 0; slot < 100; slot++)
			put(image, start, region, slot, seed_of(region, slot, 1));
	EXPECT(!since(before).alloc, "%ld reservations over existing pages", since(before).alloc);
	expect_contents(image, start, "written");
	unmap(start, COUNT);
}

/* Threads write to the same page at the same time: if two of them get a page, a byte is lost. */
#define THREADS 8
#define ROUNDS 12

static char *raced;
static unsigned int race_regions;
static pthread_barrier_t barrier;

static void *racer(void *argument)
{
	long me = (long)argument;

	for (unsigned int region = 0; region < race_regions; region++) {
		pthread_barrier_wait(&barrier);
		for (unsigned int k = 0; k < PAGES_PER_REGION; k++) {
			unsigned int slot = me % 2 ? PAGES_PER_REGION - 1 - k : k;

			PAGE_OF(raced, region, slot)[me] = me + 1;
		}
	}
	return NULL;
}

static void same_page_threads(void)
{
	pthread_t threads[THREADS];
	struct counters before;
	unsigned int lost = 0;

	race_regions = ROUNDS;
	threshold(512);
	before = counters();
	raced = regions(race_regions);
	pthread_barrier_init(&barrier, NULL, THREADS);
	for (long i = 0; i < THREADS; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, racer, (void *)i), "pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int page = 0; page < race_regions * PAGES_PER_REGION; page++) {
		const char *at = raced + page * PAGE;

		for (int i = 0; i < THREADS; i++)
			lost += at[i] != i + 1;
		for (unsigned int byte = THREADS; byte < PAGE; byte++)
			lost += at[byte] != 0;
	}
	EXPECT(!lost, "%u bytes are lost or not zero", lost);
	if (has_stage("reserve"))
		EXPECT(since(before).alloc == race_regions, "%ld reservations for %u regions",
		       since(before).alloc, race_regions);
	unmap(raced, race_regions);
}

/* MemAvailable includes reserved pages. */
static void memory_available(void)
{
	long before, after;
	char *start;

	threshold(512);
	before = meminfo_kib("MemAvailable:");
	start = regions(64);
	for (unsigned int region = 0; region < 64; region++)
		*PAGE_OF(start, region, 0) = 1;
	after = meminfo_kib("MemAvailable:");
	EXPECT(before - after < 64 * 2048 / 8,
	       "64 regions with one page each have reduced MemAvailable by %ld KiB",
	       before - after);
	unmap(start, 64);
}

const struct test ground_tests[] = {
	{ "vmstat_names", vmstat_names, "counters", QUICK, "misaligned name table" },
	{ "threshold_bounds", threshold_bounds, "threshold-knob", QUICK,
	  "a value outside of 1..512 is accepted" },
	{ "threshold_one", threshold_one, "threshold-knob", QUICK,
	  "threshold 1 differs from the baseline" },
	{ "zeroed_pages", zeroed_pages, "reserve", QUICK | ANY_KERNEL, "unzeroed page" },
	{ "own_place", own_place, "reserve", QUICK,
	  "a page that is not from its slot in the block" },
	{ "same_page_threads", same_page_threads, "reserve", QUICK | ANY_KERNEL | MATRIX,
	  "page handed out twice" },
	{ "memory_available", memory_available, "reserve", QUICK,
	  "MemAvailable does not include reserved pages" },
	{ "read_then_write", read_then_write, "zero-page", QUICK | ANY_KERNEL,
	  "a read makes a reservation" },
	{ "not_over_pages", not_over_pages, "zero-page", QUICK | ANY_KERNEL,
	  "a reservation over existing pages" },
	{ "thresholds", thresholds, "copy", 0, "a threshold other than the default is off by one" },
	{ 0 },
};
