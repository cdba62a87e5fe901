// SPDX-License-Identifier: GPL-2.0-only
/*
 * pgbench: PostgreSQL's own benchmark, with the server in the same guest.
 *
 * A new database is made in memory, the server is started without fsync, its
 * tables are filled, and pgbench runs a fixed number of transactions. Only
 * the last part is measured. The server does not run as root, so this program
 * becomes another user.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROGRAMS "/usr/lib/postgresql/15/bin/"
#define DIRECTORY "/tmp/pgbench"
#define DATA DIRECTORY "/data"
#define OUTPUT DIRECTORY "/output"
#define SERVER_OUTPUT DIRECTORY "/output-of-server"
#define NOBODY 65534
#define MOST_ARGUMENTS 40
#define START_NS (300ULL * NS_PER_S)
#define NS_PER_MS 1e6

static const char *const modes[] = { "tpcb-like", "simple-update", "select-only", NULL };

/* Starts a program with its output in a file; the arguments end with NULL. */
static pid_t start(const char *path, const char *program, ...)
{
	char *argv[MOST_ARGUMENTS] = { (char *)program };
	va_list arguments;
	pid_t child;
	int output;

	va_start(arguments, program);
	for (int i = 1; i < MOST_ARGUMENTS && (i == 1 || argv[i - 1]); i++)
		argv[i] = va_arg(arguments, char *);
	va_end(arguments);
	fflush(stdout);
	child = fork();
	if (child < 0)
		workload_fail("fork: %s", strerror(errno));
	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	output = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (output < 0 || dup2(output, STDOUT_FILENO) < 0 || dup2(output, STDERR_FILENO) < 0)
		_exit(126);
	execv(program, argv);
	_exit(127);
}

/* The exit status of a child; fails if a signal killed it. */
static int status_of(pid_t child, const char *what)
{
	int status;

	if (waitpid(child, &status, 0) != child)
		workload_fail("cannot wait for %s: %s", what, strerror(errno));
	if (WIFSIGNALED(status))
		workload_fail("%s was killed by signal %d", what, WTERMSIG(status));
	return WEXITSTATUS(status);
}

/* Fails with the last line that a program has printed. */
static _Noreturn void fail_with_output(const char *path, const char *what, int status)
{
	FILE *file = fopen(path, "re");
	char line[512] = "", last[512] = "it printed nothing";

	while (file && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n\"\\")] = 0;
		if (*line)
			strcpy(last, line);
	}
	workload_fail("%s ended with exit status %d: %s", what, status, last);
}

/* The number that follows `text` in what pgbench has printed. */
static double number_after(const char *text)
{
	FILE *file = fopen(OUTPUT, "re");
	char line[512];

	while (file && fgets(line, sizeof(line), file)) {
		char *found = strstr(line, text);

		if (found) {
			fclose(file);
			return strtod(found + strlen(text), NULL);
		}
	}
	workload_fail("pgbench did not print '%s'", text);
}

/* Sum of the resident memory and of the huge pages of all processes of the server. */
static struct rollup use_of_server(pid_t server)
{
	struct rollup sum = smaps_rollup(server);
	char path[64], *end;
	long child;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", server, server);
	file = fopen(path, "re");
	if (!file)
		return sum;
	if (fgets(path, sizeof(path), file))
		for (char *at = path; (child = strtol(at, &end, 10)) > 0 && end != at; at = end)
			sum.anon_huge_kib += smaps_rollup(child).anon_huge_kib;
	fclose(file);
	return sum;
}

int main(int argc, char **argv)
{
	char clients[32], threads[32], transactions[32], scale[32], buffers[64], seed[64];
	const struct timespec pause = { .tv_nsec = 100000000 };
	const char *mode;
	struct rollup use;
	pid_t server;
	int status;
	uint64_t began;

	workload_begin(argc, argv);
	snprintf(seed, sizeof(seed), "--random-seed=%ld", option_integer("seed"));
	snprintf(clients, sizeof(clients), "%ld", option_integer("clients"));
	snprintf(threads, sizeof(threads), "%ld", option_integer("threads"));
	snprintf(transactions, sizeof(transactions), "%ld", option_integer("transactions"));
	snprintf(scale, sizeof(scale), "%ld", option_integer("scale"));
	snprintf(buffers, sizeof(buffers), "shared_buffers=%ldkB",
		 option_integer("buffers") / (long)KIB);
	mode = modes[option_choice("mode", modes)];
	clock_begin();
	options_done();
	if (system("rm -rf " DIRECTORY) || mkdir(DIRECTORY, 0700))
		workload_fail("cannot create " DIRECTORY ": %s", strerror(errno));
	if (!getuid() && (chown(DIRECTORY, NOBODY, NOBODY) || setgid(NOBODY) || setuid(NOBODY)))
		workload_fail("cannot become another user: %s", strerror(errno));
	if (chdir(DIRECTORY))
		workload_fail("cannot use " DIRECTORY ": %s", strerror(errno));

	status = status_of(start(OUTPUT, PROGRAMS "initdb", "-D", DATA, "-U", "postgres", "-A",
				 "trust", "-E", "UTF8", "--locale=C", "--no-sync",
				 "--no-instructions", NULL),
			   "initdb");
	if (status)
		fail_with_output(OUTPUT, "initdb", status);
	server = start(SERVER_OUTPUT, PROGRAMS "postgres", "-D", DATA, "-k", DIRECTORY, "-c",
		       "listen_addresses=", "-c", buffers, "-c", "fsync=off", "-c",
		       "huge_pages=off", "-c", "autovacuum=off", "-c", "timezone=GMT", "-c",
		       "log_timezone=GMT", NULL);
	began = monotonic_ns();
	for (;;) {
		if (waitpid(server, &status, WNOHANG) == server)
			fail_with_output(SERVER_OUTPUT, "the server", WEXITSTATUS(status));
		status = status_of(start(OUTPUT, PROGRAMS "pgbench", "-h", DIRECTORY, "-U",
					 "postgres", "-i", "-q", "-s", scale, "postgres", NULL),
				   "pgbench -i");
		if (!status)
			break;
		if (monotonic_ns() - began > START_NS)
			fail_with_output(OUTPUT, "pgbench -i", status);
		nanosleep(&pause, NULL);
	}
	status = status_of(start(OUTPUT, PROGRAMS "pgbench", "-h", DIRECTORY, "-U", "postgres",
				 "-n", "-M", "prepared", "-b", mode, seed, "-c", clients, "-j",
				 threads, "-t", transactions, "postgres", NULL),
			   "pgbench");
	if (status)
		fail_with_output(OUTPUT, "pgbench", status);
	/* In guest milliseconds; with icount a nanosecond of the guest is an instruction. */
	metric_clock("transaction_%s.mean", number_after("latency average = ") * NS_PER_MS);
	metric("failed.total", "transactions", number_after("number of failed transactions: "));
	use = use_of_server(server);
	metric("rss_kib.server", "KiB", use.rss_kib);
	metric("anon_huge_kib.after", "KiB", use.anon_huge_kib);
	kill(server, SIGQUIT);
	waitpid(server, NULL, 0);
	workload_end();
}
