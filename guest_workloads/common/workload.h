/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Common code of the workloads: options, results as JSON lines, clocks,
 * random numbers, NUMA nodes, statistics.
 *
 * A program is called with "--name value" options, including --seed and
 * --clock. It prints one JSON object per line; the last is {"end": "ok"}.
 * Without that line it has failed, whatever its exit status.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KIB 1024UL
#define MIB (1024UL * 1024)
#define PAGE 4096UL
/* The size that one PMD entry maps: that of a huge page, and of a region. */
#define REGION (2 * MIB)
#define PAGES_PER_REGION (REGION / PAGE)
#define NS_PER_S 1000000000ULL

/* ---- the program ---- */

/*
 * The first call of every program. Reads the options, and opens WORKLOAD_FIFO
 * to tell a waiting sampler that the workload runs, until this process and
 * its children have exited.
 */
void workload_begin(int argc, char **argv);
/* The last call: prints {"end": "ok"} and exits with 0. */
_Noreturn void workload_end(void);
/* Prints {"end": "error", "reason": ...} and exits with 1. `format` as printf(3), without quotes in the text. */
_Noreturn void workload_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define WORKLOAD_FIFO "/run/workload"

/* ---- options: all are mandatory, since the defaults are in the manifest ---- */

long option_integer(const char *name);
const char *option_text(const char *name);
/* Position of the option's value in the NULL-terminated list `choices`. */
int option_choice(const char *name, const char *const *choices);
/* Fails if an option was given that the program did not read. */
void options_done(void);

/* ---- results ---- */

void metric(const char *name, const char *unit, double value);
/* Like metric(), with %s in `format` for the name of the clock: "fault_%s.p50". */
void metric_clock(const char *format, double value);
/* Prints an event; `format` prints more members, e.g. "\"child\": %d", or is empty. */
void event(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- clocks ---- */

/* Calibrates ticks(), checks that --clock insns really counts instructions, and reports the result. */
void clock_begin(void);
/* Name of the unit: "insns" or "ns". */
const char *clock_name(void);
bool clock_counts_instructions(void);
/* The length of one tick in that unit. */
double clock_scale(void);
uint64_t monotonic_ns(void);

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	/* The fences keep the measured access between the two readings. */
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

/* ---- random numbers: a seed gives the same numbers on every machine ---- */

struct random {
	uint64_t state;
};

/* A generator for (seed, stream): streams of the same seed do not overlap in practice. */
struct random random_of(uint64_t seed, uint64_t stream);
uint64_t random_next(struct random *random);
/* Uniform from 0 to bound - 1, for bounds far below 2^32. */
static inline uint32_t random_below(struct random *random, uint32_t bound)
{
	return (random_next(random) >> 32) * bound >> 32;
}

/*
 * Distinct random pages of a region, drawn one by one: a Fisher-Yates shuffle.
 * It is never reset, since a shuffled deck is as good as a sorted one.
 */
struct deck {
	uint16_t card[PAGES_PER_REGION];
};

void deck_begin(struct deck *deck);
/* The n-th card (from 0) of a round, uniform among the cards that the round has not drawn yet. */
static inline uint32_t deck_draw(struct deck *deck, struct random *random, uint32_t n)
{
	uint32_t other = n + random_below(random, PAGES_PER_REGION - n);
	uint16_t drawn = deck->card[other];

	deck->card[other] = deck->card[n];
	deck->card[n] = drawn;
	return drawn;
}

/* ---- memory and CPUs ---- */

struct node {
	int id;
	cpu_set_t cpus;
	int cpu_count;
	unsigned long memory_kib;
};

#define MAX_NODES 64
/* Finds the nodes with memory and with CPUs that we may use. Returns their number; fails if there is none. */
int nodes_find(struct node nodes[MAX_NODES]);
/* Pins this thread to all CPUs of a node, so that memory which it touches first is from that node. */
void pin_to_node(const struct node *node);
void pin_to_cpu(int cpu);
/* Pins this thread to the n-th CPU, counting through all nodes and wrapping around. */
int cpu_of_nodes(const struct node *nodes, int count, int n);

/* The value of `key` (e.g. "MemAvailable:") in /proc/meminfo, in KiB. */
unsigned long meminfo_kib(const char *key);
/* All RAM of the machine in KiB, including memory that the kernel reserved. */
unsigned long installed_kib(void);
/* A counter of /proc/vmstat; -1 if this kernel does not have it. */
long vmstat(const char *name);
/* Several counters from a single reading. */
void vmstats(const char *const *names, long *values, int count);
/* Reports the memory of unused reserved pages; nothing on a kernel without reservations. */
void metric_reserved(const char *name);
/* Memory use of a process (0: this one) from /proc/PID/smaps_rollup; zeros if it has exited. */
struct rollup {
	unsigned long rss_kib;
	unsigned long anon_huge_kib;
};

struct rollup smaps_rollup(int pid);
/*
 * Bytes that page faults of this process have zeroed so far: its minor faults
 * times the size that each mapped. It is exact if all of them are first
 * writes to anonymous memory, and no other process faults in folios larger
 * than a base page meanwhile, since those are only counted globally.
 */
uint64_t zeroed_bytes(void);
/*
 * The number of instructions for zeroing this many bytes with icount: those
 * of the function with which Linux 6.12 clears a base page
 * (arch/x86/lib/clear_page_64.S). It depends on the CPU's features; QEMU
 * counts each iteration of rep.
 */
double zeroing_insns(uint64_t bytes);
/* Writes a short text to a file, e.g. in /proc; returns false on failure. */
bool write_text(const char *path, const char *text);
/* Free memory of a node in blocks of 2 MiB, each of which can become a huge page: orders 9 and above of /proc/buddyinfo. */
long free_blocks(int node);
/* A private anonymous mapping of `size` bytes, aligned to a region; NULL on failure. */
char *map_regions(size_t size);

/* Allocates this share of each node's memory, to shorten tests that fill it. Children do not inherit it. */
void hold_ballast(const struct node *nodes, int node_count, long percent);
/*
 * Returns when khugepaged has scanned everything that is mapped now; at once if huge pages are disabled and it does not
 * run. Fails if it does not finish.
 */
void khugepaged_wait(void);
/* The same in two steps, for a program that measures meanwhile; the first returns the argument of the second. */
pid_t khugepaged_wait_begin(void);
bool khugepaged_wait_over(pid_t child);
/* Number of ranges that khugepaged has collapsed so far; -1 if this kernel has no khugepaged. */
long khugepaged_collapses(void);
/* CPU time that khugepaged has used so far, in ns (with icount: instructions); 0 if it does not run. */
uint64_t khugepaged_ns(void);

enum advice { ADVICE_NONE, ADVICE_HUGEPAGE, ADVICE_NOHUGEPAGE };
extern const char *const advice_names[];
/* Applies the option --advice (none, hugepage, nohugepage) to a mapping. */
void advise(char *start, size_t size, int advice);

/* ---- statistics ---- */

/* Allocates and populates room for `count` values, without huge pages, so that storing values does not fault. */
uint64_t *values_of(size_t count);
/* Sorts. */
void sort_values(uint64_t *values, size_t count);
/* Quantile of sorted values by nearest rank, 0 < fraction <= 1. */
uint64_t percentile(const uint64_t *sorted, size_t count, double fraction);
double mean(const uint64_t *values, size_t count);
/* Prints a histogram of sorted ticks in the unit of the clock, with four buckets per octave. */
void histogram(const char *format, const uint64_t *sorted, size_t count);

#endif
