/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of this directory share: how a test is declared and how it
 * fails, counters, contents of pages, and the settings of the kernel.
 *
 * Each test runs in a process of its own, and leaves nothing behind: when it
 * has ended, the counters must add up and no page may be reserved any more.
 */
#ifndef TESTS_H
#define TESTS_H

#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#define THP "/sys/kernel/mm/transparent_hugepage/"
#define KHUGEPAGED THP "khugepaged/"

/* ---- tests ---- */

/* Where a test needs more than an ordinary run of the program gives it. */
enum flags {
	/* Is worth repeating with other settings of reclaim: what --matrix runs. */
	MATRIX = 1,
	/* Runs on a kernel without reservations as well, and checks contents there. */
	ANY_KERNEL = 2,
	/* Takes a second or two even where everything is emulated: what --quick runs. */
	QUICK = 4,
};

struct test {
	const char *name;
	void (*run)(void);
	/* The stage of the series (its name in series.toml) that has what is tested. */
	const char *stage;
	unsigned int flags;
	/* What goes wrong where this test fails. */
	const char *mistake;
};

/* Each file's own tests; the last has no name. */
extern const struct test ground_tests[], release_tests[], promote_tests[], pressure_tests[],
	neighbour_tests[], stress_tests[], failing_tests[];

/* Say what is wrong, and go on: the test has failed. */
#define EXPECT(condition, ...)                                                 \
	({                                                                     \
		/* Before the text, which may have errno in it. */             \
		bool good_ = !!(condition);                                    \
		expect_at(good_, __FILE__, __LINE__, #condition, __VA_ARGS__); \
	})
/* As EXPECT, for what the rest of a test makes no sense without. */
#define REQUIRE(condition, ...)                      \
	do {                                         \
		if (!EXPECT(condition, __VA_ARGS__)) \
			test_end();                  \
	} while (0)
bool expect_at(bool good, const char *file, int line, const char *condition, const char *format,
	       ...) __attribute__((format(printf, 5, 6)));
/* A line for the reader, also where all is well. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* This kernel or machine has not what the test is about. */
_Noreturn void skip(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* End a process of a test: with failure where an expectation in it was not met. */
_Noreturn void test_end(void);
/* Whether an expectation was not met so far. */
bool reported(void);
/* Whether the kernel has this stage of the series. */
bool has_stage(const char *name);

/* A process of the test's own; it shall call test_end(). */
pid_t begin_child(void);
/* Wait for it; its failure is the test's. */
void end_child(pid_t child);
/* For children that were killed by intention. */
int end_of(pid_t child);

/* ---- counters ---- */

struct counters {
	long alloc, failed, mapped, released, filled, reserved, dumped, copied, collapsed;
};

/* Up to date on all CPUs. All zero on a kernel without reservations. */
struct counters counters(void);
/* later - earlier, field by field. */
struct counters since(struct counters earlier);
/* 512 * alloc = reserved + mapped + released + filled, as soon as nothing moves any more. */
void expect_identity(const char *when);
long reserved_on(int node);
/* vmstat(), with the counts of every CPU in it. */
long event_count(const char *name);

/* ---- memory ---- */

#define PAGE_OF(start, region, slot) ((start) + (region) * REGION + (slot) * PAGE)

/* Mapped, MADV_HUGEPAGE, aligned; with an inaccessible region behind it, so that mappings do not merge. */
char *regions(unsigned int count);
/* The same, each region with a reservation and its first page mapped; the threshold is 1 afterwards. */
char *reserved_regions(unsigned int count);
void unmap(char *start, unsigned int count);
/* A region's huge pages as smaps has them. */
unsigned int huge_regions(char *start, unsigned int count);
/* Physical page number; 0 where nothing is mapped. */
unsigned long pfn_of(const char *address);
int node_of(const char *address);
/* Whether each region is one aligned block in physical memory. */
bool contiguous(char *start, unsigned int count);

/*
 * What each page of some regions shall hold: 0 stands for zeros, 1..255 for
 * one of as many patterns, in which no byte says which page it is of.
 */
struct image {
	unsigned int count;
	unsigned char seed[];
};

struct image *image_of(unsigned int count);
struct image *image_copy(const struct image *image);
/* Write a pattern (not 0: that is memset) into a page, and note it. */
void put(struct image *image, char *start, unsigned int region, unsigned int slot,
	 unsigned char seed);
/* The seed of a page; 0 is never the result. */
unsigned char seed_of(unsigned int region, unsigned int slot, unsigned int round);
/* Compare every byte of every page. */
void expect_contents(const struct image *image, const char *start, const char *when);
unsigned int wrong_pages(const struct image *image, const char *start);
bool page_is(const char *page, unsigned char seed);
void page_fill(char *page, unsigned char seed);

/* ---- the kernel's settings ---- */

/* 0 or -errno. */
int try_write(const char *path, const char *text);
/* Fails the test where the kernel refuses. */
void setting(const char *path, const char *text);
long number_in(const char *path);
void threshold(int pages);
/* khugepaged scans all the time, or next to never. */
void scan_often(bool often);
/* Return when khugepaged has seen everything. */
void scans(void);
/* Give up all reservations, by debugfs where there is; most, by drop_caches. False where the kernel has neither. */
bool dump(void);
/* Move this process into a new memcg; kib 0: without a limit. */
void memcg_enter(const char *name, long kib);
void memcg_leave(const char *name);
long memcg_number(const char *name, const char *file);
/* A line of memory.stat or memory.events; -1 where there is none. */
long memcg_stat(const char *name, const char *file, const char *key);
/* Bind a mapping to a node, by mbind(2). */
void bind_to(char *start, size_t size, int node);
/* Nodes with memory. */
int node_count(void);
/* Swap on zram for as long as this test runs; skips where there is none. */
void swap_begin(unsigned int mib);
void swap_end(void);
bool swap_is_on(void);

#define ARRAY_SIZE(array) (sizeof(array) / sizeof(*(array)))

#endif
