// SPDX-License-Identifier: GPL-2.0-only
/*
 * argv-exec: run a command without a shell interpreting its arguments.
 *
 *	argv-exec TOKEN PAYLOAD		run it
 *	argv-exec TOKEN @		run it; the payload is in /run/argv-exec/TOKEN.argv
 *	argv-exec --kill TOKEN SIGNAL	signal its whole process group
 *	argv-exec --reseed		seed the kernel's random numbers with stdin
 *
 * SSH passes one string to the server, which passes it to a shell. PAYLOAD is
 * therefore base64url (RFC 4648, section 5, without padding) of fields that
 * each end with a NUL byte: the working directory (may be empty), the number
 * of environment entries in decimal, these entries (NAME=VALUE), and the
 * arguments.
 *
 * The command runs in a new session, with default signals and an OOM score of
 * 0. /run/argv-exec/TOKEN contains the number of its process group while it
 * runs. The exit status of this program is that of the command, if it is at
 * most 254. Else it is 255, and the file contains "exit 255" or "signal N".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef STATE
#define STATE "/run/argv-exec" /* a test overrides this */
#endif
#define TOLD 255 /* the real status is in the file */
#define CANNOT 126 /* sh(1): found but not executable */
#define NOT_FOUND 127 /* sh(1) */

static void fail(const char *what, const char *which)
{
	fprintf(stderr, "argv-exec: %s%s%s: %s\n", what, which ? " " : "", which ? which : "",
		strerror(errno));
	exit(CANNOT);
}

static void usage(const char *what)
{
	fprintf(stderr, "argv-exec: %s\n", what);
	exit(CANNOT);
}

static void state_path(char *path, size_t size, const char *token, const char *suffix)
{
	if (!*token || token[strspn(token, "0123456789abcdef")])
		usage("the token is not hexadecimal");
	if ((size_t)snprintf(path, size, STATE "/%s%s", token, suffix) >= size)
		usage("the token is too long");
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		fail("cannot write", path);
	close(fd);
}

/* The SSH server is protected from the OOM killer, and its children inherit that. */
static void reset_oom_score(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return; /* commands can run even without /proc */
	if (write(fd, "0", 1) != 1)
		fprintf(stderr, "argv-exec: cannot reset the OOM score: %s\n", strerror(errno));
	close(fd);
}

static char *read_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	char *text;
	size_t done = 0;

	if (fd < 0 || fstat(fd, &st) < 0)
		fail("cannot read", path);
	text = malloc(st.st_size + 1);
	if (!text)
		fail("cannot read", path);
	while (done < (size_t)st.st_size) {
		ssize_t got = read(fd, text + done, st.st_size - done);

		if (got <= 0)
			fail("cannot read", path);
		done += got;
	}
	text[done] = 0;
	close(fd);
	return text;
}

static int sextet(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '-' ? 62 : c == '_' ? 63 : -1;
}

/* Decode in place, since the result is never longer than the text. Returns its length. */
static size_t decode(char *text)
{
	unsigned int bits = 0, held = 0;
	size_t length = 0;

	for (const char *c = text; *c; c++) {
		int value = sextet(*c);

		if (value < 0)
			usage("the payload is not base64url");
		bits = bits << 6 | value;
		held += 6;
		if (held >= 8) {
			held -= 8;
			text[length++] = bits >> held;
		}
	}
	return length;
}

/* The next NUL-terminated field, or NULL at the end. */
static char *field(char **at, char *end)
{
	char *start = *at, *stop;

	if (start == end)
		return NULL;
	stop = memchr(start, 0, end - start);
	if (!stop)
		usage("the last field of the payload is not terminated");
	*at = stop + 1;
	return start;
}

static void run(char *directory, char **argv)
{
	sigset_t none;

	for (int signal_number = 1; signal_number < NSIG; signal_number++)
		signal(signal_number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	reset_oom_score();
	if (*directory && chdir(directory) < 0)
		fail("cannot change to", directory);
	execvp(argv[0], argv);
	fprintf(stderr, "argv-exec: %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? NOT_FOUND : CANNOT);
}

static int kill_group(const char *token, const char *number)
{
	char path[128];
	char *text;
	int group;

	state_path(path, sizeof(path), token, "");
	if (access(path, F_OK) < 0)
		return 0; /* it has ended already */
	text = read_file(path);
	if (sscanf(text, "group %d", &group) != 1)
		return 0;
	/* No such group: the child has not created it yet, or has just ended. */
	if (kill(-group, atoi(number)) < 0 &&
	    (errno != ESRCH || (kill(group, atoi(number)) < 0 && errno != ESRCH)))
		fail("cannot signal", path);
	return 0;
}

/* All clones of a saved boot would otherwise draw the same random numbers. */
static void reseed(void)
{
	int seed[2 + 16]; /* struct rand_pool_info: bits of entropy, bytes, the bytes */
	ssize_t size = read(STDIN_FILENO, seed + 2, sizeof(seed) - 2 * sizeof(*seed));
	int device = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

	if (size <= 0)
		usage("there is no seed");
	seed[0] = 8 * (int)size;
	seed[1] = (int)size;
	if (device < 0 || ioctl(device, RNDADDENTROPY, seed) < 0 ||
	    ioctl(device, RNDRESEEDCRNG) < 0)
		fail("cannot seed", "/dev/urandom");
	close(device);
}

int main(int argc, char **argv)
{
	char path[128], text[64];
	char *payload, *at, *end, *directory, *count;
	char **arguments;
	size_t capacity = 0, used = 0;
	int status, gate[2];
	pid_t child;

	if (argc == 4 && !strcmp(argv[1], "--kill"))
		return kill_group(argv[2], argv[3]);
	if (argc == 2 && !strcmp(argv[1], "--reseed")) {
		reseed();
		return 0;
	}
	if (argc != 3)
		usage("usage: argv-exec TOKEN PAYLOAD");

	if (!strcmp(argv[2], "@")) {
		state_path(path, sizeof(path), argv[1], ".argv");
		payload = read_file(path);
		unlink(path);
	} else {
		payload = argv[2];
	}
	at = payload;
	end = payload + decode(payload);
	directory = field(&at, end);
	count = field(&at, end);
	if (!directory || !count)
		usage("the payload has no command");
	for (int left = atoi(count); left > 0; left--) {
		char *entry = field(&at, end);

		if (!entry || !strchr(entry, '=') || putenv(entry))
			usage("the payload's environment is wrong");
	}
	for (char *c = at; c < end; c++)
		capacity += !*c;
	arguments = calloc(capacity + 1, sizeof(*arguments));
	if (!arguments)
		fail("out of memory", NULL);
	while (used < capacity)
		arguments[used++] = field(&at, end);
	if (at != end || !used)
		usage("the payload has no command");

	state_path(path, sizeof(path), argv[1], "");
	/* The child waits until the file with its process group exists, so that --kill always works. */
	if (pipe2(gate, O_CLOEXEC) < 0)
		fail("no pipe", NULL);
	child = fork();
	if (child < 0)
		fail("cannot fork", NULL);
	if (!child) {
		char byte;

		setsid();
		close(gate[1]);
		if (read(gate[0], &byte, 1) != 1)
			_exit(CANNOT);
		run(directory, arguments);
	}
	snprintf(text, sizeof(text), "group %d\n", child);
	write_file(path, text);
	/* Only the child should hold the streams, so that they end with the command. */
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	if (write(gate[1], "", 1) != 1)
		fail("cannot start", arguments[0]);
	close(STDERR_FILENO);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return TOLD; /* the file still contains "group": the status is unknown */
	if (WIFEXITED(status) && WEXITSTATUS(status) < TOLD) {
		unlink(path);
		return WEXITSTATUS(status);
	}
	if (WIFEXITED(status))
		snprintf(text, sizeof(text), "exit %d\n", WEXITSTATUS(status));
	else
		snprintf(text, sizeof(text), "signal %d\n", WTERMSIG(status));
	write_file(path, text);
	return TOLD;
}
