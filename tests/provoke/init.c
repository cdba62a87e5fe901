// SPDX-License-Identifier: GPL-2.0-only
/*
 * The only program of the guests in which record.py records reports. Its
 * argument `provoke=STEP[,STEP...]` on the kernel's command line says what to
 * do; each step is done by a child of its own:
 *
 *   NAME        write NAME to /sys/kernel/debug/provoke
 *   lkdtm:NAME  write NAME to /sys/kernel/debug/provoke-crash/DIRECT
 *   PATH=VALUE  write VALUE to PATH
 *   sleep:N     wait for N seconds
 *
 * `comm=NAME` names the children; an underscore stands for a space.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

static void put(const char *path, const char *value)
{
	int file = open(path, O_WRONLY);

	if (file < 0 || write(file, value, strlen(value)) < 0)
		fprintf(stderr, "init: cannot write %s to %s\n", value, path);
	if (file >= 0)
		close(file);
}

static void step(char *what, const char *comm)
{
	char *value = strchr(what, '=');

	prctl(PR_SET_NAME, comm, 0, 0, 0);
	if (!strncmp(what, "lkdtm:", 6)) {
		put("/sys/kernel/debug/provoke-crash/DIRECT", what + 6);
	} else if (*what == '/' && value) {
		*value = 0;
		put(what, value + 1);
	} else {
		put("/sys/kernel/debug/provoke", what);
	}
}

int main(void)
{
	static char line[4096], steps[4096], comm[16] = "provoke it";
	char *word, *rest;
	FILE *file;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	file = fopen("/proc/cmdline", "r");
	if (!file || !fgets(line, sizeof(line), file))
		return 1;
	for (word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
		if (!strncmp(word, "provoke=", 8))
			strcpy(steps, word + 8);
		if (!strncmp(word, "comm=", 5))
			snprintf(comm, sizeof(comm), "%s", word + 5);
	}
	for (word = comm; *word; word++)
		if (*word == '_')
			*word = ' ';
	for (word = strtok_r(steps, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
		char mark[256];
		pid_t child;

		snprintf(mark, sizeof(mark), "<5>provoke: %s\n", word);
		put("/dev/kmsg", mark);
		if (!strncmp(word, "sleep:", 6)) {
			sleep(atoi(word + 6));
			continue;
		}
		child = fork();
		if (!child) {
			step(word, comm);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	put("/dev/kmsg", "<5>provoke: done\n");
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
