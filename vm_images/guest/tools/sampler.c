// SPDX-License-Identifier: GPL-2.0-only
/*
 * sampler: read kernel counters, once or at intervals, and print the changes.
 *
 *	sampler --once [--refresh] PATTERN...
 *	sampler --interval-ms N --while FIFO [--processes] PATTERN...
 *
 * In the second form it prints a line "r" when it is ready, and then samples
 * whenever a process has FIFO open for writing. It must not wake up otherwise:
 * with icount, the clock of an idle guest runs hundreds of times faster than
 * the host's.
 *
 * Each PATTERN is a glob(7) of text files. With --processes, it also reads the
 * memory use of each process that did not exist before FIFO was opened, from
 * /proc/PID/smaps_rollup. The lines of a sample are:
 *
 *	s MONOTONIC_NS CPU_NS	start; CPU time of this program so far
 *	p INDEX PATH [NAME]	file INDEX is PATH, of the process NAME; once, before its first content
 *	f INDEX LINES		all LINES lines of the file follow
 *	d INDEX LINES		LINES changed lines follow, each as "NUMBER TEXT", numbered from 0
 *	x INDEX			the file can no longer be read
 *	e CPU_NS		end
 *
 * Unchanged files are omitted: most counters are idle, and the guest has to
 * encrypt every byte. --refresh folds per-CPU counters first
 * (Documentation/admin-guide/sysctl/vm.rst, stat_refresh).
 *
 * The interval is guest time. Late samples are not caught up. SIGTERM ends the
 * program between samples.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define NS_PER_MS 1000000LL
#define LARGEST (1 << 20) /* largest file in bytes; enough for zoneinfo with 64 nodes */

struct file {
	char *path;
	char *text; /* content that was printed last, NUL-terminated */
	size_t length;
	int descriptor; /* kept open: procfs and sysfs return new content at offset 0 */
	char name[16]; /* name of the process (TASK_COMM_LEN), if it is the file of one */
};

#define PROCESSES "/proc/[0-9]*/smaps_rollup"

static struct file *files;
static size_t file_count, file_room;
static char buffer[LARGEST];
static volatile sig_atomic_t stopping;

static void stop(int signal_number)
{
	(void)signal_number;
	stopping = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "sampler: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * NS_PER_S + time.tv_nsec;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	/* Some kernels lack some files, and none of them is mandatory. */
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "sampler: %s: %s\n", path, strerror(errno));
	close(fd);
}

/* Use the last allowed CPU: workloads that pin themselves start with the first. */
static void pin(void)
{
	cpu_set_t allowed;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return;
	for (int cpu = CPU_SETSIZE - 1; cpu > 0; cpu--) {
		if (CPU_ISSET(cpu, &allowed)) {
			CPU_ZERO(&allowed);
			CPU_SET(cpu, &allowed);
			sched_setaffinity(0, sizeof(allowed), &allowed);
			return;
		}
	}
}

static void find_files(char **patterns, int count)
{
	glob_t found = { 0 };

	for (int i = 0; i < count; i++) {
		int result = glob(patterns[i], (i ? GLOB_APPEND : 0) | GLOB_MARK, NULL, &found);

		if (result == GLOB_NOSPACE || result == GLOB_ABORTED)
			fail(patterns[i]);
	}
	file_room = found.gl_pathc + 1;
	files = calloc(file_room, sizeof(*files));
	if (!files)
		fail("memory");
	for (size_t i = 0; i < found.gl_pathc; i++) {
		char *path = found.gl_pathv[i];
		int descriptor;

		if (path[strlen(path) - 1] == '/')
			continue;
		descriptor = open(path, O_RDONLY | O_CLOEXEC);
		if (descriptor < 0)
			continue; /* a write-only file */
		files[file_count].path = path;
		files[file_count++].descriptor = descriptor;
	}
}

static int is_known(const char *path)
{
	for (size_t i = 0; i < file_count; i++)
		if (!strcmp(files[i].path, path))
			return 1;
	return 0;
}

/* Add new processes. Those that exist before the workload starts are remembered, but not read. */
static void find_processes(int ignore)
{
	glob_t found;

	if (glob(PROCESSES, GLOB_NOSORT, NULL, &found))
		return;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		struct file *file;
		char path[64];
		FILE *comm;

		if (is_known(found.gl_pathv[i]))
			continue;
		if (file_count == file_room) {
			file_room *= 2;
			files = realloc(files, file_room * sizeof(*files));
			if (!files)
				fail("memory");
		}
		file = &files[file_count++];
		memset(file, 0, sizeof(*file));
		file->path = strdup(found.gl_pathv[i]);
		if (!file->path)
			fail("memory");
		file->descriptor = ignore ? -1 : open(file->path, O_RDONLY | O_CLOEXEC);
		snprintf(path, sizeof(path), "%.*s/comm",
			 (int)(strrchr(file->path, '/') - file->path), file->path);
		comm = fopen(path, "re");
		if (!comm || !fgets(file->name, sizeof(file->name), comm))
			strcpy(file->name, "gone");
		if (comm)
			fclose(comm);
		file->name[strcspn(file->name, "\n")] = 0;
	}
	globfree(&found);
}

/* Read a whole file into the buffer. Returns its length, or -1. */
static ssize_t content(struct file *file)
{
	size_t length = 0;

	while (length < sizeof(buffer) - 1) {
		ssize_t got = pread(file->descriptor, buffer + length, sizeof(buffer) - 1 - length,
				    length);

		if (got < 0)
			return -1;
		if (!got)
			break;
		length += got;
	}
	buffer[length] = 0;
	return length;
}

static size_t lines_in(const char *text, size_t length)
{
	size_t lines = 0;

	for (const char *at = text; (at = memchr(at, '\n', text + length - at)); at++)
		lines++;
	return lines + (length && text[length - 1] != '\n');
}

static void print_all(size_t index, const char *text, size_t length)
{
	printf("f %zu %zu\n", index, lines_in(text, length));
	fwrite(text, 1, length, stdout);
	if (length && text[length - 1] != '\n')
		putchar('\n');
}

/* Compare both texts line by line, and print, or only count, the lines that differ. */
static size_t differences(const char *before, const char *after, int print)
{
	size_t number = 0, differing = 0;

	while (*before && *after) {
		size_t old = strcspn(before, "\n"), new = strcspn(after, "\n");

		if (old != new || memcmp(before, after, old)) {
			differing++;
			if (print)
				printf("%zu %.*s\n", number, (int)new, after);
		}
		before += old + (before[old] == '\n');
		after += new + (after[new] == '\n');
		number++;
	}
	return differing;
}

static void sample(int processes)
{
	if (processes)
		find_processes(0);
	printf("s %lld %lld\n", now(CLOCK_MONOTONIC), now(CLOCK_PROCESS_CPUTIME_ID));
	for (size_t i = 0; i < file_count; i++) {
		struct file *file = &files[i];
		ssize_t length;

		if (file->descriptor < 0)
			continue;
		length = content(file);
		if (length < 0) {
			/* Some files in sysfs exist but return EINVAL or EIO. Report it once. */
			if (file->text)
				printf("x %zu\n", i);
			close(file->descriptor);
			file->descriptor = -1;
			continue;
		}
		if (!file->text) {
			printf("p %zu %s%s%s\n", i, file->path, *file->name ? " " : "", file->name);
			print_all(i, buffer, length);
		} else if ((size_t)length == file->length && !memcmp(file->text, buffer, length)) {
			continue;
		} else if (lines_in(file->text, file->length) != lines_in(buffer, length)) {
			print_all(i, buffer, length);
		} else {
			printf("d %zu %zu\n", i, differences(file->text, buffer, 0));
			differences(file->text, buffer, 1);
		}
		if (!file->text || (size_t)length > file->length) {
			free(file->text);
			file->text = malloc(length + 1);
			if (!file->text)
				fail("memory");
		}
		memcpy(file->text, buffer, length + 1);
		file->length = length;
	}
	printf("e %lld\n", now(CLOCK_PROCESS_CPUTIME_ID));
	if (fflush(stdout))
		exit(0); /* the reader has gone */
}

static int listen_on(const char *fifo)
{
	int fd;

	if (mkfifo(fifo, 0600) < 0 && errno != EEXIST)
		fail(fifo);
	/* Non-blocking: poll() then reports the first byte, and when the last writer closes the FIFO. */
	fd = open(fifo, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		fail(fifo);
	return fd;
}

/* Sample until the last writer has closed the FIFO, or until SIGTERM. */
static void sample_while(int fifo, long long interval, int processes, const sigset_t *unblocked)
{
	long long due = now(CLOCK_MONOTONIC);

	while (!stopping) {
		struct pollfd watched = { .fd = fifo }; /* POLLHUP is always reported */
		long long left = due - now(CLOCK_MONOTONIC);
		struct timespec timeout;

		if (left <= 0) {
			sample(processes);
			due += interval;
			if (due <= now(CLOCK_MONOTONIC))
				due = now(CLOCK_MONOTONIC) + interval;
			continue;
		}
		timeout.tv_sec = left / NS_PER_S;
		timeout.tv_nsec = left % NS_PER_S;
		if (ppoll(&watched, 1, &timeout, unblocked) > 0 && watched.revents & POLLHUP)
			return;
	}
}

int main(int argc, char **argv)
{
	static char output[1 << 16];
	struct sigaction on_term = { .sa_handler = stop };
	sigset_t blocked, unblocked;
	const char *fifo = NULL;
	long long interval = 0;
	int once = 0, refresh = 0, processes = 0, at;

	for (at = 1; at < argc && argv[at][0] == '-'; at++) {
		if (!strcmp(argv[at], "--once")) {
			once = 1;
		} else if (!strcmp(argv[at], "--refresh")) {
			refresh = 1;
		} else if (!strcmp(argv[at], "--processes")) {
			processes = 1;
		} else if (!strcmp(argv[at], "--interval-ms") && at + 1 < argc) {
			interval = atoll(argv[++at]) * NS_PER_MS;
		} else if (!strcmp(argv[at], "--while") && at + 1 < argc) {
			fifo = argv[++at];
		} else {
			fprintf(stderr, "sampler: unknown option %s\n", argv[at]);
			return 2;
		}
	}
	if (at == argc || once == (interval > 0) || once == (fifo != NULL)) {
		fprintf(stderr,
			"usage: sampler --once [--refresh] PATTERN...\n"
			"       sampler --interval-ms N --while FIFO [--processes] PATTERN...\n");
		return 2;
	}
	/* The sampler should neither use huge pages, nor be killed by the OOM killer. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	write_file("/proc/self/oom_score_adj", "-1000");
	/* SIGTERM comes only while we wait, so none is missed. */
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGTERM);
	sigprocmask(SIG_BLOCK, &blocked, &unblocked);
	sigdelset(&unblocked, SIGTERM);
	sigaction(SIGTERM, &on_term, NULL);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, output, _IOFBF, sizeof(output));
	pin();
	find_files(argv + at, argc - at);
	if (refresh)
		write_file("/proc/sys/vm/stat_refresh", "1");
	if (once) {
		sample(0);
		return 0;
	}
	while (!stopping) {
		int fd = listen_on(fifo);
		struct pollfd watched = { .fd = fd, .events = POLLIN };
		char byte;

		if (processes)
			find_processes(1);
		printf("r\n");
		fflush(stdout);
		if (ppoll(&watched, 1, NULL, &unblocked) > 0 && read(fd, &byte, 1) >= 0)
			sample_while(fd, interval, processes, &unblocked);
		close(fd);
	}
	unlink(fifo);
	return 0;
}
