// SPDX-License-Identifier: GPL-2.0-only
/*
 * reservations: tests of huge page reservations, run in a guest.
 *
 *	reservations [--stages NAME,NAME...] [--only NAME,NAME...] [--matrix] [--quick] [--prefill]
 *		     [--races | --unguided ROUNDS] [--list] [--timeout SECONDS]
 *	reservations --hostile SECONDS [--seed NUMBER] [--stages NAME,NAME...] [--prefill]
 *
 * Prints KTAP (Documentation/dev-tools/ktap.rst). --stages lists the stages of
 * the kernel by their names in series.toml; tests of other stages are skipped.
 * --prefill fills all free memory with 0xa5 before the first test, so that a
 * page which is not zeroed does not contain zeros by chance. --hostile runs
 * the stress of hostile.c instead of the tests.
 *
 * --races runs the tests in race.c, with a debugger that watches the output;
 * --unguided runs them without one, as often as is said.
 *
 * The exit status is 0, 1 if a test failed, or 2 for invalid arguments.
 */
#include "tests.h"

#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <time.h>

#define SKIPPED 4 /* kselftest.h: KSFT_SKIP */
#define REASON 200
#define SETTLE_MS 5000
#define TUNABLES "GLIBC_TUNABLES" /* ld.so(8) */
#define MOST_LINES 20

/*
 * Those of what is left to others come first: they count free huge pages, and
 * the kernel defers compaction for a while after tests that fill memory.
 */
static const struct test *const groups[] = {
	aftermath_tests, ground_tests, release_tests, promote_tests, pressure_tests,
	neighbour_tests, stress_tests, failing_tests, race_tests,
};

static const char *stages = "";
static bool failed;
/* Shared between the processes of a test: why it is skipped. */
static char *reason;

static bool listed(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = list; (at = strstr(at, name)); at += length)
		if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ','))
			return true;
	return false;
}

bool has_stage(const char *name)
{
	return listed(stages, name);
}

bool expect_at(bool good, const char *file, int line, const char *condition, const char *format,
	       ...)
{
	static int said;
	va_list arguments;

	if (good)
		return true;
	failed = true;
	if (said++ >= MOST_LINES)
		return false;
	va_start(arguments, format);
	printf("# %s:%d: not %s: ", strrchr(file, '/') ? strrchr(file, '/') + 1 : file, line,
	       condition);
	vprintf(format, arguments);
	printf("\n");
	va_end(arguments);
	fflush(stdout);
	return false;
}

bool reported(void)
{
	return failed;
}

void note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("# ");
	vprintf(format, arguments);
	printf("\n");
	va_end(arguments);
	fflush(stdout);
}

void skip(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(reason, REASON, format, arguments);
	va_end(arguments);
	_exit(failed ? 1 : SKIPPED);
}

void test_end(void)
{
	fflush(stdout);
	_exit(failed);
}

pid_t begin_child(void)
{
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		failed = false;
	}
	REQUIRE(child >= 0, "%s", strerror(errno));
	return child;
}

int end_of(pid_t child)
{
	int status = -1;

	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

void end_child(pid_t child)
{
	int status = end_of(child);

	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED)
		_exit(failed ? 1 : SKIPPED);
	EXPECT(!status, "a process of the test ended with %#x", status);
}

/* ---- running ---- */

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

/* Each test starts from these settings, so that changes of earlier tests do not matter. */
static void settings(void)
{
	threshold(256);
	/* Memory that asks for huge pages with MADV_HUGEPAGE gets them at once, without a reservation. */
	setting(THP "enabled", "always");
	setting(THP "use_zero_page", "1");
	setting(THP "defrag", "always");
	scan_often(false);
	setting(KHUGEPAGED "max_ptes_none", "511");
}

/* When all processes of a test have exited, nothing is reserved. An mm may be freed a little later. */
static void expect_nothing_left(void)
{
	struct counters now = counters();

	for (int waited = 0; now.reserved && waited < SETTLE_MS; waited += 50) {
		sleep_ms(50);
		now = counters();
	}
	EXPECT(!now.reserved, "%ld pages are reserved after the end of the test", now.reserved);
	expect_identity("after the end of the test");
}

static int run_in_child(const struct test *test, unsigned int timeout_s)
{
	pid_t child;
	int status = 0;
	long passed_ms = 0;

	fflush(stdout);
	child = fork();
	if (!child) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		failed = false;
		huge_pages(true);
		settings();
		test->run();
		test_end();
	}
	setpgid(child, child);
	for (; !waitpid(child, &status, WNOHANG); passed_ms += 10) {
		if (passed_ms >= timeout_s * 1000L) {
			note("it did not end within %u guest seconds", timeout_s);
			kill(-child, SIGKILL);
			waitpid(child, &status, 0);
			status = 1 << 8;
			break;
		}
		sleep_ms(10);
	}
	kill(-child, SIGKILL); /* remaining processes of the test */
	if (WIFSIGNALED(status))
		note("signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* Mark the kernel's log, so that a report in it belongs to a test; see machine/oops.py. */
static void mark(const struct test *test)
{
	FILE *log = fopen("/dev/kmsg", "w");

	if (!log)
		return;
	fprintf(log, "<5>orchestrate: test %s\n", test->name);
	fclose(log);
}

/* Print a line of KTAP. Returns whether the test passed or was skipped. */
static bool run_test(const struct test *test, int number, unsigned int timeout_s)
{
	uint64_t began = monotonic_ns();
	int status;

	failed = false;
	*reason = 0;
	if (*stages ? !has_stage(test->stage) : !(test->flags & ANY_KERNEL)) {
		printf("ok %d %s # SKIP the kernel has no stage %s\n", number, test->name,
		       test->stage);
		return true;
	}
	mark(test);
	status = run_in_child(test, timeout_s);
	swap_end();
	expect_nothing_left();
	note("%s took %.1f s", test->name, (monotonic_ns() - began) / 1e9);
	if (status == SKIPPED && !failed)
		printf("ok %d %s # SKIP %s\n", number, test->name, reason);
	else
		printf("%sok %d %s\n", status || failed ? "not " : "", number, test->name);
	fflush(stdout);
	return (!status || status == SKIPPED) && !failed;
}

/* Fill free memory and free it again, so that it is not zero by chance. */
static void prefill(void)
{
	long kib = meminfo_kib("MemAvailable:");
	pid_t child;

	/* With huge pages, which need far fewer faults. */
	threshold(1);
	fflush(stdout);
	child = fork();
	if (!child) {
		/* All but an eighth, to avoid the OOM killer. */
		size_t size = (size_t)(kib - kib / 8) * KIB / REGION * REGION;
		char *start = map_regions(size);

		huge_pages(true);
		if (!start)
			_exit(1);
		madvise(start, size, MADV_HUGEPAGE);
		for (size_t at = 0; at < size; at += PAGE)
			memset(start + at, 0xa5, PAGE);
		_exit(0);
	}
	end_of(child);
}

static void usage(const char *what)
{
	fprintf(stderr, "reservations: %s\n", what);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "stages", required_argument, NULL, 's' },
		{ "only", required_argument, NULL, 'o' },
		{ "matrix", no_argument, NULL, 'm' },
		{ "quick", no_argument, NULL, 'q' },
		{ "prefill", no_argument, NULL, 'p' },
		{ "list", no_argument, NULL, 'l' },
		{ "races", no_argument, NULL, 'R' },
		{ "unguided", required_argument, NULL, 'u' },
		{ "timeout", required_argument, NULL, 't' },
		{ "hostile", required_argument, NULL, 'h' },
		{ "seed", required_argument, NULL, 'r' },
		{ NULL, 0, NULL, 0 },
	};
	const char *only = NULL;
	unsigned int wanted = 0, timeout_s = 600, hostile_s = 0;
	uint64_t seed = 1;
	bool fill = false, list = false;
	int count = 0, number = 0, bad = 0;
	const struct test *chosen[256];

	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (option) {
		case 's':
			stages = optarg;
			break;
		case 'o':
			only = optarg;
			break;
		case 'm':
			wanted |= MATRIX;
			break;
		case 'q':
			wanted |= QUICK;
			break;
		case 'R':
			wanted |= ORDERED;
			break;
		case 'u':
			wanted |= ORDERED;
			unguided = atoi(optarg);
			break;
		case 'p':
			fill = true;
			break;
		case 'l':
			list = true;
			break;
		case 't':
			timeout_s = atoi(optarg);
			break;
		case 'h':
			hostile_s = atoi(optarg);
			break;
		case 'r':
			seed = strtoull(optarg, NULL, 10);
			break;
		default:
			return 2;
		}
	}
	if (optind != argc)
		usage("too many arguments");
	for (size_t group = 0; group < ARRAY_SIZE(groups); group++) {
		for (const struct test *test = groups[group]; test->name; test++) {
			if ((test->flags & wanted) != wanted ||
			    (test->flags & ORDERED) != (wanted & ORDERED) ||
			    (only && !listed(only, test->name)))
				continue;
			if (list)
				printf("%s\t%s\t%s\n", test->name, test->stage, test->mistake);
			chosen[count++] = test;
		}
	}
	if (list)
		return 0;
	if (!count)
		usage("there is no such test");

	/*
	 * The kernel kills a thread if it has no memory to write to its
	 * restartable sequence, which happens when allocations fail.
	 */
	if (hostile_s && !getenv(TUNABLES)) {
		setenv(TUNABLES, "glibc.pthread.rseq=0", 1);
		execv("/proc/self/exe", argv);
		usage("cannot start again");
	}
	reason = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	/* This program must not hold reservations while its tests count theirs. */
	huge_pages(false);
	/* The OOM killer should kill a test, not this program. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n");
	if (!hostile_s)
		printf("1..%d\n", count);
	settings();
	if (fill)
		prefill();
	if (hostile_s)
		bad = hostile(hostile_s, seed);
	while (!hostile_s && number < count) {
		bad += !run_test(chosen[number], number + 1, timeout_s);
		number++;
	}
	settings();
	setting(THP "enabled", "madvise");
	setting(THP "defrag", "madvise");
	if (!hostile_s)
		printf("# %d of %d failed\n", bad, count);
	return bad ? 1 : 0;
}
