// SPDX-License-Identifier: GPL-2.0-only
/*
 * trace-exec: execute the operations of traces, and print the state of memory after each step.
 *
 *	trace-exec [--no-settings] <TRACES
 *
 * Traces (docs/differential.md) are read from standard input, one after another;
 * each begins with the line "trace 1". A process of a trace is a real process,
 * its threads are real threads, and it is forked from the process that the
 * trace names. Each has an arena without mappings at the same fixed address,
 * and all of them run on CPU 0, one at a time: a step has finished before the
 * next one begins, so that a model can predict every result.
 *
 * Prints one JSON object per line: {"trace": N, ...} at the start of a trace,
 * {"step": N, ...} for each operation from 0 on, {"over": N, ...} when all
 * processes of the trace have exited, and {"end": "ok"}. If a process of a
 * trace dies, it prints {"abandoned": N, "reason": ...} and continues with the
 * next trace.
 *
 * Deltas of counters are printed when they change. The blocks (2 MiB ranges of
 * the arena) that a step may have touched are examined page by page; every
 * CHECK_STEPS steps all blocks are. For empty blocks only the number is
 * printed. --no-settings does not change the settings of the kernel and
 * khugepaged, so that the program can be tested on a host.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define BLOCK (2UL << 20)
#define PAGES_PER_BLOCK (BLOCK / PAGE)
#define WORDS_PER_PAGE (PAGE / sizeof(uint64_t))
/* Far from addresses that the kernel chooses itself, so that only the trace uses the arena. */
#define ARENA 0x100000000000UL
#define MAX_BLOCKS 64
#define MAX_PROCESSES 32
#define MAX_THREADS 4
#define MAX_COUNTERS 96
#define MAX_TORN 8
#define MAX_NODES 8
#define CHECK_STEPS 50
#define STACK (64UL << 10)
#define STUCK_NS (120 * 1000000000LL)
#define TORN_WORD 0xdeadbeefdeadbeefULL
#define THP "/sys/kernel/mm/transparent_hugepage/"
#define KHUGEPAGED THP "khugepaged/"

/* linux/fs.h of 6.7 and later (PAGEMAP_SCAN); the host's headers may be older. */
struct page_region {
	uint64_t start, end, categories;
};

struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN_IOCTL _IOWR('f', 16, struct pm_scan_arg)
#define IS_PRESENT (1 << 3)
#define IS_SWAPPED (1 << 4)
#define IS_PFNZERO (1 << 5)
#define IS_HUGE (1 << 6)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum kind {
	OP_MAP,
	OP_UNMAP,
	OP_WRITE,
	OP_READ,
	OP_PROTECT,
	OP_ADVISE,
	OP_REMAP,
	OP_BIND,
	OP_LOCK,
	OP_UNLOCK,
	OP_FORK,
	OP_EXIT,
	OP_KHUGEPAGED,
	OP_DUMP,
	OP_SET,
	/* Requests of the controller that are not in the trace. */
	OP_FACTS,
	OP_THREAD,
};

static const char *const kinds[] = {
	"map",	"unmap",  "write", "read", "protect",	 "advise", "remap", "bind",
	"lock", "unlock", "fork",  "exit", "khugepaged", "dump",   "set",   NULL,
};

struct operation {
	enum kind kind;
	int process, thread, other;
	unsigned long start, count, new_start, new_count;
	long argument;
	uint64_t seed;
	char knob[48], value[48];
};

struct block {
	bool known, huge;
	unsigned short present, zero, swapped;
	unsigned short on_node[MAX_NODES]; /* number of present pages per NUMA node */
	uint64_t hash;
};

/* Shared between the controller and the processes of a trace. Only one of them runs at a time. */
static struct shared {
	uint32_t go[MAX_PROCESSES][MAX_THREADS];
	uint32_t done;
	struct operation operation;
	int blocks;
	bool thorough; /* report the RSS as well */
	unsigned int stride; /* distance between the words of a page that are read */
	uint64_t mask; /* the blocks to examine */
	/* The result. */
	const char *error;
	pid_t child;
	long rss;
	int torn_count;
	unsigned int torn[MAX_TORN];
	struct block block[MAX_BLOCKS];
} *shared;

static _Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void fail(const char *format, ...)
{
	va_list arguments;

	printf("{\"end\": \"error\", \"reason\": \"");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\"}\n");
	fflush(stdout);
	_exit(1);
}

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* ---- a process of the trace ---- */

static int self, pagemap = -1, memory = -1;
/* Without the signal mask, which would need system calls: the handler does not block its signal (SA_NODEFER). */
static sigjmp_buf landing;
static volatile sig_atomic_t landing_ready;
static char stacks[MAX_THREADS + 1][STACK] __attribute__((aligned(4096)));
static __thread int my_stack = -1;
static bool stack_taken[MAX_THREADS + 1];

static void on_fault(int number, siginfo_t *info, void *context)
{
	uintptr_t address = (uintptr_t)info->si_addr;

	(void)context;
	if (landing_ready && address >= ARENA && address < ARENA + MAX_BLOCKS * BLOCK) {
		landing_ready = 0;
		siglongjmp(landing, number);
	}
	signal(number, SIG_DFL);
}

static void open_own(void)
{
	if (pagemap >= 0)
		close(pagemap);
	if (memory >= 0)
		close(memory);
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0 || memory < 0)
		_exit(3);
}

/* The word that a page is filled with: the finalizer of splitmix64; never 0, which means an absent page. */
static uint64_t word_of(uint64_t seed, uint64_t page)
{
	uint64_t z = seed * 0x9e3779b97f4a7c15ULL + page;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (z ^ z >> 31) | 1;
}

static char *address_of(unsigned long page)
{
	return (char *)(ARENA + page * PAGE);
}

static const char *touch_pages(const struct operation *operation)
{
	int number = sigsetjmp(landing, 0);

	if (number)
		return number == SIGBUS ? "SIGBUS" : "SIGSEGV";
	landing_ready = 1;
	for (unsigned long page = operation->start; page < operation->start + operation->count;
	     page++) {
		if (operation->kind == OP_READ) {
			*(volatile char *)address_of(page);
		} else {
			volatile uint64_t *at = (volatile uint64_t *)address_of(page);
			uint64_t word = word_of(operation->seed, page);

			for (unsigned int n = 0; n < WORDS_PER_PAGE; n++)
				at[n] = word;
		}
	}
	landing_ready = 0;
	return NULL;
}

/* The word that a page repeats; TORN_WORD if its words differ. */
static uint64_t repeated(const volatile uint64_t *at)
{
	uint64_t word = at[0], differs = at[WORDS_PER_PAGE - 1] ^ word;

	for (unsigned int n = 1 + word % shared->stride; n < WORDS_PER_PAGE; n += shared->stride)
		differs |= at[n] ^ word;
	return differs ? TORN_WORD : word;
}

/* The word that a present page repeats; TORN_WORD if its words differ. */
static uint64_t content_of(unsigned long page)
{
	static uint64_t copy[WORDS_PER_PAGE];
	uint64_t word;

	if (!sigsetjmp(landing, 0)) {
		landing_ready = 1;
		word = repeated((const volatile uint64_t *)address_of(page));
		landing_ready = 0;
		return word;
	}
	/* The page is not readable: read it regardless of the protection. */
	if (pread(memory, copy, PAGE, ARENA + page * PAGE) != (ssize_t)PAGE)
		return TORN_WORD;
	return repeated(copy);
}

/* Count present pages per NUMA node; false if the kernel does not report it. A huge page is on one node. */
static bool note_nodes(struct block *block, unsigned long first, unsigned long end, bool huge)
{
	static void *pages[PAGES_PER_BLOCK];
	static int nodes[PAGES_PER_BLOCK];
	unsigned long count = huge ? 1 : end - first;

	for (unsigned long n = 0; n < count; n++)
		pages[n] = address_of(first + n);
	if (syscall(SYS_move_pages, 0, count, pages, NULL, nodes, 0))
		return false;
	for (unsigned long n = 0; n < count; n++) {
		if (nodes[n] < 0 || nodes[n] >= MAX_NODES)
			return false;
		block->on_node[nodes[n]] += huge ? end - first : 1;
	}
	return true;
}

/* Returns false if the kernel does not report the node of a page. */
static bool note_block(int number, const struct page_region *regions, int count)
{
	struct block *block = &shared->block[number];
	unsigned long first = number * PAGES_PER_BLOCK, page = first;
	uint64_t hash = 0xcbf29ce484222325ULL;

	*block = (struct block){ .known = true };
	for (int n = 0; n < count; n++) {
		unsigned long begin = (regions[n].start - ARENA) / PAGE,
			      end = (regions[n].end - ARENA) / PAGE;
		uint64_t categories = regions[n].categories;

		if (end <= first || begin >= first + PAGES_PER_BLOCK)
			continue;
		begin = begin < first ? first : begin;
		end = end > first + PAGES_PER_BLOCK ? first + PAGES_PER_BLOCK : end;
		for (; page < begin; page++)
			hash *= 0x100000001b3ULL;
		if (!(categories & (IS_SWAPPED | IS_PFNZERO)) &&
		    !note_nodes(block, begin, end,
				categories & IS_HUGE && end - begin == PAGES_PER_BLOCK))
			return false;
		for (; page < end; page++) {
			uint64_t word = 0;

			if (categories & IS_SWAPPED) {
				block->swapped++;
			} else if (categories & IS_PFNZERO) {
				block->zero++;
			} else {
				block->present++;
				block->huge |= !!(categories & IS_HUGE);
				word = content_of(page);
				if (word == TORN_WORD && shared->torn_count < MAX_TORN)
					shared->torn[shared->torn_count++] = page;
			}
			hash = (hash ^ word) * 0x100000001b3ULL;
		}
	}
	for (; page < first + PAGES_PER_BLOCK; page++)
		hash *= 0x100000001b3ULL;
	block->hash = hash;
	return true;
}

/* Sum of "Anonymous:" of the arena's mappings in /proc/self/smaps, in pages. */
static long anonymous_pages(void)
{
	static char text[32768];
	int fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	bool inside = false, beyond = false;
	size_t kept = 0;
	long kib = 0;
	ssize_t got;

	while (fd >= 0 && !beyond && (got = read(fd, text + kept, sizeof(text) - 1 - kept)) > 0) {
		char *line = text, *end;

		text[kept + got] = 0;
		while ((end = strchr(line, '\n'))) {
			char *after;

			if (!isupper((unsigned char)*line)) {
				unsigned long start = strtoul(line, &after, 16);

				inside = start >= ARENA && start < ARENA + MAX_BLOCKS * BLOCK;
				beyond = start >= ARENA + MAX_BLOCKS * BLOCK;
			} else if (inside && !strncmp(line, "Anonymous:", 10)) {
				kib += strtol(line + 10, NULL, 10);
			}
			line = end + 1;
		}
		kept = strlen(line);
		memmove(text, line, kept);
	}
	if (fd < 0)
		return -1;
	close(fd);
	return kib * 1024 / (long)PAGE;
}

static const char *look(void)
{
	static struct page_region regions[8 * PAGES_PER_BLOCK];

	for (int number = 0; number < shared->blocks; number++) {
		struct pm_scan_arg scan = {
			.size = sizeof(scan),
			.start = ARENA + number * BLOCK,
			.end = ARENA + (number + 1) * BLOCK,
			.vec = (uintptr_t)regions,
			.vec_len = PAGES_PER_BLOCK,
			.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
			.return_mask = IS_PRESENT | IS_SWAPPED | IS_PFNZERO | IS_HUGE,
		};
		long count;

		if (!(shared->mask >> number & 1))
			continue;
		count = ioctl(pagemap, SCAN_IOCTL, &scan);
		if (count < 0)
			return "PAGEMAP_SCAN";
		if (!note_block(number, regions, count))
			return "move_pages";
	}
	if (shared->thorough && (shared->rss = anonymous_pages()) < 0)
		return "smaps";
	return NULL;
}

static uint64_t blocks_of(unsigned long start, unsigned long count)
{
	uint64_t mask = 0;

	for (unsigned long block = start / PAGES_PER_BLOCK;
	     count && block <= (start + count - 1) / PAGES_PER_BLOCK && block < MAX_BLOCKS; block++)
		mask |= 1ULL << block;
	return mask;
}

static const char *outcome(long result)
{
	return result == -1 ? strerrorname_np(errno) : NULL;
}

static void *thread_main(void *thread);

static const char *make_thread(int thread)
{
	pthread_attr_t attributes;
	pthread_t made;
	int slot = 0;

	while (stack_taken[slot])
		slot++;
	stack_taken[slot] = true;
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, stacks[slot], STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	return pthread_create(&made, &attributes, thread_main,
			      (void *)(intptr_t)(thread | slot << 8)) ?
		       "thread" :
		       NULL;
}

static const char *perform(const struct operation *operation)
{
	char *start = address_of(operation->start);
	size_t size = operation->count * PAGE;
	unsigned long nodes = 1UL << operation->argument;
	char *result;

	switch (operation->kind) {
	case OP_MAP:
		result = mmap(start, size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (result == MAP_FAILED)
			return outcome(-1);
		return operation->argument < 0 ? NULL :
						 outcome(madvise(start, size, operation->argument));
	case OP_UNMAP:
		return outcome(munmap(start, size));
	case OP_WRITE:
	case OP_READ:
		return touch_pages(operation);
	case OP_PROTECT:
		return outcome(mprotect(start, size, operation->argument));
	case OP_ADVISE:
		return outcome(madvise(start, size, operation->argument));
	case OP_REMAP:
		result = operation->new_start == operation->start ?
				 mremap(start, size, operation->new_count * PAGE, 0) :
				 mremap(start, size, operation->new_count * PAGE,
					MREMAP_MAYMOVE | MREMAP_FIXED,
					address_of(operation->new_start));
		return outcome(result == MAP_FAILED ? -1 : 0);
	case OP_BIND:
		/* MPOL_BIND of linux/mempolicy.h; the last argument is a number of bits, from which the kernel subtracts one. */
		return outcome(
			syscall(SYS_mbind, start, size, 2, &nodes, 8 * sizeof(nodes) + 1, 0));
	case OP_LOCK:
		return outcome(mlock(start, size));
	case OP_UNLOCK:
		return outcome(munlock(start, size));
	case OP_THREAD:
		return make_thread(operation->argument);
	case OP_FACTS:
		return NULL;
	case OP_EXIT:
		_exit(0);
	default:
		return "internal";
	}
}

static _Noreturn void serve(int thread)
{
	uint32_t seen = 0;

	for (;;) {
		struct operation operation;

		while (__atomic_load_n(&shared->go[self][thread], __ATOMIC_ACQUIRE) == seen)
			futex(&shared->go[self][thread], FUTEX_WAIT, seen, NULL);
		seen = shared->go[self][thread];
		operation = shared->operation;
		if (operation.kind == OP_FORK) {
			pid_t child = fork();

			if (!child) {
				/* The new process has only this thread, which is its first one. */
				self = operation.other;
				thread = 0;
				seen = 0;
				for (int slot = 0; slot <= MAX_THREADS; slot++)
					stack_taken[slot] = slot == my_stack;
				open_own();
				continue;
			}
			shared->error = outcome(child);
			shared->child = child;
		} else {
			shared->error = perform(&operation);
		}
		if (shared->mask) {
			const char *trouble = look();

			if (trouble)
				shared->error = trouble;
		}
		__atomic_add_fetch(&shared->done, 1, __ATOMIC_RELEASE);
		futex(&shared->done, FUTEX_WAKE, 1, NULL);
	}
}

static void *thread_main(void *thread)
{
	my_stack = (intptr_t)thread >> 8;
	serve((intptr_t)thread & 0xff);
}

/* ---- the controller: processes ---- */

static struct {
	pid_t pid;
	int pidfd;
	bool alive;
	bool thread[MAX_THREADS];
	struct block block[MAX_BLOCKS];
	long rss;
} processes[MAX_PROCESSES];

static char abandoned[160];

static void adopt(int process, pid_t pid)
{
	memset(&processes[process], 0, sizeof(processes[process]));
	processes[process].pid = pid;
	processes[process].pidfd = syscall(SYS_pidfd_open, pid, 0);
	processes[process].alive = true;
	processes[process].thread[0] = true;
	if (processes[process].pidfd < 0)
		fail("cannot watch a process of a trace: %s", strerror(errno));
}

/* Returns when the process has exited and its memory has been freed. */
static void bury(int process)
{
	struct pollfd end = { .fd = processes[process].pidfd, .events = POLLIN };

	while (poll(&end, 1, -1) < 0 && errno == EINTR)
		;
	waitpid(processes[process].pid, NULL, WNOHANG);
	close(processes[process].pidfd);
	processes[process].alive = false;
}

static bool died(int process)
{
	struct pollfd end = { .fd = processes[process].pidfd, .events = POLLIN };

	return poll(&end, 1, 0) == 1;
}

/* Let a thread of a process execute shared->operation. Returns false if the process died. */
static bool ask(int process, int thread)
{
	const struct timespec patience = { .tv_nsec = 200000000 };
	uint32_t seen = shared->done;
	long long until = now() + STUCK_NS;

	shared->error = NULL;
	shared->torn_count = 0;
	__atomic_add_fetch(&shared->go[process][thread], 1, __ATOMIC_RELEASE);
	futex(&shared->go[process][thread], FUTEX_WAKE, 1, NULL);
	while (__atomic_load_n(&shared->done, __ATOMIC_ACQUIRE) == seen) {
		futex(&shared->done, FUTEX_WAIT, seen, &patience);
		if (shared->done != seen)
			break;
		if (died(process)) {
			snprintf(abandoned, sizeof(abandoned), "p%d died", process);
			return false;
		}
		if (now() > until)
			fail("p%d did not finish an operation in time", process);
	}
	return true;
}

static void take_blocks(int process)
{
	for (int number = 0; number < shared->blocks; number++) {
		processes[process].block[number].known = shared->mask >> number & 1;
		if (shared->mask >> number & 1)
			processes[process].block[number] = shared->block[number];
	}
	processes[process].rss = shared->thorough ? shared->rss : -1;
}

/* Examine all blocks of a process. */
static bool look_at(int process)
{
	const char *error = shared->error;
	int torn_count = shared->torn_count;
	unsigned int torn[MAX_TORN];

	memcpy(torn, shared->torn, sizeof(torn));
	shared->operation = (struct operation){ .kind = OP_FACTS };
	shared->mask = ~0ULL;
	if (!ask(process, 0))
		return false;
	take_blocks(process);
	if (shared->error)
		fail("cannot examine the memory of p%d: %s", process, shared->error);
	for (int n = 0; n < torn_count && shared->torn_count < MAX_TORN; n++)
		shared->torn[shared->torn_count++] = torn[n];
	shared->error = error;
	return true;
}

static void kill_all(void)
{
	for (int process = 0; process < MAX_PROCESSES; process++) {
		if (processes[process].alive) {
			kill(processes[process].pid, SIGKILL);
			bury(process);
		}
	}
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void begin_processes(void)
{
	pid_t pid;

	memset(shared->go, 0, sizeof(shared->go));
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		fail("cannot fork: %s", strerror(errno));
	if (!pid) {
		const struct sigaction action = { .sa_sigaction = on_fault,
						  .sa_flags = SA_SIGINFO | SA_NODEFER };

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Children are reaped automatically. */
		signal(SIGCHLD, SIG_IGN);
		sigaction(SIGSEGV, &action, NULL);
		sigaction(SIGBUS, &action, NULL);
		open_own();
		self = 0;
		serve(0);
	}
	adopt(0, pid);
}

/* ---- the controller: the kernel's settings and counters ---- */

static ssize_t text_of(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = 0;
	return got;
}

static const char *write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	const char *error;

	if (fd < 0)
		return strerrorname_np(errno);
	error = outcome(write(fd, text, strlen(text)) < 0 ? -1 : 0);
	close(fd);
	return error;
}

/* The selected word of a file like "always [madvise] never", or the whole content. */
static void chosen(char *text)
{
	char *open_bracket = strchr(text, '['), *end;

	if (open_bracket)
		memmove(text, open_bracket + 1, strlen(open_bracket));
	end = strpbrk(text, "]\n");
	if (end)
		*end = 0;
}

/* Settings that a trace may change, and settings that prevent background activity of the kernel. */
static struct setting {
	const char *name, *path, *value;
	bool there;
	char before[48];
} settings[] = {
	{ .name = "enabled", .path = THP "enabled", .value = "madvise" },
	{ .name = "defrag", .path = THP "defrag" },
	{ .name = "use_zero_page", .path = THP "use_zero_page", .value = "1" },
	{ .name = "promotion_threshold", .path = THP "promotion_threshold" },
	{ .name = "max_ptes_none", .path = KHUGEPAGED "max_ptes_none" },
	{ .name = "max_ptes_swap", .path = KHUGEPAGED "max_ptes_swap" },
	{ .name = "max_ptes_shared", .path = KHUGEPAGED "max_ptes_shared" },
	{ .name = "khugepaged_defrag", .path = KHUGEPAGED "defrag" },
	{ .name = "hugepages-16kB", .path = THP "hugepages-16kB/enabled", .value = "never" },
	{ .name = "hugepages-32kB", .path = THP "hugepages-32kB/enabled", .value = "never" },
	{ .name = "hugepages-64kB", .path = THP "hugepages-64kB/enabled", .value = "never" },
	{ .name = "hugepages-128kB", .path = THP "hugepages-128kB/enabled", .value = "never" },
	{ .name = "hugepages-256kB", .path = THP "hugepages-256kB/enabled", .value = "never" },
	{ .name = "hugepages-512kB", .path = THP "hugepages-512kB/enabled", .value = "never" },
	{ .name = "hugepages-1024kB", .path = THP "hugepages-1024kB/enabled", .value = "never" },
	{ .path = KHUGEPAGED "pages_to_scan", .value = "1000000000" },
	{ .path = KHUGEPAGED "alloc_sleep_millisecs", .value = "1" },
	/* Three weeks, since guest time may run fast. */
	{ .path = KHUGEPAGED "scan_sleep_millisecs", .value = "2000000000" },
	{ .path = "/proc/sys/kernel/numa_balancing", .value = "0" },
	{ .path = "/proc/sys/vm/compaction_proactiveness", .value = "0" },
	{ .path = "/proc/sys/vm/overcommit_memory", .value = "1" },
	{ .path = "/sys/kernel/mm/ksm/run", .value = "0" },
};

#define SETTINGS (sizeof(settings) / sizeof(*settings))

static bool with_settings = true;

static void remember_settings(void)
{
	for (size_t n = 0; n < SETTINGS; n++) {
		settings[n].there = text_of(settings[n].path, settings[n].before,
					    sizeof(settings[n].before)) > 0;
		chosen(settings[n].before);
	}
}

static void apply_settings(bool ours)
{
	for (size_t n = 0; with_settings && n < SETTINGS; n++) {
		const char *value = ours && settings[n].value ? settings[n].value :
								settings[n].before,
			   *error;
		char text[48];

		text_of(settings[n].path, text, sizeof(text));
		chosen(text);
		if (!settings[n].there || !strcmp(text, value))
			continue;
		error = write_text(settings[n].path, value);
		if (error)
			fail("cannot write %s to %s: %s", value, settings[n].path, error);
	}
}

static const char *set(const char *name, const char *value)
{
	if (!with_settings)
		return NULL;
	for (size_t n = 0; n < SETTINGS; n++)
		if (settings[n].name && !strcmp(settings[n].name, name))
			return settings[n].there ? write_text(settings[n].path, value) : "ENOENT";
	return "EINVAL";
}

static int vmstat_file = -1, refresh_file = -1;
static int counter_count;
static char counter_name[MAX_COUNTERS][48];
static long counter[MAX_COUNTERS], counter_begin[MAX_COUNTERS], counter_told[MAX_COUNTERS];

static bool is_ours(const char *name)
{
	return !strncmp(name, "thp_", 4) || !strncmp(name, "nr_thp_", 7) ||
	       !strncmp(name, "nr_anon_transparent_hugepages ", 30);
}

static void read_counters(void)
{
	static char text[32768];
	ssize_t got;
	char *line, *end;

	/* Any write folds the per-CPU counters. */
	if (refresh_file >= 0 && write(refresh_file, "1", 1) < 0)
		fail("stat_refresh: %s", strerror(errno));
	got = pread(vmstat_file, text, sizeof(text) - 1, 0);
	if (got <= 0)
		fail("cannot read /proc/vmstat");
	text[got] = 0;
	counter_count = 0;
	for (line = text; (end = strchr(line, '\n')); line = end + 1) {
		char *space;

		if (!is_ours(line))
			continue;
		space = strchr(line, ' ');
		*space = 0;
		if (counter_count == MAX_COUNTERS || strlen(line) >= sizeof(counter_name[0]))
			fail("too many counters");
		strcpy(counter_name[counter_count], line);
		counter[counter_count++] = strtol(space + 1, NULL, 10);
	}
}

/* ---- the controller: khugepaged and memory pressure ---- */

static int khugepaged_stat = -1, full_scans_file = -1;

static bool find_khugepaged(void)
{
	char path[64], text[512];

	if (khugepaged_stat >= 0) {
		if (pread(khugepaged_stat, text, sizeof(text), 0) > 0)
			return true;
		close(khugepaged_stat);
		khugepaged_stat = -1;
	}
	/* khugepaged is started at boot, and again after it was disabled, so it may have any PID. */
	for (int pid = 2; pid < 32768; pid++) {
		cpu_set_t cpu;

		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		if (text_of(path, text, sizeof(text)) <= 0 || strcmp(text, "khugepaged\n"))
			continue;
		CPU_ZERO(&cpu);
		CPU_SET(0, &cpu);
		sched_setaffinity(pid, sizeof(cpu), &cpu);
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		khugepaged_stat = open(path, O_RDONLY | O_CLOEXEC);
		return khugepaged_stat >= 0;
	}
	return false;
}

static unsigned long full_scans(void)
{
	char text[32] = "";

	if (pread(full_scans_file, text, sizeof(text) - 1, 0) <= 0)
		fail("cannot read " KHUGEPAGED "full_scans");
	return strtoul(text, NULL, 10);
}

/* Whether khugepaged waits for a wakeup. It does not sleep interruptibly for long anywhere else. */
static bool khugepaged_sleeps(void)
{
	char text[512], *name_end;
	ssize_t got = pread(khugepaged_stat, text, sizeof(text) - 1, 0);

	text[got > 0 ? got : 0] = 0;
	name_end = strrchr(text, ')');
	return name_end && name_end[2] == 'S';
}

/*
 * Let khugepaged do exactly `count` full scans, each from its start, and wait
 * until it sleeps again: with such a long sleep time it does one scan per
 * wakeup. Its state is read before the number of scans, so that a finished
 * scan is not missed.
 */
static const char *scan(unsigned int count)
{
	long long until = now() + STUCK_NS;
	const struct timespec pause = { .tv_nsec = 20000 };
	unsigned long target;
	char text[64];

	text_of(THP "enabled", text, sizeof(text));
	if (!with_settings || strstr(text, "[never]"))
		return NULL;
	if (!find_khugepaged())
		return "ESRCH";
	while (!khugepaged_sleeps() && now() < until)
		nanosleep(&pause, NULL);
	target = full_scans() + count;
	for (;;) {
		if (khugepaged_sleeps()) {
			if ((long)(full_scans() - target) >= 0)
				return NULL;
			write_text(KHUGEPAGED "scan_sleep_millisecs", "2000000000");
		}
		if (now() > until)
			return "ETIMEDOUT";
		nanosleep(&pause, NULL);
	}
}

/*
 * A mapping for khugepaged to scan that is never collapsed: its only whole
 * range maps the huge zero page, to which this keeps a reference. So
 * khugepaged always counts scans, and never starts one because of a first
 * process; and it does not matter which trace is the first to read a range.
 */
static void keep_work(void)
{
	char *start =
		mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *middle;

	if (start == MAP_FAILED)
		fail("no memory");
	middle = start + (BLOCK - (uintptr_t)start % BLOCK) + BLOCK / 2;
	munmap(start, middle - start);
	munmap(middle + 2 * BLOCK, start + 2 * BLOCK - middle);
	*(volatile char *)middle = 1;
	/* A kernel without huge pages rejects this advice. */
	(void)madvise(middle, 2 * BLOCK, MADV_HUGEPAGE);
	(void)madvise(middle, 2 * BLOCK, MADV_DONTFORK);
	*(volatile char *)(middle + BLOCK / 2);
}

/*
 * Give up all reservations, and nothing else: before it kills, the OOM killer
 * gives up reservations (out_of_memory(), mm/oom_kill.c), and this is the only
 * effect of memory pressure that a trace should see. SysRq also needs a victim.
 */
static const char *dump(void)
{
	pid_t victim;
	int status, ready[2];
	const char *error;
	char byte;

	if (pipe(ready))
		return strerrorname_np(errno);
	fflush(stdout);
	victim = fork();
	if (!victim) {
		write_text("/proc/self/oom_score_adj", "1000");
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	if (victim < 0)
		return strerrorname_np(errno);
	if (read(ready[0], &byte, 1) != 1)
		return "EPIPE";
	close(ready[0]);
	close(ready[1]);
	error = write_text("/proc/sysrq-trigger", "f");
	if (error)
		kill(victim, SIGKILL);
	waitpid(victim, &status, 0);
	return error;
}

/* ---- the controller: the trace ---- */

static int line_number;

static _Noreturn void wrong(const char *what)
{
	fail("line %d of the trace: %s", line_number, what);
}

static char *next_word(char **rest)
{
	char *word;

	while ((word = strsep(rest, " \t")) && !*word)
		;
	return word;
}

static char *need_word(char **rest)
{
	char *word = next_word(rest);

	if (!word)
		wrong("something is missing");
	return word;
}

static uint64_t number(const char *word)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(word, &end, 10);
	if (errno || end == word || (*end && *end != ':'))
		wrong("a number is expected");
	if (*end == ':') {
		uint64_t page = strtoull(end + 1, &end, 10);

		if (*end || page >= PAGES_PER_BLOCK)
			wrong("BLOCK:PAGE is expected");
		value = value * PAGES_PER_BLOCK + page;
	}
	return value;
}

static int process_of(const char *word)
{
	char *end;
	long value = *word == 'p' ? strtol(word + 1, &end, 10) : -1;

	if (value < 0 || end == word + 1 || *end || value >= MAX_PROCESSES)
		wrong("a process is expected");
	return value;
}

static long choice(const char *word, const char *const *names)
{
	for (long n = 0; names[n]; n++)
		if (!strcmp(names[n], word))
			return n;
	wrong("unknown word");
}

static struct operation parse(char *line)
{
	static const char *const protections[] = { "none", "r", "rw", NULL };
	static const int protection[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	static const char *const advices[] = { "dontneed", "free", "huge", "nohuge",
					       "collapse", "cold", NULL };
	static const int advice[] = { MADV_DONTNEED,   MADV_FREE,     MADV_HUGEPAGE,
				      MADV_NOHUGEPAGE, MADV_COLLAPSE, MADV_COLD };
	struct operation operation = { .process = -1, .argument = -1 };
	char *word = need_word(&line), *dot = strchr(word, '.');

	if (*word == 'p' && isdigit((unsigned char)word[1])) {
		if (dot) {
			*dot++ = 0;
			if (*dot != 't' || dot[1] < '0' || dot[1] >= '0' + MAX_THREADS || dot[2])
				wrong("a thread is expected");
			operation.thread = dot[1] - '0';
		}
		operation.process = process_of(word);
		word = need_word(&line);
	}
	operation.kind = choice(word, kinds);
	if ((operation.kind >= OP_KHUGEPAGED) != (operation.process < 0))
		wrong("this operation needs a process, or must not have one");
	if (operation.kind < OP_FORK) {
		operation.start = number(need_word(&line));
		operation.count = number(need_word(&line));
	}
	switch (operation.kind) {
	case OP_MAP:
		word = next_word(&line);
		if (word)
			operation.argument = advice[choice(word, advices)];
		break;
	case OP_WRITE:
		operation.seed = number(need_word(&line));
		break;
	case OP_PROTECT:
		operation.argument = protection[choice(need_word(&line), protections)];
		break;
	case OP_ADVISE:
		operation.argument = advice[choice(need_word(&line), advices)];
		break;
	case OP_REMAP:
		operation.new_start = number(need_word(&line));
		operation.new_count = number(need_word(&line));
		break;
	case OP_BIND:
		operation.argument = number(need_word(&line));
		break;
	case OP_FORK:
		operation.other = process_of(need_word(&line));
		break;
	case OP_SET:
		snprintf(operation.knob, sizeof(operation.knob), "%s", need_word(&line));
		snprintf(operation.value, sizeof(operation.value), "%s", need_word(&line));
		break;
	default:
		break;
	}
	if (next_word(&line))
		wrong("too many words for this operation");
	return operation;
}

static void print_counters(bool all)
{
	bool first = true;

	printf("\"vmstat\": {");
	for (int n = 0; n < counter_count; n++) {
		long delta = counter[n] - counter_begin[n];

		if (!all && delta == counter_told[n])
			continue;
		counter_told[n] = delta;
		printf("%s\"%s\": %ld", first ? "" : ", ", counter_name[n], delta);
		first = false;
	}
	printf("}");
}

static bool is_empty(const struct block *block)
{
	return !block->present && !block->zero && !block->swapped;
}

/* Print the number of present pages per node, up to the last node that has any. */
static void print_nodes(const struct block *block)
{
	int last = MAX_NODES;

	while (last && !block->on_node[last - 1])
		last--;
	printf("\"nodes\": [");
	for (int node = 0; node < last; node++)
		printf(node ? ", %u" : "%u", block->on_node[node]);
	printf("]");
}

static void print_answer(long step, bool thorough)
{
	bool first = true;

	read_counters();
	printf("{\"step\": %ld, \"errno\": ", step);
	printf(shared->error ? "\"%s\", " : "0, ", shared->error);
	print_counters(false);
	if (shared->torn_count) {
		printf(", \"torn\": [");
		for (int n = 0; n < shared->torn_count; n++)
			printf("%s%u", n ? ", " : "", shared->torn[n]);
		printf("]");
	}
	printf(", \"processes\": {");
	for (int process = 0; process < MAX_PROCESSES; process++) {
		bool any = false, empty = false, looked = false;

		for (int number = 0; number < shared->blocks; number++)
			looked |= processes[process].block[number].known;
		if (!processes[process].alive || !looked)
			continue;
		printf("%s\"p%d\": {\"blocks\": {", first ? "" : ", ", process);
		first = false;
		for (int number = 0; number < shared->blocks; number++) {
			const struct block *block = &processes[process].block[number];

			if (!block->known || is_empty(block))
				continue;
			printf("%s\"%d\": {\"huge\": %s, \"present\": %u, \"zero\": %u, \"swapped\": %u, \"hash\": \"%016llx\", ",
			       any ? ", " : "", number, block->huge ? "true" : "false",
			       block->present, block->zero, block->swapped,
			       (unsigned long long)block->hash);
			print_nodes(block);
			printf("}");
			any = true;
		}
		printf("}");
		for (int number = 0; number < shared->blocks; number++) {
			const struct block *block = &processes[process].block[number];

			if (!block->known || !is_empty(block))
				continue;
			printf(empty ? ", %d" : ", \"empty\": [%d", number);
			empty = true;
		}
		printf(empty ? "]" : "");
		if (thorough)
			printf(", \"rss\": %ld", processes[process].rss);
		printf("}");
	}
	printf("}}\n");
}

/* Execute one operation, and examine what it may have touched. Returns false if a process died. */
static bool step(const struct operation *operation, bool thorough, bool last)
{
	int process = operation->process;
	bool everything = thorough || operation->kind == OP_KHUGEPAGED ||
			  operation->kind == OP_DUMP;

	for (int each = 0; each < MAX_PROCESSES; each++)
		for (int number = 0; number < MAX_BLOCKS; number++)
			processes[each].block[number].known = false;
	shared->thorough = thorough;
	/* Usually read two words per page, at times one per cache line, and at the end of the trace all words. */
	shared->stride = last ? 1 : everything ? 8 : WORDS_PER_PAGE / 2;
	shared->error = NULL;
	shared->torn_count = 0;
	if (process < 0) {
		shared->error = operation->kind == OP_SET ? set(operation->knob, operation->value) :
				operation->kind == OP_DUMP ? dump() :
							     scan(2);
	} else if (!processes[process].alive) {
		shared->error = "ESRCH";
	} else if (operation->kind == OP_EXIT) {
		shared->operation = *operation;
		__atomic_add_fetch(&shared->go[process][0], 1, __ATOMIC_RELEASE);
		futex(&shared->go[process][0], FUTEX_WAKE, 1, NULL);
		bury(process);
	} else {
		if (!processes[process].thread[operation->thread]) {
			shared->operation = (struct operation){ .kind = OP_THREAD,
								.argument = operation->thread };
			shared->mask = 0;
			shared->go[process][operation->thread] = 0;
			if (!ask(process, 0))
				return false;
			if (shared->error)
				fail("p%d cannot have another thread", process);
			processes[process].thread[operation->thread] = true;
		}
		if (operation->kind == OP_FORK) {
			if (processes[operation->other].alive)
				wrong("the new process exists already");
			memset(shared->go[operation->other], 0, sizeof(shared->go[0]));
		}
		shared->operation = *operation;
		shared->mask = operation->kind == OP_FORK ?
				       ~0ULL :
				       blocks_of(operation->start, operation->count);
		if (operation->kind == OP_REMAP)
			shared->mask |= blocks_of(operation->new_start, operation->new_count);
		if (!ask(process, operation->thread))
			return false;
		take_blocks(process);
		if (operation->kind == OP_FORK && !shared->error) {
			adopt(operation->other, shared->child);
			if (!everything && !look_at(operation->other))
				return false;
		}
	}
	for (int each = 0; everything && each < MAX_PROCESSES; each++)
		if (processes[each].alive && !look_at(each))
			return false;
	return true;
}

static void run_trace(long index, char **lines, long line_count, long first_line)
{
	struct operation *operations = calloc(line_count + 1, sizeof(*operations));
	long count = 0;
	bool body = false;

	if (!operations)
		fail("no memory");
	apply_settings(true);
	shared->blocks = 16;
	for (long n = 0; n < line_count; n++) {
		char copy[256], *rest = copy, *word;

		line_number = first_line + n;
		snprintf(copy, sizeof(copy), "%s", lines[n]);
		copy[strcspn(copy, "#\r")] = 0;
		word = next_word(&rest);
		if (!word)
			continue;
		if (!strcmp(word, "trace") || !strcmp(word, "seed") || !strcmp(word, "patchset")) {
			continue;
		} else if (!strcmp(word, "blocks")) {
			shared->blocks = number(need_word(&rest));
			if (shared->blocks < 1 || shared->blocks > MAX_BLOCKS)
				wrong("too many blocks");
		} else if (!strcmp(word, "set") && !body) {
			char *knob = need_word(&rest), *value = need_word(&rest);
			const char *error = set(knob, value);

			/* A kernel without the knob behaves as with its default. */
			if (error && strcmp(error, "ENOENT"))
				wrong("the kernel rejects a setting");
		} else {
			body = true;
			snprintf(copy, sizeof(copy), "%s", lines[n]);
			copy[strcspn(copy, "#\r")] = 0;
			operations[count++] = parse(copy);
		}
	}
	/* Wait until activity caused by the settings and by earlier processes has ended. */
	scan(1);
	*abandoned = 0;
	begin_processes();
	read_counters();
	memcpy(counter_begin, counter, sizeof(counter));
	memset(counter_told, 0, sizeof(counter_told));
	printf("{\"trace\": %ld, ", index);
	print_counters(true);
	printf("}\n");
	for (long n = 0; n < count; n++) {
		bool thorough = (n + 1) % CHECK_STEPS == 0 || n + 1 == count;

		if (!step(&operations[n], thorough, n + 1 == count)) {
			printf("{\"abandoned\": %ld, \"step\": %ld, \"reason\": \"%s\"}\n", index,
			       n, abandoned);
			break;
		}
		print_answer(n, thorough);
		if (thorough)
			fflush(stdout);
	}
	kill_all();
	read_counters();
	printf("{\"over\": %ld, ", index);
	print_counters(false);
	printf("}\n");
	fflush(stdout);
	free(operations);
}

static char *read_all(void)
{
	size_t size = 1 << 16, length = 0;
	char *text = malloc(size);
	ssize_t got;

	while (text && (got = read(STDIN_FILENO, text + length, size - 1 - length)) > 0) {
		length += got;
		if (length == size - 1)
			text = realloc(text, size *= 2);
	}
	if (!text)
		fail("no memory for the traces");
	text[length] = 0;
	return text;
}

int main(int argc, char **argv)
{
	static char buffer[1 << 16];
	long line_count = 0, first = -1, index = 0;
	char *text, **lines;
	cpu_set_t cpu;

	with_settings = argc < 2 || strcmp(argv[1], "--no-settings");
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
	text = read_all();
	for (char *at = text; *at; at++)
		line_count += *at == '\n';
	lines = calloc(line_count + 2, sizeof(*lines));
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (!lines || shared == MAP_FAILED)
		fail("no memory");
	line_count = 0;
	for (char *rest = text, *line; (line = strsep(&rest, "\n"));)
		lines[line_count++] = line;

	CPU_ZERO(&cpu);
	CPU_SET(0, &cpu);
	if (sched_setaffinity(0, sizeof(cpu), &cpu))
		fail("cannot run on CPU 0 alone: %s", strerror(errno));
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	vmstat_file = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	refresh_file = with_settings ? open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC) : -1;
	full_scans_file = open(KHUGEPAGED "full_scans", O_RDONLY | O_CLOEXEC);
	if (full_scans_file < 0)
		fail("this kernel has no huge pages");
	remember_settings();
	apply_settings(true);
	keep_work();

	for (long n = 0; n <= line_count; n++) {
		char *line = n < line_count ? lines[n] : "trace ";

		line += strspn(line, " \t");
		if (strncmp(line, "trace", 5) || !isspace((unsigned char)line[5]))
			continue;
		if (first >= 0)
			run_trace(index++, lines + first, n - first, first + 1);
		first = n;
	}
	apply_settings(false);
	printf("{\"end\": \"ok\"}\n");
	return fflush(stdout) ? 1 : 0;
}
