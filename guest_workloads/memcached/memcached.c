// SPDX-License-Identifier: GPL-2.0-only
/*
 * memcached: a server that is filled, and then reads and writes at random.
 *
 * A load like that of mutilate, of our own writing: each thread has one
 * connection over a Unix socket, and sends its next request when it has the
 * reply. Values have random sizes, so that the server's slabs fill unevenly;
 * most requests are for a small hot part of the keys. Every value that is
 * read is compared with what was written.
 */
#include "workload.h"

#include <errno.h>
#include <pthread.h>
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

#define SOCKET "/tmp/memcached.socket"
#define START_NS (60ULL * NS_PER_S)
#define LEAST_VALUE 16
#define MOST_VALUE 16384
/* Requests for hot keys, and the share of the keys that are hot. */
#define HOT_REQUESTS_PERCENT 80
#define HOT_KEYS_PERCENT 10

struct client {
	pthread_t thread;
	int fd, cpu;
	long first_key, keys, gets, sets;
	uint64_t *get_ticks, *set_ticks;
	struct random random;
	char reply[MOST_VALUE + 256], request[MOST_VALUE + 256];
};

static long keys, most_value, requests, get_percent;
static uint64_t seed;

/* The size and content of a key's value, which never change. */
static size_t size_of(long key)
{
	struct random random = random_of(seed, key + 1);

	return LEAST_VALUE + random_below(&random, most_value - LEAST_VALUE + 1);
}

static char letter_of(long key)
{
	return 'a' + key % 26;
}

static _Noreturn void serve(long threads, long memory)
{
	char text[2][32];

	snprintf(text[0], sizeof(text[0]), "%ld", threads);
	snprintf(text[1], sizeof(text[1]), "%ld", memory / (long)MIB);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execl("/usr/bin/memcached", "memcached", "-u", "root", "-s", SOCKET, "-t", text[0], "-m",
	      text[1], "-M", (char *)NULL);
	_exit(127);
}

static int connection_to(pid_t server)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = SOCKET };
	const struct timespec pause = { .tv_nsec = 10000000 };
	uint64_t began = monotonic_ns();
	int status, fd;

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		if (waitpid(server, &status, WNOHANG) == server)
			workload_fail(
				"memcached did not start (wait status %#x): is it in this image?",
				status);
		if (monotonic_ns() - began > START_NS)
			workload_fail("memcached did not listen within a minute");
		nanosleep(&pause, NULL);
	}
	return fd;
}

static void send_all(struct client *client, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t sent =
			send(client->fd, client->request + done, length - done, MSG_NOSIGNAL);

		if (sent <= 0)
			workload_fail("memcached closed the connection: %s", strerror(errno));
		done += sent;
	}
}

/* Reads until the reply ends with `end`, or is an error; returns its length. */
static size_t receive(struct client *client, const char *end)
{
	size_t length = 0, end_length = strlen(end);

	for (;;) {
		ssize_t got = recv(client->fd, client->reply + length,
				   sizeof(client->reply) - 1 - length, 0);

		if (got <= 0)
			workload_fail("memcached closed the connection: %s", strerror(errno));
		length += got;
		client->reply[length] = 0;
		if (length >= end_length && !strcmp(client->reply + length - end_length, end))
			return length;
		if (!strncmp(client->reply, "SERVER_ERROR", 12) ||
		    !strncmp(client->reply, "ERROR", 5) ||
		    !strncmp(client->reply, "CLIENT_ERROR", 12)) {
			client->reply[strcspn(client->reply, "\r\n\"")] = 0;
			workload_fail("memcached replied %s", client->reply);
		}
		if (length == sizeof(client->reply) - 1)
			workload_fail("memcached sent a reply that is too long");
	}
}

static void set(struct client *client, long key)
{
	size_t size = size_of(key), length;

	length = sprintf(client->request, "set key:%ld 0 0 %zu\r\n", key, size);
	memset(client->request + length, letter_of(key), size);
	memcpy(client->request + length + size, "\r\n", 2);
	send_all(client, length + size + 2);
	receive(client, "STORED\r\n");
}

static void get(struct client *client, long key)
{
	size_t size = size_of(key), length, body;
	char head[64];

	send_all(client, sprintf(client->request, "get key:%ld\r\n", key));
	length = receive(client, "END\r\n");
	body = sprintf(head, "VALUE key:%ld 0 %zu\r\n", key, size);
	if (length != body + size + strlen("\r\nEND\r\n") || memcmp(client->reply, head, body))
		workload_fail("memcached lost key %ld", key);
	for (size_t i = 0; i < size; i++)
		if (client->reply[body + i] != letter_of(key))
			workload_fail("the value of key %ld is not what was written", key);
}

static long random_key(struct client *client)
{
	long hot = keys * HOT_KEYS_PERCENT / 100;
	bool is_hot = random_below(&client->random, 100) < HOT_REQUESTS_PERCENT;

	return is_hot && hot ? random_below(&client->random, hot) :
			       random_below(&client->random, keys);
}

static void *fill(void *argument)
{
	struct client *client = argument;

	pin_to_cpu(client->cpu);
	for (long key = client->first_key; key < client->first_key + client->keys; key++)
		set(client, key);
	return NULL;
}

static void *load(void *argument)
{
	struct client *client = argument;

	for (long n = 0; n < requests; n++) {
		bool is_get = random_below(&client->random, 100) < (uint32_t)get_percent;
		long key = random_key(client);
		uint64_t began = ticks();

		if (is_get) {
			get(client, key);
			client->get_ticks[client->gets++] = ticks() - began;
		} else {
			set(client, key);
			client->set_ticks[client->sets++] = ticks() - began;
		}
	}
	return NULL;
}

static void in_threads(struct client *clients, long count, void *(*work)(void *))
{
	for (long i = 0; i < count; i++)
		if (pthread_create(&clients[i].thread, NULL, work, &clients[i]))
			workload_fail("cannot start client %ld", i);
	for (long i = 0; i < count; i++)
		pthread_join(clients[i].thread, NULL);
}

static void report(const char *name, uint64_t *values, long count)
{
	char format[64];

	if (!count)
		return;
	sort_values(values, count);
	snprintf(format, sizeof(format), "%s_%%s.p50", name);
	metric_clock(format, percentile(values, count, 0.50) * clock_scale());
	snprintf(format, sizeof(format), "%s_%%s.p99", name);
	metric_clock(format, percentile(values, count, 0.99) * clock_scale());
}

int main(int argc, char **argv)
{
	long count, threads, memory, gets = 0, sets = 0;
	uint64_t *get_ticks, *set_ticks, began, took;
	struct node nodes[MAX_NODES];
	struct client *clients;
	struct rollup use;
	int node_count;
	pid_t server;

	workload_begin(argc, argv);
	seed = option_integer("seed");
	count = option_integer("clients");
	threads = option_integer("threads");
	memory = option_integer("memory");
	keys = option_integer("keys");
	most_value = option_integer("most_value");
	requests = option_integer("requests");
	get_percent = option_integer("get_percent");
	clock_begin();
	options_done();
	node_count = nodes_find(nodes);
	unlink(SOCKET);
	fflush(stdout);
	server = fork();
	if (server < 0)
		workload_fail("fork: %s", strerror(errno));
	if (!server)
		serve(threads, memory);

	clients = calloc(count, sizeof(*clients));
	get_ticks = values_of(count * requests);
	set_ticks = values_of(count * requests);
	if (!clients)
		workload_fail("cannot prepare %ld clients", count);
	for (long i = 0; i < count; i++) {
		struct client *client = &clients[i];

		client->fd = connection_to(server);
		client->cpu = cpu_of_nodes(nodes, node_count, i);
		client->first_key = keys * i / count;
		client->keys = keys * (i + 1) / count - client->first_key;
		client->random = random_of(seed, -1 - i);
		client->get_ticks = values_of(requests);
		client->set_ticks = values_of(requests);
	}
	began = ticks();
	in_threads(clients, count, fill);
	took = ticks() - began;
	metric_clock("fill_%s.mean", took * clock_scale() / keys);
	began = ticks();
	in_threads(clients, count, load);
	took = ticks() - began;
	for (long i = 0; i < count; i++) {
		memcpy(get_ticks + gets, clients[i].get_ticks,
		       clients[i].gets * sizeof(*get_ticks));
		memcpy(set_ticks + sets, clients[i].set_ticks,
		       clients[i].sets * sizeof(*set_ticks));
		gets += clients[i].gets;
		sets += clients[i].sets;
	}
	metric_clock("request_%s.mean", took * clock_scale() / (gets + sets));
	report("get", get_ticks, gets);
	report("set", set_ticks, sets);
	use = smaps_rollup(server);
	metric("rss_kib.max", "KiB", use.rss_kib);
	metric("anon_huge_kib.after", "KiB", use.anon_huge_kib);
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	workload_end();
}
