// SPDX-License-Identifier: GPL-2.0-only
/*
 * Races with khugepaged, in a fixed order: it is held at a point of the kernel
 * by a debugger outside of the guest, another thread does something to the
 * range until it has ended or is blocked, and khugepaged goes on.
 *
 * The debugger reads "# race: hold POINT" and "# race: release" from standard
 * output and answers in the file CUE: armed, then held or missed; released.
 * With --unguided N there is no debugger: a race runs N times, with a random
 * delay.
 */
#include "tests.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef PR_SET_THP_DISABLE
#define PR_SET_THP_DISABLE 41
#endif

#define CUE "/run/race"
#define CUE_MS 60000
/* A thread that has not ended after this time is blocked. */
#define BLOCKED_MS 1000
/* Written slots: as many as promote the range. */
#define WRITTEN 256
/* khugepaged has charged the pages it will need, and holds no lock. */
#define CHARGED "after __thp_resv_charge"
/* khugepaged has the mmap lock, and has found the range complete. */
#define CHECKED "after thp_resv_in_place"
/* khugepaged has cleared the PMD, and will isolate the pages. */
#define CLEARED "tlb_remove_table_sync_one"
/* khugepaged has locked and isolated the pages, and will freeze their references. */
#define ISOLATED "thp_resv_collapse"

unsigned int unguided;

struct scene {
	char *start;
	/* Where the range is after mremap(). */
	char *now;
	struct image *image;
	int pipe[2];
	int uffd;
	pid_t child;
	int parent_wrote[2];
};

struct race {
	const char *point;
	void (*before)(struct scene *scene);
	/* Runs in another thread while khugepaged is held. */
	void (*act)(struct scene *scene);
	void (*after)(struct scene *scene);
	/* In a memory cgroup of its own, whose charge is checked. */
	bool memcg;
};

static const struct race *current_race;
static volatile bool may_act, has_acted;

static void wait_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

/* Wait for the debugger; returns whether it says `wanted`. */
static bool cue(const char *wanted)
{
	char text[16];

	for (long waited = 0; waited < CUE_MS; waited += 2) {
		int fd = open(CUE, O_RDONLY | O_CLOEXEC);
		ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

		if (fd >= 0)
			close(fd);
		if (length > 0) {
			unlink(CUE);
			text[length] = 0;
			text[strcspn(text, "\n")] = 0;
			return !strcmp(text, wanted);
		}
		wait_ms(2);
	}
	return false;
}

static void *actor(void *scene)
{
	while (!may_act)
		sched_yield();
	current_race->act(scene);
	__sync_synchronize();
	has_acted = true;
	return NULL;
}

static unsigned int slot_of(unsigned int nth)
{
	return nth * (PAGES_PER_REGION / WRITTEN);
}

static void begin_scene(struct scene *scene, const struct race *race)
{
	memset(scene, 0, sizeof(*scene));
	scene->image = image_of(1);
	/* No MADV_HUGEPAGE: such a range may get a huge page at once. */
	scene->start = map_regions(REGION);
	REQUIRE(scene->start, "mmap: %s", strerror(errno));
	scene->now = scene->start;
	/* A fork after the writes would write-protect all pages, and khugepaged skips such a range. */
	if (race->before)
		race->before(scene);
	/* Above the number of pages: no promotion before khugepaged's. */
	threshold(PAGES_PER_REGION);
	for (unsigned int nth = 0; nth < WRITTEN; nth++)
		put(scene->image, scene->start, 0, slot_of(nth), seed_of(0, slot_of(nth), 0));
}

static void end_scene(struct scene *scene)
{
	expect_contents(scene->image, scene->now, "after the race");
	/* A huge page is still a page to each of its users. */
	for (unsigned int slot = 1; slot < PAGES_PER_REGION; slot += 64)
		put(scene->image, scene->now, 0, slot, seed_of(0, slot, 5));
	expect_contents(scene->image, scene->now, "after writes that follow the race");
	munmap(scene->now, REGION);
	free(scene->image);
}

static void guide(const struct race *race)
{
	bool held;

	unlink(CUE);
	printf("# race: hold %s\n", race->point);
	fflush(stdout);
	REQUIRE(cue("armed"),
		"the debugger does not answer; run it with orchestrate test --suite races");
	threshold(WRITTEN);
	scan_often(true);
	held = cue("held");
	EXPECT(held, "khugepaged did not come to %s", race->point);
	may_act = true;
	for (long waited = 0; held && !has_acted && waited < BLOCKED_MS; waited += 5)
		wait_ms(5);
	note("%s", has_acted ? "the other task ended while khugepaged was held" :
			       "the other task was blocked while khugepaged was held");
	printf("# race: release\n");
	fflush(stdout);
	EXPECT(cue("released"), "the debugger does not release khugepaged");
}

static void run_race(const struct race *race, unsigned int round)
{
	struct random random = random_of(round, 17);
	struct scene scene;
	pthread_t thread;
	long event_before = event_count("nr_isolated_anon");

	current_race = race;
	may_act = has_acted = false;
	begin_scene(&scene, race);
	REQUIRE(!pthread_create(&thread, NULL, actor, &scene), "pthread_create");
	if (unguided) {
		threshold(WRITTEN);
		scan_often(true);
		/* A pass of khugepaged begins every 10 ms. */
		usleep(random_below(&random, 20000));
		may_act = true;
		usleep(10000);
	} else {
		guide(race);
	}
	pthread_join(thread, NULL);
	if (!unguided)
		scans();
	scan_often(false);
	if (race->after)
		race->after(&scene);
	end_scene(&scene);
	if (!unguided)
		EXPECT(event_count("nr_isolated_anon") == event_before,
		       "%ld pages are isolated for ever",
		       event_count("nr_isolated_anon") - event_before);
}

static void run(const struct race *race)
{
	/* A suite may have disabled huge pages for everybody else. */
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	setting(THP "enabled", "always");
	if (race->memcg)
		memcg_enter("race", 0);
	for (unsigned int round = 0; round < (unguided ? unguided : 1); round++)
		run_race(race, round);
	if (race->memcg) {
		long left;

		expect_identity("before the cgroup ends");
		left = memcg_number("race", "memory.current");
		/* Of the test itself: its stack, its tables. */
		EXPECT(left >= 0 && left < 8 << 20,
		       "the cgroup is charged %ld bytes after the race", left);
		memcg_leave("race");
	}
}

/* ---- what others do ---- */

static void unmap_half(struct scene *scene)
{
	munmap(scene->start + REGION / 2, REGION / 2);
}

/* The other half comes back empty, so that the whole range can be compared. */
static void map_half(struct scene *scene)
{
	REQUIRE(mmap(scene->start + REGION / 2, REGION / 2, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		"mmap: %s", strerror(errno));
	memset(scene->image->seed + PAGES_PER_REGION / 2, 0, PAGES_PER_REGION / 2);
}

static void write_more(struct scene *scene)
{
	for (unsigned int slot = 1; slot < 128; slot += 2)
		put(scene->image, scene->start, 0, slot, seed_of(0, slot, 0));
}

/* A new range at the same address, which lacks more pages than what khugepaged has charged for. */
static void map_again(struct scene *scene)
{
	munmap(scene->start, REGION);
	if (mmap(scene->start, REGION, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != scene->start)
		return;
	for (unsigned int slot = 0; slot < WRITTEN; slot++)
		page_fill(PAGE_OF(scene->start, 0, slot), seed_of(0, slot, 3));
}

static void expect_mapped_again(struct scene *scene)
{
	memset(scene->image->seed, 0, PAGES_PER_REGION);
	for (unsigned int slot = 0; slot < WRITTEN; slot++)
		scene->image->seed[slot] = seed_of(0, slot, 3);
}

static void discard(struct scene *scene)
{
	madvise(scene->start, REGION, MADV_DONTNEED);
	page_fill(PAGE_OF(scene->start, 0, 3), seed_of(0, 3, 4));
}

static void expect_discarded(struct scene *scene)
{
	memset(scene->image->seed, 0, PAGES_PER_REGION);
	scene->image->seed[3] = seed_of(0, 3, 4);
}

/* Parent and child share the pages while khugepaged goes on. */
static void prepare_child(struct scene *scene)
{
	REQUIRE(!pipe(scene->parent_wrote), "pipe");
}

static void fork_child(struct scene *scene)
{
	char byte;

	scene->child = fork();
	if (scene->child)
		return;
	/* The parent's writes come first; none of them may be seen here. */
	if (read(scene->parent_wrote[0], &byte, 1) != 1)
		_exit(3);
	for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot++)
		if (!page_is(PAGE_OF(scene->start, 0, slot), scene->image->seed[slot]))
			_exit(2);
	for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot += 3)
		page_fill(PAGE_OF(scene->start, 0, slot), 99);
	_exit(0);
}

static void end_forked_child(struct scene *scene)
{
	int status;

	expect_contents(scene->image, scene->start, "the parent after the race");
	for (unsigned int slot = 0; slot < PAGES_PER_REGION; slot += 2)
		put(scene->image, scene->start, 0, slot, seed_of(0, slot, 6));
	REQUIRE(write(scene->parent_wrote[1], "x", 1) == 1, "write");
	status = end_of(scene->child);
	EXPECT(!status, "the child ended with %#x: it sees its parent's writes, or others'",
	       status);
	close(scene->parent_wrote[0]);
	close(scene->parent_wrote[1]);
}

static void prepare_pipe(struct scene *scene)
{
	REQUIRE(!pipe(scene->pipe), "pipe");
}

/* The pipe refers to the page itself. */
static void pin(struct scene *scene)
{
	struct iovec page = { PAGE_OF(scene->start, 0, slot_of(7)), PAGE };

	EXPECT(vmsplice(scene->pipe[1], &page, 1, 0) == (ssize_t)PAGE, "vmsplice: %s",
	       strerror(errno));
}

static void expect_pinned(struct scene *scene)
{
	char *copy = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t done = 0;
	ssize_t length = 1;

	REQUIRE(copy != MAP_FAILED, "mmap");
	expect_contents(scene->image, scene->now, "with a pinned page");
	for (; done < PAGE && length > 0; done += length)
		length = read(scene->pipe[0], copy + done, PAGE - done);
	EXPECT(page_is(copy, scene->image->seed[slot_of(7)]), "the pinned page has other contents");
	munmap(copy, PAGE);
	close(scene->pipe[0]);
	close(scene->pipe[1]);
}

static void begin_swap(struct scene *scene)
{
	(void)scene;
	swap_begin(64);
}

static void swap_out(struct scene *scene)
{
	madvise(scene->start, REGION, MADV_PAGEOUT);
}

static void prepare_target(struct scene *scene)
{
	scene->now = map_regions(REGION);
	REQUIRE(scene->now, "mmap");
}

static void move(struct scene *scene)
{
	if (mremap(scene->start, REGION, REGION, MREMAP_MAYMOVE | MREMAP_FIXED, scene->now) !=
	    scene->now)
		note("mremap: %s", strerror(errno));
}

static void lock(struct scene *scene)
{
	EXPECT(!mlock(scene->start, REGION), "mlock: %s", strerror(errno));
}

/* mlock() maps all pages. */
static void unlock(struct scene *scene)
{
	expect_contents(scene->image, scene->start, "locked");
	munlock(scene->start, REGION);
}

static void free_lazily(struct scene *scene)
{
	madvise(scene->start, REGION, MADV_FREE);
	for (unsigned int nth = 0; nth < WRITTEN; nth++)
		page_fill(PAGE_OF(scene->start, 0, slot_of(nth)), scene->image->seed[slot_of(nth)]);
}

static void protect_half(struct scene *scene)
{
	mprotect(scene->start + REGION / 2, REGION / 2, PROT_READ);
}

static void unprotect_half(struct scene *scene)
{
	mprotect(scene->start + REGION / 2, REGION / 2, PROT_READ | PROT_WRITE);
}

static void register_uffd(struct scene *scene)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (uintptr_t)scene->start, REGION },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	scene->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (scene->uffd < 0 || ioctl(scene->uffd, UFFDIO_API, &api) ||
	    ioctl(scene->uffd, UFFDIO_REGISTER, &range))
		note("userfaultfd: %s", strerror(errno));
}

/* A missing page is the monitor's business: khugepaged must not have filled it. */
static void close_uffd(struct scene *scene)
{
	EXPECT(!huge_regions(scene->start, 1), "a range with userfaultfd was promoted");
	close(scene->uffd);
}

static void migrate(struct scene *scene)
{
	unsigned long node = node_of(PAGE_OF(scene->start, 0, slot_of(3))) ? 1 : 2;
	void *pages[16];
	int nodes[16], status[16];

	for (unsigned int nth = 0; nth < ARRAY_SIZE(pages); nth++) {
		pages[nth] = PAGE_OF(scene->start, 0, slot_of(nth));
		nodes[nth] = node - 1;
	}
	syscall(SYS_move_pages, 0, ARRAY_SIZE(pages), pages, nodes, status, 0);
}

static void need_two_nodes(struct scene *scene)
{
	(void)scene;
	if (node_count() < 2)
		skip("one node only");
}

/* Reserved pages are given up, in this test by request. */
static void give_up(struct scene *scene)
{
	(void)scene;
	if (!dump())
		note("nothing gives up reservations on request");
}

static void need_dump(struct scene *scene)
{
	(void)scene;
	if (!has_stage("shrinker"))
		skip("nothing gives up reservations on request");
}

static void write_empty_slot(struct scene *scene)
{
	page_fill(PAGE_OF(scene->start, 0, 9), 77);
}

static void expect_written(struct scene *scene)
{
	scene->image->seed[9] = 77;
}

/* ---- the races ---- */

#define RACE(name, point, before, act, after, memcg)                                  \
	static void race_##name(void)                                                 \
	{                                                                             \
		static const struct race race = { point, before, act, after, memcg }; \
		run(&race);                                                           \
	}

RACE(munmap, CHARGED, NULL, unmap_half, map_half, false)
RACE(map_again, CHARGED, write_more, map_again, expect_mapped_again, true)
RACE(dontneed, CHARGED, NULL, discard, expect_discarded, false)
RACE(fork, CHARGED, prepare_child, fork_child, end_forked_child, false)
RACE(pin, CHARGED, prepare_pipe, pin, expect_pinned, false)
RACE(swap, CHARGED, begin_swap, swap_out, NULL, false)
RACE(mremap, CHARGED, prepare_target, move, NULL, false)
RACE(mlock, CHARGED, NULL, lock, unlock, false)
RACE(free, CHARGED, NULL, free_lazily, NULL, false)
RACE(mprotect, CHARGED, NULL, protect_half, unprotect_half, false)
RACE(uffd, CHARGED, NULL, register_uffd, close_uffd, false)
RACE(migrate, CHARGED, need_two_nodes, migrate, NULL, false)
RACE(dump, CHARGED, need_dump, give_up, NULL, true)
RACE(dump_checked, CHECKED, need_dump, give_up, NULL, true)
RACE(dump_isolated, ISOLATED, need_dump, give_up, NULL, true)
RACE(migrate_cleared, CLEARED, need_two_nodes, migrate, NULL, false)
RACE(fork_isolated, ISOLATED, prepare_child, fork_child, end_forked_child, false)
RACE(pin_isolated, ISOLATED, prepare_pipe, pin, expect_pinned, false)
RACE(write_isolated, ISOLATED, NULL, write_empty_slot, expect_written, false)
RACE(munmap_isolated, ISOLATED, NULL, unmap_half, map_half, false)
RACE(swap_isolated, ISOLATED, begin_swap, swap_out, NULL, false)
RACE(mremap_isolated, ISOLATED, prepare_target, move, NULL, false)

const struct test race_tests[] = {
	{ "race_munmap", race_munmap, "in-place", ORDERED, "the VMA is not looked up again" },
	{ "race_map_again", race_map_again, "in-place", ORDERED,
	  "the charge is for the range that was there before" },
	{ "race_dontneed", race_dontneed, "in-place", ORDERED, "pages that are gone are promoted" },
	{ "race_fork", race_fork, "in-place", ORDERED, "a shared page is promoted" },
	{ "race_pin", race_pin, "in-place", ORDERED, "a pinned page is frozen" },
	{ "race_swap", race_swap, "in-place", ORDERED, "what is swapped out is lost" },
	{ "race_mremap", race_mremap, "in-place", ORDERED, "the old address is promoted" },
	{ "race_mlock", race_mlock, "in-place", ORDERED, "a locked page is promoted in place" },
	{ "race_free", race_free, "in-place", ORDERED,
	  "isolated pages are counted in another list" },
	{ "race_mprotect", race_mprotect, "in-place", ORDERED, "two VMAs share a huge page" },
	{ "race_uffd", race_uffd, "in-place", ORDERED, "missing pages are filled" },
	{ "race_migrate", race_migrate, "in-place", ORDERED,
	  "another page is taken for the block's" },
	{ "race_dump", race_dump, "in-place", ORDERED, "a reservation that is gone is used" },
	{ "race_dump_checked", race_dump_checked, "in-place", ORDERED,
	  "it is not looked up again after the check" },
	{ "race_dump_isolated", race_dump_isolated, "in-place", ORDERED,
	  "it is not looked up again after the isolation" },
	{ "race_migrate_cleared", race_migrate_cleared, "in-place", ORDERED,
	  "pages move after the check" },
	{ "race_fork_isolated", race_fork_isolated, "in-place", ORDERED,
	  "the child gets stale page tables" },
	{ "race_pin_isolated", race_pin_isolated, "in-place", ORDERED,
	  "a fast pin misses that the PMD was cleared" },
	{ "race_write_isolated", race_write_isolated, "in-place", ORDERED,
	  "a fault maps a page into a table that is gone" },
	{ "race_munmap_isolated", race_munmap_isolated, "in-place", ORDERED,
	  "an unmapped range gets a huge page" },
	{ "race_swap_isolated", race_swap_isolated, "in-place", ORDERED,
	  "isolated pages are reclaimed" },
	{ "race_mremap_isolated", race_mremap_isolated, "in-place", ORDERED,
	  "the page table moves while it is emptied" },
	{ 0 },
};
