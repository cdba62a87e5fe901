/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Common code of the tests in this directory: declaration and failure of
 * tests, counters, contents of pages, and settings of the kernel.
 *
 * Each test runs in a separate process and cleans up: when it has exited, the
 * counters must add up, and no page may be reserved.
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

/* When a test runs. */
enum flags {
	/* Runs with --matrix: depends on the settings of reclaim. */
	MATRIX = 1,
	/* Also runs on kernels without reservations, and checks contents there. */
	ANY_KERNEL = 2,
	/* Runs with --quick: takes a second or two even with emulation. */
	QUICK = 4,
	/* Runs with --races only: needs a debugger that holds tasks. */
	ORDERED = 8,
};

struct test {
	const char *name;
	void (*run)(void);
	/* The stage of the series (its name in series.toml) that adds what is tested. */
	const char *stage;
	unsigned int flags;
	/* The bug that makes this test fail. */
	const char *mistake;
};

/* The tests of each file; the last entry has no name. */
extern const struct test ground_tests[], release_tests[], promote_tests[], pressure_tests[],
	neighbour_tests[], stress_tests[], failing_tests[], aftermath_tests[], race_tests[];
/* Rounds of each race without a debugger; 0 for one with it. */
extern unsigned int unguided;

/* Report a failure and continue the test. */
#define EXPECT(condition, ...)                                                 \
	({                                                                     \
		/* Before the text, which may have errno in it. */             \
		bool good_ = !!(condition);                                    \
		expect_at(good_, __FILE__, __LINE__, #condition, __VA_ARGS__); \
	})
/* Like EXPECT, but end the test on failure. */
#define REQUIRE(condition, ...)                      \
	do {                                         \
		if (!EXPECT(condition, __VA_ARGS__)) \
			test_end();                  \
	} while (0)
bool expect_at(bool good, const char *file, int line, const char *condition, const char *format,
	       ...) __attribute__((format(printf, 5, 6)));
/* Print a diagnostic line. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Skip the test: this kernel or machine lacks something that it needs. */
_Noreturn void skip(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* End a process of a test, with failure if an expectation in it was not met. */
_Noreturn void test_end(void);
/* Whether an expectation was not met so far. */
bool reported(void);
/* The hostile stress, with results as KTAP. Returns the number of failures. */
int hostile(unsigned int seconds, uint64_t seed);
/* Whether the kernel has this stage of the series. */
bool has_stage(const char *name);

/* Fork a process of the test, which must call test_end(). */
pid_t begin_child(void);
/* Wait for it; if it fails, the test fails. */
void end_child(pid_t child);
/* The same for children that were killed intentionally. */
int end_of(pid_t child);

/* ---- counters ---- */

struct counters {
	long alloc, failed, mapped, released, filled, reserved, dumped, copied, collapsed;
};

/* Up to date on all CPUs. All zero on a kernel without reservations. */
struct counters counters(void);
/* later - earlier, field by field. */
struct counters since(struct counters earlier);
/* Check that 512 * alloc = reserved + mapped + released + filled, once the system is idle. */
void expect_identity(const char *when);
long reserved_on(int node);
/* vmstat(), including per-CPU counters. */
long event_count(const char *name);

/* ---- memory ---- */

#define PAGE_OF(start, region, slot) ((start) + (region) * REGION + (slot) * PAGE)

/* An aligned mapping, followed by an inaccessible region, so that mappings do not merge. */
char *regions(unsigned int count);
/* The same, with a reservation and the first page mapped in each region; the threshold is 1 afterwards. */
char *reserved_regions(unsigned int count);
void unmap(char *start, unsigned int count);
/* The number of huge pages according to smaps. */
unsigned int huge_regions(char *start, unsigned int count);
/* The PFN of a page; 0 if nothing is mapped. */
unsigned long pfn_of(const char *address);
int node_of(const char *address);
/* Whether each region is one aligned block in physical memory. */
bool contiguous(char *start, unsigned int count);

/*
 * The expected contents of each page of some regions: 0 stands for zeros,
 * 1..255 for one of 255 patterns, which do not depend on the page.
 */
struct image {
	unsigned int count;
	unsigned char seed[];
};

struct image *image_of(unsigned int count);
struct image *image_copy(const struct image *image);
/* Write a pattern (not 0: use memset) to a page, and record it. */
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
/* Fails the test if the kernel rejects the value. */
void setting(const char *path, const char *text);
long number_in(const char *path);
/* Whether this process, and children that it starts later, may have huge pages and reservations: PR_SET_THP_DISABLE. */
void huge_pages(bool allowed);
void threshold(int pages);
/* Let khugepaged scan all the time, or almost never. */
void scan_often(bool often);
/* Return when khugepaged has scanned everything. */
void scans(void);
/* Give up all reservations with debugfs, else most with drop_caches. Returns false if the kernel supports neither. */
bool dump(void);
/* Move this process to a new memcg; kib 0: without a limit. */
void memcg_enter(const char *name, long kib);
void memcg_leave(const char *name);
long memcg_number(const char *name, const char *file);
/* A line of memory.stat or memory.events; -1 if there is none. */
long memcg_stat(const char *name, const char *file, const char *key);
/* Bind a mapping to a node, by mbind(2). */
void bind_to(char *start, size_t size, int node);
/* Nodes with memory. */
int node_count(void);
/* Swap on zram for as long as this test runs; skips where there is none. */
void swap_begin(unsigned int mib);
void swap_end(void);
/* Disable this swap. 0 or -errno: there may be no memory for what is swapped out. */
int try_swap_end(void);
bool swap_is_on(void);

#define ARRAY_SIZE(array) (sizeof(array) / sizeof(*(array)))

#endif
