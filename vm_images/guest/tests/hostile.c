// SPDX-License-Identifier: GPL-2.0-only
/*
 * One hostile stress: workers that check every byte of their memory, while
 * CPUs and memory go offline, settings change, memory runs out, allocations
 * fail, and workers are killed at any point.
 *
 * A worker is a process with some threads, each with memory of its own of
 * which it records the expected contents. A disturber is a process that does
 * one thing to the system again and again. The supervisor kills and restarts
 * workers, and reports a worker that makes no progress.
 */
#include "tests.h"

#include <dirent.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#define WORKERS 4
#define THREADS 2
#define COUNT 4
#define PAGES (COUNT * PAGES_PER_REGION)
#define SIZE (COUNT * REGION)
/* The workers with a number below this are in the memcg. */
#define IN_MEMCG 2
#define MEMCG "hostile"
/* A worker that does nothing for this long is stuck. It waits for memory, the OOM killer and CPUs that go away. */
#define STUCK_S 240
#define CPUS "/sys/devices/system/cpu/"
#define MEMORY "/sys/devices/system/memory/"
#define KSM "/sys/kernel/mm/ksm/"
#define HUGETLB "/proc/sys/vm/nr_hugepages"
#define FAILING "/sys/kernel/debug/failslab/"
#define FAILING_PAGES "/sys/kernel/debug/fail_page_alloc/"

struct counts {
	volatile unsigned long done, refused;
};

/* Shared by all processes. */
static struct {
	volatile bool stop, no_failing;
	struct {
		volatile unsigned long rounds, wrong;
		volatile pid_t pid;
	} worker[WORKERS];
	struct counts disturber[32];
} *shared;

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

/* ---- workers ---- */

struct thread {
	unsigned int worker, number;
	struct random random;
	struct image *image;
	/* Not aligned to a region after a misaligned mremap(). */
	char *start;
	int pipe[2];
};

static void complain(struct thread *me, unsigned int page, const char *what)
{
	if (!shared->worker[me->worker].wrong++)
		note("worker %u thread %u: page %u does not have its contents (seed %u): %s",
		     me->worker, me->number, page, me->image->seed[page], what);
}

static void check(struct thread *me, unsigned int page, const char *what)
{
	if (!page_is(me->start + page * PAGE, me->image->seed[page]))
		complain(me, page, what);
}

static void check_all(struct thread *me, const char *what)
{
	for (unsigned int page = 0; page < PAGES; page++)
		check(me, page, what);
}

static void write_page(struct thread *me, unsigned int page)
{
	put(me->image, me->start, 0, page, 1 + random_below(&me->random, 255));
}

/* Allocations of this thread fail at random while it writes; see the disturber `failing_allocations`. */
static void may_fail(bool fail)
{
	static const char *const path = "/proc/thread-self/make-it-fail";

	/* Opening it may fail as well: with ENOENT, if there is no memory for an inode of procfs. */
	while (!shared->no_failing && try_write(path, fail ? "1" : "0"))
		;
}

/* Where a worker had no memory. SI_KERNEL: the kernel could not write to it, for example. */
static void no_memory_there(int signal, siginfo_t *info, void *context)
{
	char text[128];
	int length = snprintf(text, sizeof(text), "# signal %d at %p, code %d\n", signal,
			      info->si_addr, info->si_code);

	(void)context;
	if (write(STDOUT_FILENO, text, length) < 0)
		_exit(3);
	_exit(2);
}

static void new_mapping(struct thread *me)
{
	char *start = map_regions(SIZE);

	if (!start)
		return;
	if (me->start)
		munmap(me->start, SIZE);
	me->start = start;
	memset(me->image->seed, 0, PAGES);
}

/* Move the mapping, and by `shift` pages relative to the 2 MiB ranges. */
static void move(struct thread *me, unsigned int shift)
{
	char *area = mmap(NULL, SIZE + 2 * REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *aligned, *to;

	if (area == MAP_FAILED)
		return;
	aligned = (char *)(((uintptr_t)area + REGION - 1) / REGION * REGION);
	to = aligned + shift * PAGE;
	if (mremap(me->start, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to)
		me->start = to;
	/* Not what lies between: it is the mapping, or may be one of another thread by now. */
	if (to > area)
		munmap(area, to - area);
	munmap(to + SIZE, area + SIZE + 2 * REGION - (to + SIZE));
}

static void fork_and_check(struct thread *me)
{
	pid_t child = fork();

	if (!child) {
		/* No locks here: another thread may have held them. */
		for (unsigned int page = 0; page < PAGES; page++)
			if (!page_is(me->start + page * PAGE, me->image->seed[page]))
				_exit(1);
		for (unsigned int page = 0; page < PAGES; page += 3)
			page_fill(me->start + page * PAGE, 7);
		_exit(0);
	}
	if (child > 0) {
		int status = end_of(child);

		/* The OOM killer may take it. */
		if (WIFEXITED(status) && WEXITSTATUS(status))
			complain(me, 0, "in a child");
	}
}

/* Pages that a pipe refers to, across a collapse. */
static void pin_across_collapse(struct thread *me, unsigned int page)
{
	static __thread char copy[2 * PAGE];
	unsigned int pages = page + 2 <= PAGES ? 2 : 1;
	struct iovec pinned = { me->start + page * PAGE, pages * PAGE };
	ssize_t got = vmsplice(me->pipe[1], &pinned, 1, 0);

	if (got <= 0)
		return;
	madvise((char *)((uintptr_t)pinned.iov_base / REGION * REGION), REGION, MADV_COLLAPSE);
	check(me, page, "pinned by a pipe");
	for (ssize_t at = 0; at < got;) {
		ssize_t length = read(me->pipe[0], copy + at, got - at);

		if (length <= 0) {
			complain(me, page, "the pipe is empty");
			return;
		}
		at += length;
	}
	for (unsigned int i = 0; i < got / PAGE; i++)
		if (!page_is(copy + i * PAGE, me->image->seed[page + i]))
			complain(me, page + i, "in a pipe, after a collapse");
}

/* Written as another process would do it. */
static void write_from_outside(struct thread *me, unsigned int page)
{
	static __thread char text[PAGE];
	unsigned char seed = 1 + random_below(&me->random, 255);
	struct iovec local = { text, PAGE }, remote = { me->start + page * PAGE, PAGE };

	page_fill(text, seed);
	if (process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)PAGE)
		me->image->seed[page] = seed;
}

static void change_nothing(struct thread *me, unsigned int page)
{
	static const int advices[] = { MADV_COLLAPSE,	MADV_COLD,	 MADV_PAGEOUT,
				       MADV_HUGEPAGE,	MADV_NOHUGEPAGE, MADV_MERGEABLE,
				       MADV_UNMERGEABLE };
	char *range = (char *)((uintptr_t)(me->start + page * PAGE) / REGION * REGION);
	unsigned long nodes = 1UL << random_below(&me->random, 2);
	unsigned int what = random_below(&me->random, ARRAY_SIZE(advices) + 3);

	/* Always for the whole mapping, where it changes the VMA: mremap() does not move several of them. */
	if (what == 0)
		madvise(range < me->start ? range + REGION : range, REGION, MADV_COLLAPSE);
	else if (what < 3)
		madvise(me->start + page * PAGE, PAGE, advices[what]);
	else if (what < ARRAY_SIZE(advices))
		madvise(me->start, SIZE, advices[what]);
	else if (what == ARRAY_SIZE(advices))
		syscall(SYS_mbind, me->start, SIZE, MPOL_PREFERRED, &nodes, 64, MPOL_MF_MOVE);
	else if (what == ARRAY_SIZE(advices) + 1) {
		/* Of several VMAs, some may be locked or protected when a call fails. */
		mlock2(me->start, SIZE, MLOCK_ONFAULT);
		munlock(me->start, SIZE);
	} else {
		mprotect(me->start, SIZE, PROT_READ);
		while (mprotect(me->start, SIZE, PROT_READ | PROT_WRITE))
			sleep_ms(1);
	}
}

static void *work(void *argument)
{
	struct thread *me = argument;

	while (!shared->stop) {
		unsigned int page = random_below(&me->random, PAGES);

		shared->worker[me->worker].rounds++;
		check(me, page, "in passing");
		may_fail(random_below(&me->random, 4) == 0);
		/* Runs of pages, so that ranges get enough of them to be promoted. */
		for (unsigned int i = 0; i < 48; i++)
			write_page(me, (page + i * 5) % PAGES);
		may_fail(false);
		switch (random_below(&me->random, 16)) {
		case 0:
			fork_and_check(me);
			break;
		case 1:
			/* Whether it was freed or not: written again, it is known what it has to contain. */
			madvise(me->start + page * PAGE, PAGE, MADV_FREE);
			write_page(me, page);
			break;
		case 2:
			if (!madvise(me->start + page * PAGE, PAGE, MADV_DONTNEED))
				me->image->seed[page] = 0;
			break;
		case 3:
			if (!madvise(me->start, SIZE, MADV_DONTNEED))
				memset(me->image->seed, 0, PAGES);
			break;
		case 4:
			new_mapping(me);
			break;
		case 5:
			move(me, 0);
			break;
		case 6:
			move(me, random_below(&me->random, PAGES_PER_REGION));
			break;
		case 7:
			pin_across_collapse(me, page);
			break;
		case 8:
			write_from_outside(me, page);
			break;
		case 9:
			check_all(me, "all");
			break;
		default:
			change_nothing(me, page);
		}
	}
	check_all(me, "at the end");
	return NULL;
}

static pid_t start_worker(unsigned int number, uint64_t seed)
{
	pid_t child = begin_child();

	if (!child) {
		struct thread threads[THREADS] = { 0 };
		pthread_t ids[THREADS];

		sigaction(SIGSEGV,
			  &(struct sigaction){ .sa_sigaction = no_memory_there,
					       .sa_flags = SA_SIGINFO },
			  NULL);
		/* The OOM killer should take the process that fills memory. */
		try_write("/proc/self/oom_score_adj", "-500");
		if (number < IN_MEMCG)
			try_write("/sys/fs/cgroup/" MEMCG "/cgroup.procs", "0");
		for (unsigned int t = 0; t < THREADS; t++) {
			threads[t].worker = number;
			threads[t].number = t;
			threads[t].random = random_of(seed, number * THREADS + t);
			threads[t].image = image_of(COUNT);
			if (pipe2(threads[t].pipe, O_CLOEXEC))
				_exit(1);
			while (!threads[t].start)
				new_mapping(&threads[t]);
		}
		for (unsigned int t = 1; t < THREADS; t++)
			if (pthread_create(&ids[t], NULL, work, &threads[t]))
				_exit(1);
		work(&threads[0]);
		for (unsigned int t = 1; t < THREADS; t++)
			pthread_join(ids[t], NULL);
		_exit(0);
	}
	shared->worker[number].pid = child;
	return child;
}

/* ---- disturbers: each does something once, and returns whether the kernel did it ---- */

static bool cpus_go(struct random *random)
{
	char path[64];

	snprintf(path, sizeof(path), CPUS "cpu%ld/online",
		 1 + (long)random_below(random, sysconf(_SC_NPROCESSORS_CONF) - 1));
	if (try_write(path, "0"))
		return false;
	sleep_ms(random_below(random, 300));
	setting(path, "1");
	return true;
}

static const char *no_cpus(void)
{
	return access(CPUS "cpu1/online", W_OK) ? "no CPU can go offline" : NULL;
}

/* Set by an alarm: going offline is tried until a signal arrives. */
static void interrupted(int signal)
{
	(void)signal;
}

static bool memory_goes(struct random *random)
{
	DIR *directory = opendir(MEMORY);
	char chosen[300] = "", zone[32];
	struct dirent *entry;
	unsigned int seen = 0;
	bool gone;

	while (directory && (entry = readdir(directory))) {
		char path[300];
		int fd;

		snprintf(path, sizeof(path), MEMORY "%s/valid_zones", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		memset(zone, 0, sizeof(zone));
		if (read(fd, zone, sizeof(zone) - 1) > 0 && !strncmp(zone, "Movable", 7) &&
		    !random_below(random, ++seen))
			snprintf(chosen, sizeof(chosen), MEMORY "%s/state", entry->d_name);
		close(fd);
	}
	if (directory)
		closedir(directory);
	if (!*chosen)
		return false;
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = interrupted }, NULL);
	alarm(15);
	gone = !try_write(chosen, "offline");
	alarm(0);
	if (gone) {
		sleep_ms(random_below(random, 300));
		while (try_write(chosen, "online_movable") == -ENOMEM)
			sleep_ms(50);
	}
	return gone;
}

static const char *no_memory(void)
{
	return access(MEMORY "block_size_bytes", R_OK) ? "no memory can go offline" : NULL;
}

static bool settings_change(struct random *random)
{
	static const char *const enabled[] = { "always", "madvise", "never", "always" };
	static const char *const sized[] = { "always", "inherit", "madvise", "never" };
	static const char *const defrag[] = { "always", "defer", "defer+madvise", "madvise",
					      "never" };
	static const char *const sizes[] = { "16", "64", "512", "2048" };
	static const int thresholds[] = { 1, 2, 64, 200, 256, 511, 512 };
	char path[128], text[16];

	switch (random_below(random, 7)) {
	case 0:
		return !try_write(THP "enabled", enabled[random_below(random, 4)]);
	case 1:
		return !try_write(THP "defrag", defrag[random_below(random, 5)]);
	case 2:
		snprintf(path, sizeof(path), THP "hugepages-%skB/enabled",
			 sizes[random_below(random, 4)]);
		return !try_write(path, sized[random_below(random, 4)]);
	case 3:
		return !try_write(THP "use_zero_page", random_below(random, 2) ? "1" : "0");
	case 4:
		snprintf(text, sizeof(text), "%u", random_below(random, 512));
		return !try_write(KHUGEPAGED "max_ptes_none", text);
	default:
		snprintf(text, sizeof(text), "%d",
			 thresholds[random_below(random, ARRAY_SIZE(thresholds))]);
		return !try_write(THP "promotion_threshold", text);
	}
}

static bool memory_is_compacted(struct random *random)
{
	static const char *const files[][2] = {
		{ "/proc/sys/vm/compact_memory", "1" },
		{ "/proc/sys/vm/drop_caches", "3" },
		{ "/sys/kernel/debug/thp_reserve/dump", "1" },
		{ "/sys/kernel/debug/split_huge_pages", "1" },
	};
	unsigned int which = random_below(random, ARRAY_SIZE(files));

	return !try_write(files[which][0], files[which][1]);
}

static bool ksm_runs(struct random *random)
{
	static const char *const runs[] = { "0", "1", "1", "2" };

	try_write(KSM "pages_to_scan", "2000");
	try_write(KSM "sleep_millisecs", "5");
	return !try_write(KSM "run", runs[random_below(random, ARRAY_SIZE(runs))]);
}

static const char *no_ksm(void)
{
	return access(KSM "run", W_OK) ? "this kernel has no KSM" : NULL;
}

static bool swap_goes(struct random *random)
{
	swap_begin(256);
	sleep_ms(random_below(random, 2000));
	/* There may be no memory to swap in to: then again. */
	for (int tries = 0; tries < 100 && swap_is_on(); tries++) {
		if (!try_swap_end())
			return true;
		sleep_ms(100);
	}
	return !swap_is_on();
}

static const char *no_swap(void)
{
	return access("/sys/block/zram0/disksize", W_OK) ? "there is no zram to swap to" : NULL;
}

/*
 * A process that takes all memory, and is killed for it. Mostly it locks its
 * memory: reclaim of what can be swapped out would take most of the time.
 */
static bool memory_ends(struct random *random)
{
	long kills = event_count("oom_kill");
	bool locks = random_below(random, 4), small = random_below(random, 2);
	pid_t child = fork();
	int status;

	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (try_write("/proc/self/oom_score_adj", "1000") ||
		    (locks && mlockall(MCL_FUTURE | MCL_ONFAULT)))
			_exit(1);
		while (!shared->stop) {
			char *start = map_regions(16 * REGION);

			if (!start)
				_exit(1);
			if (small)
				madvise(start, 16 * REGION, MADV_NOHUGEPAGE);
			for (size_t at = 0; at < 16 * REGION && !shared->stop; at += PAGE)
				start[at] = 1;
		}
		_exit(0);
	}
	if (child < 0)
		return false;
	status = end_of(child);
	sleep_ms(2000 + random_below(random, 4000));
	return WIFSIGNALED(status) && event_count("oom_kill") > kills;
}

static bool limits_change(struct random *random)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu", (16 + random_below(random, 64)) * MIB);
	return !try_write("/sys/fs/cgroup/" MEMCG "/memory.max", text);
}

static const char *no_memcg(void)
{
	return access("/sys/fs/cgroup/" MEMCG "/memory.max", W_OK) ?
		       "this kernel has no memory control groups" :
		       NULL;
}

static bool workers_migrate(struct random *random)
{
	unsigned long from = 3, to = 1UL << random_below(random, 2);
	pid_t pid = shared->worker[random_below(random, WORKERS)].pid;

	return pid > 0 && syscall(SYS_migrate_pages, pid, 64, &from, &to) >= 0;
}

static const char *no_nodes(void)
{
	return node_count() < 2 ? "there is only one node" : NULL;
}

static bool hugetlb_takes(struct random *random)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", random_below(random, 24));
	return !try_write(HUGETLB, text);
}

static const char *no_hugetlb(void)
{
	return access(HUGETLB, W_OK) ? "this kernel has no hugetlb pages" : NULL;
}

static bool allocations_fail(struct random *random)
{
	static const char *const attributes[] = { FAILING, FAILING_PAGES };
	static const char *const values[][2] = {
		{ "verbose", "0" },  { "ignore-gfp-wait", "N" }, { "times", "-1" },
		{ "interval", "1" }, { "task-filter", "Y" },
	};
	char path[128], text[16];
	bool good = true;

	snprintf(text, sizeof(text), "%u", random_below(random, 4));
	for (size_t a = 0; a < ARRAY_SIZE(attributes); a++) {
		for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
			snprintf(path, sizeof(path), "%s%s", attributes[a], values[v][0]);
			good &= !try_write(path, values[v][1]);
		}
		snprintf(path, sizeof(path), "%sprobability", attributes[a]);
		good &= !try_write(path, text);
	}
	try_write(FAILING_PAGES "ignore-gfp-highmem", "N");
	try_write(FAILING_PAGES "min-order", "0");
	return good;
}

static const char *no_failing(void)
{
	return access(FAILING "probability", W_OK) || access(FAILING_PAGES "probability", W_OK) ?
		       "this kernel has no fault injection" :
		       NULL;
}

static const struct {
	const char *name;
	bool (*once)(struct random *random);
	/* Why there can be no such thing; NULL: there can. */
	const char *(*missing)(void);
	unsigned int pause_ms;
} disturbers[] = {
	{ "cpu_hotplug", cpus_go, no_cpus, 300 },
	{ "memory_hotplug", memory_goes, no_memory, 700 },
	{ "knobs", settings_change, NULL, 40 },
	{ "compaction_and_dumps", memory_is_compacted, NULL, 200 },
	{ "ksm", ksm_runs, no_ksm, 1000 },
	{ "swapoff", swap_goes, no_swap, 1000 },
	{ "oom_kills", memory_ends, NULL, 3000 },
	{ "memcg_limits", limits_change, no_memcg, 300 },
	{ "node_migration", workers_migrate, no_nodes, 300 },
	{ "hugetlb", hugetlb_takes, no_hugetlb, 1500 },
	{ "failing_allocations", allocations_fail, no_failing, 500 },
};

static pid_t start_disturber(unsigned int number, uint64_t seed)
{
	pid_t child = begin_child();

	if (!child) {
		struct random random = random_of(seed, 1000 + number);
		struct counts *counts = &shared->disturber[number];

		try_write("/proc/self/oom_score_adj", "-900");
		huge_pages(false);
		while (!shared->stop) {
			if (disturbers[number].once(&random))
				counts->done++;
			else
				counts->refused++;
			sleep_ms(random_below(&random, 2 * disturbers[number].pause_ms));
		}
		test_end();
	}
	return child;
}

/* ---- the supervisor ---- */

static void print_stack(pid_t pid)
{
	char path[64], line[256];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		printf("# %s", line);
	if (file)
		fclose(file);
}

static void settings_back(void)
{
	char path[300];
	glob_t found;

	for (long cpu = 1; cpu < sysconf(_SC_NPROCESSORS_CONF); cpu++) {
		snprintf(path, sizeof(path), CPUS "cpu%ld/online", cpu);
		try_write(path, "1");
	}
	if (!glob(MEMORY "memory[0-9]*/state", 0, NULL, &found)) {
		for (size_t i = 0; i < found.gl_pathc; i++)
			try_write(found.gl_pathv[i], "online_movable");
		globfree(&found);
	}
	if (!glob(THP "hugepages-*kB/enabled", 0, NULL, &found)) {
		for (size_t i = 0; i < found.gl_pathc; i++)
			try_write(found.gl_pathv[i],
				  strstr(found.gl_pathv[i], "-2048kB") ? "inherit" : "never");
		globfree(&found);
	}
	try_write(FAILING "probability", "0");
	try_write(FAILING_PAGES "probability", "0");
	try_write(KSM "run", "2");
	try_write(KSM "run", "0");
	try_write(HUGETLB, "0");
	swap_end();
}

static int result(int *number, bool good, const char *name)
{
	printf("%sok %d %s\n", good ? "" : "not ", ++*number, name);
	return !good;
}

int hostile(unsigned int seconds, uint64_t seed)
{
	unsigned long last[WORKERS] = { 0 }, killed = 0, oom_killed = 0;
	uint64_t seen[WORKERS], began = monotonic_ns();
	pid_t workers[WORKERS], others[ARRAY_SIZE(disturbers)] = { 0 };
	struct random random = random_of(seed, 999);
	struct counters before = counters(), delta;
	bool stuck = false, died = false, left = false;
	const char *missing[ARRAY_SIZE(disturbers)] = { NULL };
	unsigned long rounds = 0, wrong = 0;
	int number = 0, bad = 0;

	printf("1..%zu\n", 4 + ARRAY_SIZE(disturbers));
	/* Made before the threads, which share it. */
	page_is((char *)&random, 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	shared->no_failing = access("/proc/thread-self/make-it-fail", W_OK);
	try_write("/proc/self/oom_score_adj", "-950");
	try_write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir("/sys/fs/cgroup/" MEMCG, 0755);
	scan_often(true);
	huge_pages(true);
	for (unsigned int d = 0; d < ARRAY_SIZE(disturbers); d++) {
		missing[d] = disturbers[d].missing ? disturbers[d].missing() : NULL;
		if (!missing[d])
			others[d] = start_disturber(d, seed);
	}
	for (unsigned int w = 0; w < WORKERS; w++) {
		workers[w] = start_worker(w, seed);
		seen[w] = monotonic_ns();
	}
	while (monotonic_ns() - began < seconds * NS_PER_S && !stuck && !died) {
		unsigned int victim = random_below(&random, 8 * WORKERS);

		sleep_ms(random_below(&random, 400));
		for (unsigned int w = 0; w < WORKERS; w++) {
			int status = 0;
			bool mine = w == victim, ended;

			if (mine)
				kill(workers[w], SIGKILL);
			ended = waitpid(workers[w], &status, mine ? 0 : WNOHANG) == workers[w];
			if (ended) {
				if (mine)
					killed++;
				else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
					oom_killed++;
				else {
					note("worker %u ended with %#x", w, status);
					died = true;
				}
				workers[w] = start_worker(w, random_next(&random));
			}
			if (ended || shared->worker[w].rounds != last[w]) {
				last[w] = shared->worker[w].rounds;
				seen[w] = monotonic_ns();
			} else if (monotonic_ns() - seen[w] > STUCK_S * NS_PER_S) {
				note("worker %u has done nothing for %d s:", w, STUCK_S);
				print_stack(workers[w]);
				stuck = true;
			}
		}
	}
	shared->stop = true;
	for (unsigned int w = 0; w < WORKERS; w++) {
		int status = stuck ? 0 : end_of(workers[w]);

		/* The OOM killer may still be at work. */
		died |= status && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		if (stuck)
			kill(workers[w], SIGKILL);
		rounds += shared->worker[w].rounds;
		wrong += shared->worker[w].wrong;
	}
	for (unsigned int d = 0; d < ARRAY_SIZE(disturbers); d++)
		if (others[d])
			end_of(others[d]);
	settings_back();
	rmdir("/sys/fs/cgroup/" MEMCG);
	delta = since(before);
	note("%lu rounds, %lu workers killed, %lu by the OOM killer or a memcg limit", rounds,
	     killed, oom_killed);
	note("%ld reservations, %ld in place, %ld by copy, %ld dumped, %ld failed", delta.alloc,
	     delta.collapsed, delta.copied, delta.dumped, delta.failed);
	bad += result(&number, !wrong && !reported(), "contents");
	bad += result(&number, !stuck && !died && rounds, "workers");
	for (int wait = 0; wait < 100 && counters().reserved; wait++)
		sleep_ms(50);
	left = counters().reserved != 0;
	if (left)
		note("%ld pages are reserved after the end", counters().reserved);
	expect_identity("after the end");
	bad += result(&number, !left && !reported(), "counters");
	bad += result(&number,
		      (!has_stage("reserve") || delta.alloc) &&
			      (!has_stage("in-place") || delta.collapsed),
		      "reservations_and_promotions_happen");
	for (unsigned int d = 0; d < ARRAY_SIZE(disturbers); d++) {
		struct counts *counts = &shared->disturber[d];

		if (missing[d]) {
			printf("ok %d %s # SKIP %s\n", ++number, disturbers[d].name, missing[d]);
			continue;
		}
		note("%s: %lu times, refused %lu times", disturbers[d].name, counts->done,
		     counts->refused);
		if (counts->done)
			bad += result(&number, true, disturbers[d].name);
		else
			printf("ok %d %s # SKIP the kernel refused it %lu times\n", ++number,
			       disturbers[d].name, counts->refused);
	}
	fflush(stdout);
	return bad;
}
