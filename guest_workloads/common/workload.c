// SPDX-License-Identifier: GPL-2.0-only
#include "workload.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- options ---- */

#define MAX_OPTIONS 32

static struct {
	const char *name, *value;
	bool used;
} options[MAX_OPTIONS];
static int option_count;

void workload_begin(int argc, char **argv)
{
	/* Line buffering even for a pipe: the lines before a crash are not lost. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i += 2) {
		if (strncmp(argv[i], "--", 2) || i + 1 == argc || option_count == MAX_OPTIONS)
			workload_fail("%s is not an option with a value", argv[i]);
		options[option_count].name = argv[i] + 2;
		options[option_count++].value = argv[i + 1];
	}
	/* Held open until we end. Without a sampler the FIFO does not exist, or has no reader. */
	int fifo = open(WORKLOAD_FIFO, O_WRONLY | O_NONBLOCK);

	if (fifo >= 0 && write(fifo, "", 1) != 1)
		workload_fail("cannot wake the sampler: %s", strerror(errno));
}

const char *option_text(const char *name)
{
	for (int i = 0; i < option_count; i++) {
		if (!strcmp(options[i].name, name)) {
			options[i].used = true;
			return options[i].value;
		}
	}
	workload_fail("the option --%s is missing", name);
}

long option_integer(const char *name)
{
	const char *text = option_text(name);
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno || end == text || *end)
		workload_fail("--%s %s is not an integer", name, text);
	return value;
}

int option_choice(const char *name, const char *const *choices)
{
	const char *text = option_text(name);

	for (int i = 0; choices[i]; i++)
		if (!strcmp(choices[i], text))
			return i;
	workload_fail("--%s %s is not one of its choices", name, text);
}

void options_done(void)
{
	for (int i = 0; i < option_count; i++)
		if (!options[i].used)
			workload_fail("there is no option --%s", options[i].name);
}

/* ---- results ---- */

void workload_end(void)
{
	printf("{\"end\": \"ok\"}\n");
	exit(fflush(stdout) ? 1 : 0);
}

void workload_fail(const char *format, ...)
{
	va_list arguments;

	printf("{\"end\": \"error\", \"reason\": \"");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\"}\n");
	exit(1);
}

void metric(const char *name, const char *unit, double value)
{
	/* Integers up to 2^53 are printed as integers. */
	printf("{\"metric\": \"%s\", \"unit\": \"%s\", \"value\": %.15g}\n", name, unit, value);
}

void metric_clock(const char *format, double value)
{
	printf("{\"metric\": \"");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	printf(format, clock_name());
#pragma GCC diagnostic pop
	printf("\", \"unit\": \"%s\", \"value\": %.15g}\n", clock_name(), value);
}

void event(const char *name, const char *format, ...)
{
	va_list arguments;

	printf("{\"event\": \"%s\", \"monotonic_ns\": %llu", name,
	       (unsigned long long)monotonic_ns());
	if (*format) {
		printf(", ");
		va_start(arguments, format);
		vprintf(format, arguments);
		va_end(arguments);
	}
	printf("}\n");
}

/* ---- clocks ---- */

#define LOOP_ROUNDS 1000000UL
#define LOOP_INSTRUCTIONS (2 * LOOP_ROUNDS)
#define CALIBRATION_NS 20000000ULL
#define CALIBRATION_ATTEMPTS 256

static enum { INSNS, NS } clock_kind;
static double scale = 1;

uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void loop(void)
{
	unsigned long rounds = LOOP_ROUNDS;

	__asm__ volatile("1: dec %0; jnz 1b" : "+r"(rounds)::"cc");
}

void clock_begin(void)
{
	static const char *const names[] = { "insns", "ns", NULL };
	uint64_t began_ns, began, took, loop_ticks;
	double rate;

	clock_kind = option_choice("clock", names);
	/*
	 * All CPUs share the clock of -icount, so another busy CPU, for
	 * example while the guest is still booting, makes the loop seem
	 * longer. The shortest of many loops has the true length.
	 */
	loop();
	loop_ticks = UINT64_MAX;
	for (int attempt = 0;
	     attempt < CALIBRATION_ATTEMPTS && loop_ticks > LOOP_INSTRUCTIONS * 5 / 4; attempt++) {
		began = ticks();
		loop();
		took = ticks() - began;
		loop_ticks = took < loop_ticks ? took : loop_ticks;
	}

	began_ns = monotonic_ns();
	began = ticks();
	while (monotonic_ns() - began_ns < CALIBRATION_NS)
		;
	took = ticks() - began;
	rate = (double)took / (monotonic_ns() - began_ns);
	event("clock", "\"clock\": \"%s\", \"ticks_per_ns\": %.6f, \"ticks_per_instruction\": %.6f",
	      clock_name(), rate, (double)loop_ticks / LOOP_INSTRUCTIONS);
	if (clock_kind == NS) {
		scale = 1 / rate;
		return;
	}
	/*
	 * With QEMU's -icount shift=0 the TSC advances by one per instruction
	 * (softmmu/icount.c, icount_get()), and the clock by one nanosecond.
	 * The timer interrupt may have run even in the shortest loop.
	 */
	if (loop_ticks < LOOP_INSTRUCTIONS ||
	    loop_ticks > LOOP_INSTRUCTIONS + LOOP_INSTRUCTIONS / 4 || fabs(rate - 1) > 0.01)
		workload_fail(
			"--clock insns, but %lu instructions took %llu ticks, with %.3f ticks per nanosecond: "
			"this guest does not run under icount",
			LOOP_INSTRUCTIONS, (unsigned long long)loop_ticks, rate);
}

const char *clock_name(void)
{
	return clock_kind == INSNS ? "insns" : "ns";
}

bool clock_counts_instructions(void)
{
	return clock_kind == INSNS;
}

double clock_scale(void)
{
	return scale;
}

/* ---- random numbers ---- */

/* splitmix64: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014. */
uint64_t random_next(struct random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

struct random random_of(uint64_t seed, uint64_t stream)
{
	struct random random = { seed };

	random.state = random_next(&random) ^ (stream + 1) * 0xd1342543de82ef95ULL;
	random_next(&random);
	return random;
}

void deck_begin(struct deck *deck)
{
	for (unsigned int i = 0; i < PAGES_PER_REGION; i++)
		deck->card[i] = i;
}

/* ---- memory and CPUs ---- */

/* Read a small file. Returns its length, or -1. */
static long file_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t got;

	if (fd < 0)
		return -1;
	while (length < size - 1 && (got = read(fd, text + length, size - 1 - length)) > 0)
		length += got;
	text[length] = 0;
	close(fd);
	return length;
}

/* The number after `key` at the start of a line; -1 if no line starts with it. */
static long number_after(const char *text, const char *key)
{
	size_t length = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, length) && isspace((unsigned char)line[length]))
			return strtol(line + length, NULL, 10);
	}
	return -1;
}

unsigned long meminfo_kib(const char *key)
{
	static int fd = -1;
	char text[8192];
	ssize_t length;
	long value;

	/* Kept open, since it is read between children when memory is short. */
	if (fd < 0)
		fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	length = pread(fd, text, sizeof(text) - 1, 0);
	text[length > 0 ? length : 0] = 0;
	value = number_after(text, key);
	if (value < 0)
		workload_fail("/proc/meminfo has no %s", key);
	return value;
}

unsigned long installed_kib(void)
{
	unsigned long long bytes = 0;
	FILE *map = fopen("/proc/iomem", "re");
	char line[256];

	/* Not MemTotal: a kernel that uses more memory for itself would change the parameters of the test. */
	while (map && fgets(line, sizeof(line), map)) {
		unsigned long long begin, end;
		int name = 0;

		if (*line != ' ' && sscanf(line, "%llx-%llx : %n", &begin, &end, &name) == 2 &&
		    end > begin && !strcmp(line + name, "System RAM\n"))
			bytes += end - begin + 1;
	}
	if (map)
		fclose(map);
	return bytes ? bytes / KIB : meminfo_kib("MemTotal:");
}

void vmstats(const char *const *names, long *values, int count)
{
	static char text[32768];
	bool there = file_text("/proc/vmstat", text, sizeof(text)) >= 0;

	for (int i = 0; i < count; i++)
		values[i] = there ? number_after(text, names[i]) : -1;
}

long vmstat(const char *name)
{
	long value;

	vmstats(&name, &value, 1);
	return value;
}

void metric_reserved(const char *name)
{
	long pages;

	/* Fold per-CPU counters first (Documentation/admin-guide/sysctl/vm.rst, stat_refresh). */
	write_text("/proc/sys/vm/stat_refresh", "1");
	pages = vmstat("nr_thp_reserved");
	if (pages >= 0)
		metric(name, "KiB", pages * (PAGE / KIB));
}

struct rollup smaps_rollup(int pid)
{
	struct rollup rollup = { 0 };
	char path[64], text[4096];
	long value;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	else
		snprintf(path, sizeof(path), "/proc/self/smaps_rollup");
	if (file_text(path, text, sizeof(text)) < 0)
		return rollup;
	value = number_after(text, "Rss:");
	rollup.rss_kib = value > 0 ? value : 0;
	value = number_after(text, "AnonHugePages:");
	rollup.anon_huge_kib = value > 0 ? value : 0;
	return rollup;
}

/* Number of faults on the whole machine that mapped folios larger than a base page, and the size of these in bytes. */
static void large_faults(uint64_t *count, uint64_t *bytes)
{
	const char *const counters =
		"/sys/kernel/mm/transparent_hugepage/hugepages-*kB/stats/anon_fault_alloc";
	glob_t found;
	long huge;

	*count = *bytes = 0;
	/* Since Linux 6.10 there is a counter per size. */
	if (!glob(counters, 0, NULL, &found)) {
		for (size_t i = 0; i < found.gl_pathc; i++) {
			FILE *file = fopen(found.gl_pathv[i], "r");
			unsigned long faults = 0, kib = 0;

			if (!file || fscanf(file, "%lu", &faults) != 1 ||
			    sscanf(strstr(found.gl_pathv[i], "hugepages-"), "hugepages-%lukB",
				   &kib) != 1)
				workload_fail("cannot read %s", found.gl_pathv[i]);
			fclose(file);
			*count += faults;
			*bytes += faults * kib * KIB;
		}
		globfree(&found);
		return;
	}
	huge = vmstat("thp_fault_alloc");
	if (huge > 0) {
		*count = huge;
		*bytes = huge * REGION;
	}
}

uint64_t zeroed_bytes(void)
{
	struct rusage usage;
	uint64_t count, bytes;

	large_faults(&count, &bytes);
	getrusage(RUSAGE_SELF, &usage);
	return (usage.ru_minflt - count) * PAGE + bytes;
}

double zeroing_insns(uint64_t bytes)
{
	/* Per clearing function of the kernel: instructions outside of the loop, and in the loop. */
	enum { ERMS = 3 + 4096, REP_GOOD = 3 + 512, ORIG = 4 + 64 * 11 };
	FILE *file = fopen("/proc/cpuinfo", "r");
	char *line = NULL;
	size_t size = 0;
	int per_page = ORIG;

	if (!file)
		workload_fail("cannot read /proc/cpuinfo");
	while (getline(&line, &size, file) > 0) {
		if (strncmp(line, "flags", 5))
			continue;
		line[strcspn(line, "\n")] = ' ';
		if (strstr(line, " erms "))
			per_page = ERMS;
		else if (strstr(line, " rep_good "))
			per_page = REP_GOOD;
		break;
	}
	free(line);
	fclose(file);
	return (double)bytes / PAGE * per_page;
}

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written;

	if (fd < 0)
		return false;
	written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return written;
}

/* CPUs in a list such as "0-2,5" that are also in `allowed`. */
static cpu_set_t cpus_of(const char *list, const cpu_set_t *allowed)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	while (isdigit((unsigned char)*list)) {
		char *end;
		long first = strtol(list, &end, 10), last = first;

		if (*end == '-')
			last = strtol(end + 1, &end, 10);
		for (long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, allowed))
				CPU_SET(cpu, &cpus);
		list = end + (*end == ',');
	}
	return cpus;
}

static int by_id(const void *a, const void *b)
{
	return ((const struct node *)a)->id - ((const struct node *)b)->id;
}

int nodes_find(struct node nodes[MAX_NODES])
{
	char path[128], text[8192];
	cpu_set_t allowed;
	glob_t found;
	int count = 0;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		workload_fail("cannot read the allowed CPUs: %s", strerror(errno));
	if (!glob("/sys/devices/system/node/node[0-9]*", 0, NULL, &found)) {
		for (size_t i = 0; i < found.gl_pathc && count < MAX_NODES; i++) {
			struct node *node = &nodes[count];
			const char *total;

			snprintf(path, sizeof(path), "%s/cpulist", found.gl_pathv[i]);
			if (file_text(path, text, sizeof(text)) < 0)
				continue;
			node->cpus = cpus_of(text, &allowed);
			node->cpu_count = CPU_COUNT(&node->cpus);
			snprintf(path, sizeof(path), "%s/meminfo", found.gl_pathv[i]);
			if (file_text(path, text, sizeof(text)) < 0)
				continue;
			total = strstr(text, "MemTotal:");
			node->memory_kib = total ? strtoul(total + strlen("MemTotal:"), NULL, 10) :
						   0;
			node->id = atoi(strstr(found.gl_pathv[i], "/node/node") +
					strlen("/node/node"));
			if (node->cpu_count && node->memory_kib)
				count++;
		}
		globfree(&found);
		qsort(nodes, count, sizeof(*nodes), by_id);
	} else {
		/* A kernel without NUMA has no such directory. */
		nodes[count].id = 0;
		nodes[count].cpus = allowed;
		nodes[count].cpu_count = CPU_COUNT(&allowed);
		nodes[count++].memory_kib = meminfo_kib("MemTotal:");
	}
	if (!count)
		workload_fail("no node has both CPUs and memory");
	return count;
}

void pin_to_node(const struct node *node)
{
	if (sched_setaffinity(0, sizeof(node->cpus), &node->cpus) < 0)
		workload_fail("cannot run on node %d: %s", node->id, strerror(errno));
}

void pin_to_cpu(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) < 0)
		workload_fail("cannot run on CPU %d: %s", cpu, strerror(errno));
}

int cpu_of_nodes(const struct node *nodes, int count, int n)
{
	int total = 0;

	for (int i = 0; i < count; i++)
		total += nodes[i].cpu_count;
	n %= total;
	for (int i = 0; i < count; i++) {
		for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, &nodes[i].cpus) && !n--)
				return cpu;
	}
	workload_fail("a CPU was taken offline");
}

long free_blocks(int node)
{
	static const int order_of_region = 9;
	FILE *file = fopen("/proc/buddyinfo", "re");
	char line[512];
	long blocks = 0;

	if (!file)
		workload_fail("cannot read /proc/buddyinfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		int of, used = 0, order = 0;

		if (sscanf(line, "Node %d, zone %*s%n", &of, &used) != 1 || !used || of != node)
			continue;
		/* A number per order, from 0. */
		for (char *at = line + used, *end;; at = end, order++) {
			long count = strtol(at, &end, 10);

			if (end == at)
				break;
			if (order >= order_of_region)
				blocks += count << (order - order_of_region);
		}
	}
	fclose(file);
	return blocks;
}

char *map_regions(size_t size)
{
	char *start = mmap(NULL, size + REGION, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (start == MAP_FAILED)
		return NULL;
	/* Unmap both ends, so that the mapping consists of whole regions. */
	before = (REGION - (uintptr_t)start % REGION) % REGION;
	if (before)
		munmap(start, before);
	if (REGION - before)
		munmap(start + before + size, REGION - before);
	return start + before;
}

void hold_ballast(const struct node *nodes, int node_count, long percent)
{
	cpu_set_t before;

	sched_getaffinity(0, sizeof(before), &before);
	for (int n = 0; percent && n < node_count; n++) {
		size_t size = nodes[n].memory_kib / 100 * percent * KIB / REGION * REGION;
		char *ballast;

		pin_to_node(&nodes[n]);
		ballast = map_regions(size);
		if (!ballast)
			workload_fail("cannot map a ballast of %zu bytes: %s", size,
				      strerror(errno));
		(void)madvise(ballast, size, MADV_HUGEPAGE);
		for (size_t at = 0; at < size; at += PAGE)
			*(volatile char *)(ballast + at) = 1;
		/* Children must not inherit it: the test should not measure copying its page tables. */
		(void)madvise(ballast, size, MADV_DONTFORK);
	}
	sched_setaffinity(0, sizeof(before), &before);
}

const char *const advice_names[] = { "none", "hugepage", "nohugepage", NULL };

void advise(char *start, size_t size, int advice)
{
	static const int numbers[] = { [ADVICE_HUGEPAGE] = MADV_HUGEPAGE,
				       [ADVICE_NOHUGEPAGE] = MADV_NOHUGEPAGE };

	/* A kernel without huge pages returns EINVAL for both, which is not an error. */
	if (advice != ADVICE_NONE && madvise(start, size, numbers[advice]) < 0 &&
	    !(advice == ADVICE_NOHUGEPAGE && errno == EINVAL))
		workload_fail("madvise %s: %s", advice_names[advice], strerror(errno));
}

/* ---- khugepaged ---- */

/* The PID of khugepaged, which only exists while PMD-sized huge pages are enabled; else 0. */
static pid_t khugepaged_pid(void)
{
	static pid_t pid;
	glob_t found;

	if (!pid && !glob("/proc/[0-9]*/comm", 0, NULL, &found)) {
		for (size_t i = 0; i < found.gl_pathc && !pid; i++) {
			char name[32];

			if (file_text(found.gl_pathv[i], name, sizeof(name)) > 0 &&
			    !strcmp(name, "khugepaged\n"))
				pid = atoi(found.gl_pathv[i] + strlen("/proc/"));
		}
		globfree(&found);
	}
	return pid;
}

pid_t khugepaged_wait_begin(void)
{
	/* A program of the guest image. A few guest seconds are plenty for two scans. */
	static char *const argv[] = { "khugepaged-barrier", "2", "600000", NULL };
	char enabled[64];
	pid_t child;

	if (!khugepaged_pid() &&
	    file_text("/sys/kernel/mm/transparent_hugepage/enabled", enabled, sizeof(enabled)) >
		    0 &&
	    strstr(enabled, "[never]"))
		return 0;
	fflush(stdout);
	child = vfork();
	if (!child) {
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execvp(argv[0], argv);
		_exit(127);
	}
	if (child < 0)
		workload_fail("cannot start %s: %s", argv[0], strerror(errno));
	return child;
}

/* Whether the waiting program has ended; `options` are those of waitpid(2). */
static bool wait_over(pid_t child, int options)
{
	int status;
	pid_t ended;

	if (!child)
		return true;
	ended = waitpid(child, &status, options);
	if (!ended)
		return false;
	if (ended != child || !WIFEXITED(status) || WEXITSTATUS(status))
		workload_fail("khugepaged did not finish its scans, or does not run");
	return true;
}

bool khugepaged_wait_over(pid_t child)
{
	return wait_over(child, WNOHANG);
}

void khugepaged_wait(void)
{
	wait_over(khugepaged_wait_begin(), 0);
}

long khugepaged_collapses(void)
{
	char text[32];

	return file_text("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed", text,
			 sizeof(text)) > 0 ?
		       atol(text) :
		       -1;
}

uint64_t khugepaged_ns(void)
{
	pid_t pid = khugepaged_pid();
	struct timespec time;
	clockid_t clock;

	if (!pid || clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &time))
		return 0;
	return time.tv_sec * NS_PER_S + time.tv_nsec;
}

/* ---- statistics ---- */

uint64_t *values_of(size_t count)
{
	size_t size = (count + 1) * sizeof(uint64_t);
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		workload_fail("no memory for the results: %s", strerror(errno));
	/* Not every kernel has huge pages. */
	(void)madvise(memory, size, MADV_NOHUGEPAGE);
	memset(memory, 1, size);
	return memory;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

void sort_values(uint64_t *values, size_t count)
{
	qsort(values, count, sizeof(*values), by_value);
}

uint64_t percentile(const uint64_t *sorted, size_t count, double fraction)
{
	size_t rank = ceil(fraction * count);

	return count ? sorted[rank ? rank - 1 : 0] : 0;
}

double mean(const uint64_t *values, size_t count)
{
	double sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += values[i];
	return count ? sum / count : 0;
}

#define BUCKETS_PER_OCTAVE 4

void histogram(const char *format, const uint64_t *sorted, size_t count)
{
	bool first = true;

	printf("{\"histogram\": \"");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	printf(format, clock_name());
#pragma GCC diagnostic pop
	printf("\", \"unit\": \"%s\", \"buckets\": [", clock_name());
	for (size_t i = 0; i < count;) {
		double value = fmax(sorted[i] * scale, 1);
		double step = floor(log2(value) * BUCKETS_PER_OCTAVE);
		double low = exp2(step / BUCKETS_PER_OCTAVE),
		       high = exp2((step + 1) / BUCKETS_PER_OCTAVE);
		size_t begin = i++;

		/* The first value always belongs to the bucket, even if rounding moved its bound. */
		while (i < count && sorted[i] * scale < high)
			i++;
		printf("%s[%.6g, %.6g, %zu]", first ? "" : ", ", low, high, i - begin);
		first = false;
	}
	printf("]}\n");
}
