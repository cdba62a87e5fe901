// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork_snapshot: Redis saving a snapshot with fork() while it handles writes.
 *
 * The server is filled with values of random sizes, most of which are then
 * deleted at random, so that its heap is sparse. Then it saves a snapshot
 * (BGSAVE): it forks, the child writes the data, and every page that the
 * parent changes meanwhile is copied. With huge pages this copies 2 MiB or
 * splits the huge page; clients see this, and the fork itself, as latency.
 *
 * By default Redis disables huge pages for itself; an option prevents this.
 * Values compress well, so the output of the child takes almost no memory.
 */
#include "workload.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DIRECTORY "/tmp/fork_snapshot"
#define SOCKET DIRECTORY "/socket"
#define BATCH 256
#define LEAST_VALUE 64
/* Number of requests between two checks whether the save has ended. */
#define LOOK_EVERY 128
#define START_NS (60ULL * NS_PER_S)

static char request[BATCH * 4096], reply[65536];
static int server_fd = -1;
static long most_value;

static _Noreturn void serve(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", SOCKET, "--dir",
	       DIRECTORY, "--save", "", "--appendonly", "no", "--disable-thp", "no",
	       "--rdbcompression", "yes", "--logfile", DIRECTORY "/log", "--ignore-warnings",
	       "ARM64-COW-BUG", (char *)NULL);
	_exit(127);
}

static void connect_to(pid_t server)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = SOCKET };
	const struct timespec pause = { .tv_nsec = 10000000 };
	uint64_t began = monotonic_ns();
	int status;

	server_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(server_fd, (struct sockaddr *)&address, sizeof(address))) {
		if (waitpid(server, &status, WNOHANG) == server)
			workload_fail(
				"redis-server did not start (wait status %#x): is it in this image?",
				status);
		if (monotonic_ns() - began > START_NS)
			workload_fail("redis-server did not listen within a minute");
		nanosleep(&pause, NULL);
	}
}

static void send_all(const char *text, size_t length)
{
	while (length) {
		ssize_t sent = send(server_fd, text, length, MSG_NOSIGNAL);

		if (sent <= 0)
			workload_fail("redis-server closed the connection or died: %s",
				      strerror(errno));
		text += sent;
		length -= sent;
	}
}

/* Read `lines` replies of one line each; an error reply ends the workload. */
static void receive_lines(long lines)
{
	bool at_start = true;

	while (lines > 0) {
		ssize_t got = recv(server_fd, reply, sizeof(reply) - 1, 0);

		if (got <= 0)
			workload_fail("redis-server is gone: %s",
				      got ? strerror(errno) : "it closed the connection");
		for (ssize_t i = 0; i < got; i++) {
			if (at_start && reply[i] == '-') {
				reply[got] = 0;
				reply[i + strcspn(reply + i, "\r\n\"")] = 0;
				workload_fail("redis-server replied %s", reply + i);
			}
			at_start = reply[i] == '\n';
			lines -= at_start;
		}
	}
}

/* The value of `key` in a section of INFO. */
static long info(const char *section, const char *key)
{
	size_t length = 0, body, wanted;
	char *found;

	send_all(request, snprintf(request, sizeof(request), "INFO %s\r\n", section));
	do {
		ssize_t got = recv(server_fd, reply + length, sizeof(reply) - 1 - length, 0);

		if (got <= 0)
			workload_fail("redis-server died during INFO %s", section);
		length += got;
		reply[length] = 0;
		/* "$123\r\n", 123 bytes, "\r\n" */
		found = strchr(reply, '\n');
		body = found ? (size_t)(found + 1 - reply) : 0;
		wanted = found ? body + strtoul(reply + 1, NULL, 10) + 2 : sizeof(reply);
	} while (length < wanted && length < sizeof(reply) - 1);
	for (char *line = reply; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':')
			return strtol(line + strlen(key) + 1, NULL, 10);
	}
	workload_fail("redis-server has no %s in INFO %s", key, section);
}

static size_t set_request(char *at, long key, struct random *random)
{
	size_t size = LEAST_VALUE + random_below(random, most_value - LEAST_VALUE + 1);
	size_t length = sprintf(at, "SET key:%ld ", key);

	memset(at + length, 'a' + key % 26, size);
	length += size;
	memcpy(at + length, "\r\n", 2);
	return length + 2;
}

static void fill(long keys, long kept_percent, struct random *random)
{
	for (long key = 0; key < keys;) {
		size_t length = 0;
		long batch = 0;

		for (; batch < BATCH && key < keys; batch++, key++)
			length += set_request(request + length, key, random);
		send_all(request, length);
		receive_lines(batch);
	}
	for (long key = 0; key < keys;) {
		size_t length = 0;
		long batch = 0;

		for (; batch < BATCH && key < keys; key++) {
			if (random_below(random, 100) < (uint32_t)kept_percent)
				continue;
			length += sprintf(request + length, "DEL key:%ld\r\n", key);
			batch++;
		}
		send_all(request, length);
		receive_lines(batch);
	}
}

/* Write one key, wait for the reply, and return the latency. */
static uint64_t set_once(long keys, struct random *random)
{
	size_t length = set_request(request, random_next(random) % keys, random);
	uint64_t began = ticks();

	send_all(request, length);
	receive_lines(1);
	return ticks() - began;
}

/* Minor page faults of a process, field 10 of /proc/PID/stat. */
static long faults_of(pid_t pid)
{
	char path[64], text[1024] = "";
	long faults = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file || !fgets(text, sizeof(text), file) || !strrchr(text, ')') ||
	    sscanf(strrchr(text, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %ld", &faults) != 1)
		workload_fail("cannot read %s", path);
	fclose(file);
	return faults;
}

int main(int argc, char **argv)
{
	long keys, kept_percent, quiet_count, most_requests, count = 0, faults;
	unsigned long available_kib, least_kib;
	uint64_t *quiet, *busy, seed;
	struct rollup before;
	struct random random;
	double scale;
	pid_t server;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	keys = option_integer("keys");
	most_value = option_integer("most_value");
	kept_percent = option_integer("kept_percent");
	quiet_count = option_integer("quiet_requests");
	most_requests = option_integer("most_requests");
	clock_begin();
	options_done();
	scale = clock_scale();
	quiet = values_of(quiet_count);
	busy = values_of(most_requests);
	random = random_of(seed, 0);
	if (system("rm -rf " DIRECTORY " && mkdir -p " DIRECTORY))
		workload_fail("cannot create " DIRECTORY);
	fflush(stdout);
	server = fork();
	if (server < 0)
		workload_fail("fork: %s", strerror(errno));
	if (!server)
		serve();
	connect_to(server);

	fill(keys, kept_percent, &random);
	for (long n = 0; n < quiet_count; n++)
		quiet[n] = set_once(keys, &random);
	before = smaps_rollup(server);
	metric("rss_kib.before", "KiB", before.rss_kib);
	metric("anon_huge_kib.before", "KiB", before.anon_huge_kib);
	metric_reserved("reserved_kib.before");
	metric("rss_per_useful.ratio", "bytes/byte",
	       before.rss_kib * (double)KIB / info("memory", "used_memory"));

	available_kib = least_kib = meminfo_kib("MemAvailable:");
	faults = faults_of(server);
	send_all("BGSAVE\r\n", strlen("BGSAVE\r\n"));
	receive_lines(1);
	/* At least the requests between two checks, so that there is a latency even if the save was faster. */
	do {
		for (int n = 0; n < LOOK_EVERY && count < most_requests; n++)
			busy[count++] = set_once(keys, &random);
		if (meminfo_kib("MemAvailable:") < least_kib)
			least_kib = meminfo_kib("MemAvailable:");
	} while (info("persistence", "rdb_bgsave_in_progress") && count < most_requests);
	faults = faults_of(server) - faults;
	event("save", "\"requests\": %ld, \"ended\": %s", count,
	      info("persistence", "rdb_bgsave_in_progress") ? "false" : "true");
	sort_values(quiet, quiet_count);
	sort_values(busy, count);

	metric_clock("set_quiet_%s.p50", percentile(quiet, quiet_count, 0.50) * scale);
	metric_clock("set_quiet_%s.p99", percentile(quiet, quiet_count, 0.99) * scale);
	metric_clock("set_%s.p50", percentile(busy, count, 0.50) * scale);
	metric_clock("set_%s.p99", percentile(busy, count, 0.99) * scale);
	metric_clock("set_%s.max", busy[count - 1] * scale);
	/* Measured by Redis in guest microseconds; with icount, each is a thousand instructions. */
	metric_clock("fork_%s.total", info("stats", "latest_fork_usec") * 1000.0);
	metric("cow_faults.total", "faults", faults);
	metric("requests_while_saving.total", "requests", count);
	metric("snapshot_kib.max", "KiB", available_kib - least_kib);
	histogram("set_%s", busy, count);
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	workload_end();
}
