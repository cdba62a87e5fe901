/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the guest programs share: options, results as JSON lines, clocks,
 * random numbers, NUMA nodes, statistics.
 *
 * A program is called with "--name value" options, among them --seed and
 * --clock. It prints one JSON object a line; the last is {"end": "ok"}, and
 * without that line it has failed, whatever its exit status.
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
/* What one PMD maps: the size of a huge page, and of a region that is touched. */
#define REGION (2 * MIB)
#define PAGES_PER_REGION (REGION / PAGE)
#define NS_PER_S 1000000000ULL

/* ---- the program ---- */

/*
 * First call of every program. Reads the options, and tells a sampler that
 * waits on WORKLOAD_FIFO that the workload runs, until this process and its
 * children are gone.
 */
void workload_begin(int argc, char **argv);
/* Last call: prints {"end": "ok"} and exits with 0. */
_Noreturn void workload_end(void);
/* Prints {"end": "error", "reason": ...} and exits with 1. `format` as printf(3), without quotes in the text. */
_Noreturn void workload_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define WORKLOAD_FIFO "/run/workload"

/* ---- options: each must be given, as the manifest has the defaults ---- */

long option_integer(const char *name);
const char *option_text(const char *name);
/* Position of the option's value in the NULL-terminated list `choices`. */
int option_choice(const char *name, const char *const *choices);
/* Fails where an option was given that the program did not ask for. */
void options_done(void);

/* ---- results ---- */

void metric(const char *name, const char *unit, double value);
/* As metric(), with %s in `format` standing for the clock's name: "fault_%s.p50". */
void metric_clock(const char *format, double value);
/* One event; `format` prints the further members, e.g. "\"child\": %d", or is empty. */
void event(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- clocks ---- */

/* Calibrates ticks(), checks that --clock insns really counts instructions, and reports both. */
void clock_begin(void);
/* Name of the unit: "insns" or "ns". */
const char *clock_name(void);
bool clock_counts_instructions(void);
/* What one tick is in that unit. */
double clock_scale(void);
uint64_t monotonic_ns(void);

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	/* The fences keep the measured access between two readings. */
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

/* ---- random numbers: the same for a seed on every machine ---- */

struct random {
	uint64_t state;
};

/* A generator for (seed, stream): streams of one seed do not overlap in practice. */
struct random random_of(uint64_t seed, uint64_t stream);
uint64_t random_next(struct random *random);
/* Uniform in 0..bound-1, for bounds far below 2^32. */
static inline uint32_t random_below(struct random *random, uint32_t bound)
{
	return (random_next(random) >> 32) * bound >> 32;
}

/*
 * Distinct random pages of a region, drawn one by one: a Fisher-Yates shuffle
 * that is never undone, for a shuffled deck is as good as a new one.
 */
struct deck {
	uint16_t card[PAGES_PER_REGION];
};

void deck_begin(struct deck *deck);
/* The n-th card (from 0) of this round, uniform among those not drawn in it. */
static inline uint32_t deck_draw(struct deck *deck, struct random *random, uint32_t n)
{
	uint32_t other = n + random_below(random, PAGES_PER_REGION - n);
	uint16_t drawn = deck->card[other];

	deck->card[other] = deck->card[n];
	deck->card[n] = drawn;
	return drawn;
}

/* ---- memory and processors ---- */

struct node {
	int id;
	cpu_set_t cpus;
	int cpu_count;
	unsigned long memory_kib;
};

#define MAX_NODES 64
/* Nodes that have both CPUs we may use and memory; at least one, or it fails. Returns how many. */
int nodes_find(struct node nodes[MAX_NODES]);
/* Pin this thread to all CPUs of a node. Memory it touches first then comes from that node. */
void pin_to_node(const struct node *node);
void pin_to_cpu(int cpu);
/* The n-th CPU, counted through all nodes and around. */
int cpu_of_nodes(const struct node *nodes, int count, int n);

/* KiB behind `key` (e.g. "MemAvailable:") in /proc/meminfo. */
unsigned long meminfo_kib(const char *key);
/* All RAM of the machine in KiB, what the kernel took for itself included. */
unsigned long installed_kib(void);
/* A counter of /proc/vmstat, or -1 where this kernel has none of that name. */
long vmstat(const char *name);
/* Several of them, of one reading. */
void vmstats(const char *const *names, long *values, int count);
/* Reports the memory of unused pages that reservations hold now; nothing on a kernel without reservations. */
void metric_reserved(const char *name);
/* What /proc/PID/smaps_rollup says of a process (0: this one); zeros where it is gone. */
struct rollup {
	unsigned long rss_kib;
	unsigned long anon_huge_kib;
};

struct rollup smaps_rollup(int pid);
/*
 * Bytes that page faults of this process have zeroed, to be subtracted: its
 * minor faults by the size of what each mapped. Exact where all of them are
 * first writes to anonymous memory, and where no other process faults in
 * pages larger than a base page meanwhile, for those are counted in the
 * kernel as a whole.
 */
uint64_t zeroed_bytes(void);
/*
 * Instructions that zeroing so much takes under icount: those of the function
 * that Linux 6.12 clears a base page with (arch/x86/lib/clear_page_64.S),
 * chosen by the CPU's features; QEMU counts each iteration of rep.
 */
double zeroing_insns(uint64_t bytes);
/* Write a short text into a file, e.g. of /proc; false where that fails. */
bool write_text(const char *path, const char *text);
/* An anonymous private mapping of `size` bytes that begins at a region's boundary; NULL where refused. */
char *map_regions(size_t size);

/* Take that much of each node's memory away, so that what fills it is over sooner. Children do not inherit it. */
void hold_ballast(const struct node *nodes, int node_count, long percent);
/*
 * Return when khugepaged has looked at everything that is mapped now: at once where huge pages are off, so that it does
 * not run. Fails where it does not come round.
 */
void khugepaged_wait(void);
/* The same in two steps, for a program that looks meanwhile; the first returns what the second takes. */
pid_t khugepaged_wait_begin(void);
bool khugepaged_wait_over(pid_t child);
/* Ranges that khugepaged has made huge so far; -1 where this kernel has none. */
long khugepaged_collapses(void);
/* CPU time that khugepaged has used so far, in ns: under icount its instructions. 0 where this kernel has none. */
uint64_t khugepaged_ns(void);

enum advice { ADVICE_NONE, ADVICE_HUGEPAGE, ADVICE_NOHUGEPAGE };
extern const char *const advice_names[];
/* Apply the option --advice (none, hugepage, nohugepage) to a mapping. */
void advise(char *start, size_t size, int advice);

/* ---- statistics ---- */

/* Room for `count` values, there before it is needed and without huge pages, so that keeping them faults nowhere. */
uint64_t *values_of(size_t count);
/* Sorts. */
void sort_values(uint64_t *values, size_t count);
/* Nearest rank, 0 < fraction <= 1, of sorted values. */
uint64_t percentile(const uint64_t *sorted, size_t count, double fraction);
double mean(const uint64_t *values, size_t count);
/* Prints a log-spaced histogram, four buckets an octave, of sorted ticks in the clock's unit. */
void histogram(const char *format, const uint64_t *sorted, size_t count);

#endif
