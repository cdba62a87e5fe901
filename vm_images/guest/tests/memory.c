// SPDX-License-Identifier: GPL-2.0-only
/* Counters, contents of pages and the kernel's settings, for the tests. */
#include "tests.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <time.h>

#define PATTERNS 256
#define ZRAM "/dev/zram0"
#define CGROUPS "/sys/fs/cgroup/"
#define DUMP "/sys/kernel/debug/thp_reserve/dump"

/* ---- the kernel's settings ---- */

int try_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error;

	if (fd < 0)
		return -errno;
	error = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return error;
}

void huge_pages(bool allowed)
{
	EXPECT(!prctl(PR_SET_THP_DISABLE, !allowed, 0, 0, 0), "PR_SET_THP_DISABLE: %s",
	       strerror(errno));
}

void setting(const char *path, const char *text)
{
	int error = try_write(path, text);

	/* A kernel without the series has no threshold. */
	if (error == -ENOENT && !has_stage("threshold-knob") && strstr(path, "promotion_threshold"))
		return;
	EXPECT(!error, "%s rejects %s: %s", path, text, strerror(-error));
}

long number_in(const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return *text ? atol(text) : -1;
}

void threshold(int pages)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", pages);
	setting(THP "promotion_threshold", text);
}

/* Writing the interval wakes up khugepaged, so write it only if it changes; one page at a time is almost nothing. */
void scan_often(bool often)
{
	long interval = often ? 10 : 600000;
	char text[16];

	if (number_in(KHUGEPAGED "scan_sleep_millisecs") == interval &&
	    number_in(KHUGEPAGED "pages_to_scan") == (often ? 100000 : 1))
		return;
	setting(KHUGEPAGED "pages_to_scan", often ? "100000" : "1");
	setting(KHUGEPAGED "alloc_sleep_millisecs", "10");
	snprintf(text, sizeof(text), "%ld", interval);
	setting(KHUGEPAGED "scan_sleep_millisecs", text);
	/* A pass that has begun runs to its end. */
	if (!often)
		usleep(200000);
}

void scans(void)
{
	pid_t child;

	fflush(stdout);
	/* fork() would write-protect the pages, and khugepaged skips ranges without a writable page. */
	child = vfork();
	if (!child) {
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execlp("khugepaged-barrier", "khugepaged-barrier", "2", "300000", NULL);
		_exit(127);
	}
	EXPECT(!end_of(child), "khugepaged did not finish its scans");
}

bool dump(void)
{
	if (!try_write(DUMP, "1"))
		return true;
	if (has_stage("shrinker"))
		setting("/proc/sys/vm/drop_caches", "2");
	return has_stage("shrinker");
}

static void memcg_path(char *path, size_t size, const char *name, const char *file)
{
	snprintf(path, size, CGROUPS "%s%s%s", name, *file ? "/" : "", file);
}

void memcg_enter(const char *name, long kib)
{
	char path[128], text[32];

	if (access(CGROUPS "cgroup.controllers", R_OK))
		skip("there are no control groups");
	try_write(CGROUPS "cgroup.subtree_control", "+memory");
	memcg_path(path, sizeof(path), name, "");
	mkdir(path, 0755);
	if (kib) {
		memcg_path(path, sizeof(path), name, "memory.max");
		snprintf(text, sizeof(text), "%ld", kib * 1024);
		setting(path, text);
	}
	memcg_path(path, sizeof(path), name, "cgroup.procs");
	setting(path, "0");
}

void memcg_leave(const char *name)
{
	char path[128];

	setting(CGROUPS "cgroup.procs", "0");
	memcg_path(path, sizeof(path), name, "");
	/* Its processes may still be exiting. */
	for (int attempt = 0; rmdir(path) < 0 && attempt < 100; attempt++)
		usleep(20000);
	EXPECT(access(path, F_OK) < 0, "the memcg %s cannot be removed", name);
}

long memcg_number(const char *name, const char *file)
{
	char path[128];

	memcg_path(path, sizeof(path), name, file);
	return number_in(path);
}

static long line_in(const char *path, const char *key)
{
	FILE *file = fopen(path, "r");
	char name[64];
	long value, found = -1;

	while (file && fscanf(file, "%63s %ld", name, &value) == 2)
		if (!strcmp(name, key))
			found = value;
	if (file)
		fclose(file);
	return found;
}

long memcg_stat(const char *name, const char *file, const char *key)
{
	char path[128];

	memcg_path(path, sizeof(path), name, file);
	return line_in(path, key);
}

int node_count(void)
{
	struct node nodes[MAX_NODES];

	return nodes_find(nodes);
}

void bind_to(char *start, size_t size, int node)
{
	unsigned long mask = 1UL << node;

	EXPECT(!syscall(SYS_mbind, start, size, MPOL_BIND, &mask, 64, 0), "mbind to node %d: %s",
	       node, strerror(errno));
}

bool swap_is_on(void)
{
	FILE *file = fopen("/proc/swaps", "r");
	char line[256];
	int lines = 0;

	while (file && fgets(line, sizeof(line), file))
		lines++;
	if (file)
		fclose(file);
	return lines > 1;
}

void swap_begin(unsigned int mib)
{
	char text[32];
	pid_t child;

	if (swap_is_on())
		return;
	if (access("/sys/block/zram0/disksize", W_OK))
		skip("there is no zram to swap to");
	snprintf(text, sizeof(text), "%uM", mib);
	setting("/sys/block/zram0/reset", "1");
	setting("/sys/block/zram0/disksize", text);
	fflush(stdout);
	child = fork();
	if (!child) {
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execlp("mkswap", "mkswap", ZRAM, NULL);
		_exit(127);
	}
	REQUIRE(!end_of(child), "mkswap failed");
	REQUIRE(!swapon(ZRAM, 0), "swapon: %s", strerror(errno));
}

int try_swap_end(void)
{
	return swapoff(ZRAM) ? -errno : 0;
}

void swap_end(void)
{
	/* Do not disable swap that was enabled before the first test. */
	static int before = -1;

	if (before < 0)
		before = swap_is_on();
	if (before || !swap_is_on())
		return;
	EXPECT(!swapoff(ZRAM), "swapoff: %s", strerror(errno));
	setting("/sys/block/zram0/reset", "1");
}

/* ---- counters ---- */

long event_count(const char *name)
{
	try_write("/proc/sys/vm/stat_refresh", "1");
	return vmstat(name);
}

struct counters counters(void)
{
	struct counters now = { 0 };
	const struct {
		const char *name;
		long *value;
	} known[] = {
		{ "thp_res_alloc ", &now.alloc },	 { "thp_res_alloc_failed ", &now.failed },
		{ "thp_res_mapped ", &now.mapped },	 { "thp_res_released ", &now.released },
		{ "thp_res_filled ", &now.filled },	 { "nr_thp_reserved ", &now.reserved },
		{ "thp_res_dump ", &now.dumped },	 { "thp_res_copy ", &now.copied },
		{ "thp_res_collapse ", &now.collapsed },
	};
	char line[128];
	FILE *file;

	try_write("/proc/sys/vm/stat_refresh", "1");
	file = fopen("/proc/vmstat", "r");
	while (file && fgets(line, sizeof(line), file))
		for (size_t i = 0; i < ARRAY_SIZE(known); i++)
			if (!strncmp(line, known[i].name, strlen(known[i].name)))
				*known[i].value = atol(line + strlen(known[i].name));
	if (file)
		fclose(file);
	return now;
}

struct counters since(struct counters earlier)
{
	struct counters now = counters();

	return (struct counters){
		now.alloc - earlier.alloc,	   now.failed - earlier.failed,
		now.mapped - earlier.mapped,	   now.released - earlier.released,
		now.filled - earlier.filled,	   now.reserved - earlier.reserved,
		now.dumped - earlier.dumped,	   now.copied - earlier.copied,
		now.collapsed - earlier.collapsed,
	};
}

void expect_identity(const char *when)
{
	struct counters now = counters();

	/* An exit or a dump may still be running. */
	for (int attempt = 0; attempt < 50; attempt++, now = counters()) {
		if ((long)PAGES_PER_REGION * now.alloc ==
		    now.reserved + now.mapped + now.released + now.filled)
			return;
		usleep(20000);
	}
	EXPECT(false,
	       "the counters do not add up %s: 512 * alloc %ld != reserved %ld + mapped %ld + released %ld + "
	       "filled %ld",
	       when, now.alloc, now.reserved, now.mapped, now.released, now.filled);
}

long reserved_on(int node)
{
	char path[64];

	try_write("/proc/sys/vm/stat_refresh", "1");
	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/vmstat", node);
	return line_in(path, "nr_thp_reserved");
}

/* ---- memory ---- */

char *regions(unsigned int count)
{
	char *start = map_regions((count + 1) * REGION);

	REQUIRE(start, "cannot map %u regions", count);
	/* PROT_NONE after it, so that it is not merged with an adjacent mapping. */
	mprotect(start + count * REGION, REGION, PROT_NONE);
	return start;
}

char *reserved_regions(unsigned int count)
{
	char *start;

	/* With threshold 512, regions are not promoted before the test fills them. */
	threshold(512);
	start = regions(count);
	for (unsigned int region = 0; region < count; region++)
		*(volatile char *)PAGE_OF(start, region, 0) = 0;
	threshold(1);
	return start;
}

void unmap(char *start, unsigned int count)
{
	munmap(start, (count + 1) * REGION);
}

unsigned int huge_regions(char *start, unsigned int count)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long first, end, kib, total = 0;
	bool inside = false;
	char line[512];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &first, &end) == 2)
			inside = first < (uintptr_t)start + count * REGION &&
				 end > (uintptr_t)start;
		else if (inside && sscanf(line, "AnonHugePages: %lu", &kib) == 1)
			total += kib;
	}
	if (file)
		fclose(file);
	return total / (REGION / KIB);
}

unsigned long pfn_of(const char *address)
{
	static int fd = -1;
	static pid_t owner;
	uint64_t entry = 0;

	if (fd < 0 || owner != getpid()) {
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		owner = getpid();
	}
	if (pread(fd, &entry, sizeof(entry), (uintptr_t)address / PAGE * sizeof(entry)) !=
	    sizeof(entry))
		return 0;
	return entry >> 63 ? entry & ((1UL << 55) - 1) : 0;
}

int node_of(const char *address)
{
	void *page = (void *)((uintptr_t)address / PAGE * PAGE);
	int status = -1;

	return syscall(SYS_move_pages, 0, 1, &page, NULL, &status, 0) ? -1 : status;
}

bool contiguous(char *start, unsigned int count)
{
	for (unsigned int region = 0; region < count; region++) {
		unsigned long first = pfn_of(PAGE_OF(start, region, 0));

		if (!first || first % PAGES_PER_REGION)
			return false;
		for (unsigned int slot = 1; slot < PAGES_PER_REGION; slot++)
			if (pfn_of(PAGE_OF(start, region, slot)) != first + slot)
				return false;
	}
	return true;
}

/* ---- contents ---- */

static const char *pattern(unsigned char seed)
{
	static unsigned char patterns[PATTERNS][PAGE];
	static bool made;

	if (!made) {
		for (unsigned int each = 1; each < PATTERNS; each++)
			for (unsigned int at = 0; at < PAGE; at++)
				patterns[each][at] = each * 73 + at * 151 + at / 256 * each + 1;
		made = true;
	}
	return (const char *)patterns[seed];
}

bool page_is(const char *page, unsigned char seed)
{
	return !memcmp(page, pattern(seed), PAGE);
}

void page_fill(char *page, unsigned char seed)
{
	memcpy(page, pattern(seed), PAGE);
}

struct image *image_of(unsigned int count)
{
	struct image *image = calloc(1, sizeof(*image) + count * PAGES_PER_REGION);

	REQUIRE(image, "no memory for the expected contents of %u regions", count);
	image->count = count;
	return image;
}

struct image *image_copy(const struct image *image)
{
	struct image *copy = image_of(image->count);

	memcpy(copy->seed, image->seed, image->count * PAGES_PER_REGION);
	return copy;
}

unsigned char seed_of(unsigned int region, unsigned int slot, unsigned int round)
{
	return 1 + (region * 41 + slot * 7 + round * 101) % 255;
}

void put(struct image *image, char *start, unsigned int region, unsigned int slot,
	 unsigned char seed)
{
	page_fill(PAGE_OF(start, region, slot), seed);
	image->seed[region * PAGES_PER_REGION + slot] = seed;
}

unsigned int wrong_pages(const struct image *image, const char *start)
{
	unsigned int wrong = 0;

	for (unsigned int page = 0; page < image->count * PAGES_PER_REGION; page++)
		wrong += !page_is(start + page * PAGE, image->seed[page]);
	return wrong;
}

void expect_contents(const struct image *image, const char *start, const char *when)
{
	for (unsigned int page = 0; page < image->count * PAGES_PER_REGION; page++) {
		const char *shall = pattern(image->seed[page]), *is = start + page * PAGE;
		unsigned int at = 0;

		if (!memcmp(is, shall, PAGE))
			continue;
		while (is[at] == shall[at])
			at++;
		EXPECT(false,
		       "%s: %u pages are wrong, the first is page %lu of region %lu: byte %u is %#x, not %#x",
		       when, wrong_pages(image, start), page % PAGES_PER_REGION,
		       page / PAGES_PER_REGION, at, (unsigned char)is[at],
		       (unsigned char)shall[at]);
		return;
	}
}
