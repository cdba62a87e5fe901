// SPDX-License-Identifier: GPL-2.0-only
/* All operations at once, by many threads and processes, with the expected contents of each page recorded. */
#include "tests.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#define COUNT 5
#define SECONDS 15

static volatile bool stop;

struct worker {
	unsigned int number;
	unsigned int rounds;
	unsigned int wrong;
};

static void reset(struct image *image, unsigned int first, unsigned int count)
{
	memset(image->seed + first, 0, count);
}

/* Each thread works in its own regions; the mm, its tree and its locks are shared. */
static void *work(void *argument)
{
	struct worker *me = argument;
	struct random random = random_of(4711, me->number);
	struct image *image = image_of(COUNT);
	char *start = regions(COUNT);

	while (!stop) {
		unsigned int region = random_below(&random, COUNT),
			     slot = random_below(&random, 512);
		unsigned int page = region * 512 + slot;

		me->wrong += !page_is(start + page * PAGE, image->seed[page]);
		if (random_below(&random, 3))
			put(image, start, region, slot, 1 + random_below(&random, 255));
		if (++me->rounds % 64)
			continue;
		switch (random_below(&random, 12)) {
		case 0: {
			/* Other threads continue, so the child checks only the regions of this thread. */
			pid_t child = fork();

			if (!child) {
				unsigned int wrong = wrong_pages(image, start);

				for (unsigned int i = 0; i < COUNT * 512; i += 3)
					page_fill(start + i * PAGE, 7);
				_exit(wrong != 0);
			}
			me->wrong += child < 0 ? 0 : end_of(child) != 0;
			break;
		}
		case 1:
			madvise(start + region * REGION, REGION, MADV_DONTNEED);
			reset(image, region * 512, 512);
			break;
		case 2:
			madvise(PAGE_OF(start, region, slot), PAGE, MADV_DONTNEED);
			reset(image, page, 1);
			break;
		case 3:
			mmap(start + region * REGION, REGION, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			reset(image, region * 512, 512);
			break;
		case 4:
		case 5:
			madvise(start + region * REGION, REGION, MADV_COLLAPSE);
			break;
		case 6:
			mprotect(PAGE_OF(start, region, slot), PAGE, PROT_READ);
			mprotect(start, COUNT * REGION, PROT_READ | PROT_WRITE);
			break;
		case 7: {
			char *to = regions(COUNT);

			/* Region by region, so that VMA borders in between do not matter. */
			for (unsigned int i = 0; i < COUNT; i++)
				me->wrong += mremap(start + i * REGION, REGION, REGION,
						    MREMAP_MAYMOVE | MREMAP_FIXED,
						    to + i * REGION) == MAP_FAILED;
			/* Unmap only the remainder: the rest is unmapped, and may be reused by another thread. */
			munmap(start + COUNT * REGION, REGION);
			start = to;
			break;
		}
		case 8:
			madvise(start + region * REGION, REGION, MADV_PAGEOUT);
			break;
		case 9:
			for (unsigned int i = 0; i < 512; i++)
				put(image, start, region, i, seed_of(region, i, me->rounds));
			break;
		default:
			me->wrong += wrong_pages(image, start) != 0;
		}
	}
	me->wrong += wrong_pages(image, start);
	unmap(start, COUNT);
	free(image);
	return NULL;
}

static void *disturb(void *argument)
{
	unsigned int round = 0;

	(void)argument;
	while (!stop) {
		switch (round++ % 4) {
		case 0:
			try_write("/sys/kernel/debug/thp_reserve/dump", "1");
			break;
		case 1:
			try_write("/proc/sys/vm/drop_caches", "3");
			break;
		case 2:
			try_write("/proc/sys/vm/compact_memory", "1");
			break;
		default:
			try_write("/sys/kernel/debug/split_huge_pages", "1");
		}
		usleep(50000);
	}
	return NULL;
}

static void everything(unsigned int processes, unsigned int threads, int pages)
{
	struct counters before, now;
	pid_t children[8];

	threshold(pages);
	scan_often(true);
	before = counters();
	for (unsigned int process = 0; process < processes; process++) {
		struct worker workers[8] = { 0 };
		pthread_t ids[8], disturber;
		unsigned int wrong = 0, rounds = 0;

		children[process] = begin_child();
		if (children[process])
			continue;
		for (unsigned int i = 0; i < threads; i++) {
			workers[i].number = process * 8 + i;
			REQUIRE(!pthread_create(&ids[i], NULL, work, &workers[i]),
				"pthread_create");
		}
		if (!process)
			REQUIRE(!pthread_create(&disturber, NULL, disturb, NULL), "pthread_create");
		sleep(SECONDS);
		stop = true;
		for (unsigned int i = 0; i < threads; i++) {
			pthread_join(ids[i], NULL);
			wrong += workers[i].wrong;
			rounds += workers[i].rounds;
		}
		if (!process)
			pthread_join(disturber, NULL);
		note("process %u: %u accesses", process, rounds);
		EXPECT(!wrong, "%u of %u times a page was wrong", wrong, rounds);
		test_end();
	}
	for (unsigned int process = 0; process < processes; process++)
		end_child(children[process]);
	scan_often(false);
	now = since(before);
	note("%ld reservations, %ld promoted in place, %ld by copy, %ld dumped, %ld failed",
	     now.alloc, now.collapsed, now.copied, now.dumped, now.failed);
}

static void stress_threads(void)
{
	everything(2, 4, 200);
}

static void stress_processes(void)
{
	everything(6, 1, 100);
}

static void stress_memcg(void)
{
	pid_t child = begin_child();

	if (!child) {
		memcg_enter("stress", 96 * 1024);
		everything(2, 3, 128);
		memcg_leave("stress");
		test_end();
	}
	end_child(child);
}

const struct test stress_tests[] = {
	{ "stress_threads", stress_threads, "reserve", ANY_KERNEL | MATRIX,
	  "threads of one mm race for its reservations" },
	{ "stress_processes", stress_processes, "reserve", ANY_KERNEL | MATRIX,
	  "processes race for memory" },
	{ "stress_memcg", stress_memcg, "reserve", ANY_KERNEL | MATRIX,
	  "a memcg at its limit loses contents" },
	{ 0 },
};
