// SPDX-License-Identifier: GPL-2.0-only
/*
 * khugepaged-barrier: wait until khugepaged has scanned everything.
 *
 *	khugepaged-barrier ADVANCE BOUND_MS
 *
 * If two full scans end from now on, at least one of them also began after
 * now, so all earlier mappings have been scanned. Prints the number of scans.
 * The exit status is 3 after BOUND_MS of guest time, e.g. because khugepaged
 * is disabled.
 *
 * khugepaged only counts scans while it has something to scan, so this
 * program maps some memory. It touches one page of it, as otherwise khugepaged
 * would not scan it (mm/huge_memory.c, __thp_vma_allowable_orders()). The page
 * is before the first aligned range, so that nothing is ever collapsed.
 *
 * Writing scan_sleep_millisecs wakes up khugepaged (mm/khugepaged.c,
 * __sleep_millisecs_store()), so the current value is written back each time;
 * the setting does not change.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define DIRECTORY "/sys/kernel/mm/transparent_hugepage/khugepaged/"
#define LOOK_NS 2000000L
#define HUGE_PAGE (2UL << 20)
#define NS_PER_MS 1000000LL

static int text_of(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = 0;
	return got > 0;
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* A mapping from the middle of one range to the middle of the next but one. */
static int give_work(void)
{
	char *start = mmap(NULL, 4 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	char *middle;

	if (start == MAP_FAILED)
		return 0;
	middle = start + (HUGE_PAGE - (uintptr_t)start % HUGE_PAGE) + HUGE_PAGE / 2;
	munmap(start, middle - start);
	munmap(middle + 2 * HUGE_PAGE, start + 2 * HUGE_PAGE - middle);
	*(volatile char *)middle = 1;
	return !madvise(middle, 2 * HUGE_PAGE, MADV_HUGEPAGE);
}

int main(int argc, char **argv)
{
	char text[32], interval[32];
	unsigned long first, advance;
	long long end;

	if (argc != 3) {
		fprintf(stderr, "usage: khugepaged-barrier ADVANCE BOUND_MS\n");
		return 2;
	}
	advance = strtoul(argv[1], NULL, 10);
	end = now() + strtoll(argv[2], NULL, 10) * NS_PER_MS;
	if (!text_of(DIRECTORY "full_scans", text, sizeof(text)) ||
	    !text_of(DIRECTORY "scan_sleep_millisecs", interval, sizeof(interval))) {
		fprintf(stderr, "khugepaged-barrier: this kernel has no " DIRECTORY "full_scans\n");
		return 1;
	}
	first = strtoul(text, NULL, 10);
	if (!give_work()) {
		fprintf(stderr, "khugepaged-barrier: cannot map memory to scan: %s\n",
			strerror(errno));
		return 1;
	}
	for (;;) {
		const struct timespec pause = { .tv_nsec = LOOK_NS };
		unsigned long scans;
		int fd;

		if (!text_of(DIRECTORY "full_scans", text, sizeof(text)))
			return 1;
		scans = strtoul(text, NULL, 10);
		if (scans - first >= advance) {
			printf("%lu\n", scans - first);
			return 0;
		}
		if (now() >= end) {
			fprintf(stderr, "khugepaged-barrier: %lu of %lu full scans in %s ms\n",
				scans - first, advance, argv[2]);
			return 3;
		}
		fd = open(DIRECTORY "scan_sleep_millisecs", O_WRONLY);
		if (fd >= 0) {
			if (write(fd, interval, strlen(interval)) < 0)
				fprintf(stderr, "khugepaged-barrier: cannot wake it: %s\n",
					strerror(errno));
			close(fd);
		}
		nanosleep(&pause, NULL);
	}
}
