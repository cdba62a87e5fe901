// SPDX-License-Identifier: GPL-2.0-only
/*
 * For LD_PRELOAD: the clock of the day is off by as many seconds as the file $ORCHESTRATE_CLOCK says, and jumps when the
 * file changes. The monotonic clock, which a jump leaves alone, is left alone. libfaketime 0.9.10 does not do that: with
 * it clock_nanosleep(2) on the monotonic clock fails with EINVAL after a jump, and so does Python's time.sleep().
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void)
{
	const char *path = getenv("ORCHESTRATE_CLOCK");
	char text[32] = "";
	int fd;

	if (!path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int error = syscall(SYS_clock_gettime, clock, now);

	if (!error && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += offset();
	return error;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;
	int error = clock_gettime(CLOCK_REALTIME, &precise);

	(void)zone;
	if (!error) {
		now->tv_sec = precise.tv_sec;
		now->tv_usec = precise.tv_nsec / 1000;
	}
	return error;
}

time_t time(time_t *kept)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	if (kept)
		*kept = now.tv_sec;
	return now.tv_sec;
}
