// SPDX-License-Identifier: GPL-2.0-only
/*
 * mremap_storm: buffers that grow with mremap(), as in realloc().
 *
 * Several buffers grow in turn, step by step, so that each soon blocks another
 * one, which then has to move: mremap(MREMAP_MAYMOVE), as realloc() does for
 * large blocks. The added memory is then written. A kernel that gives up
 * reservations on each move has more costs in later faults and promotions.
 * The contents are checked at the end.
 */
#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct buffer {
	char *start;
	size_t size;
};

static uint64_t mark(long buffer, size_t offset)
{
	return ((uint64_t)buffer << 48 ^ offset) | 1;
}

static void write_range(struct buffer *buffer, long number, size_t from)
{
	for (size_t at = from; at < buffer->size; at += PAGE)
		*(uint64_t *)(buffer->start + at) = mark(number, at);
}

int main(int argc, char **argv)
{
	long count, rounds, moves = 0, grown = 0;
	uint64_t *remap_took, *write_took, remap_sum = 0, write_sum = 0;
	struct rollup rollup;
	struct buffer *buffers;
	size_t step;
	double scale;
	int advice;

	workload_begin(argc, argv);
	(void)option_integer("seed");
	count = option_integer("buffers");
	rounds = option_integer("rounds");
	step = option_integer("step");
	advice = option_choice("advice", advice_names);
	clock_begin();
	options_done();
	scale = clock_scale();
	step = (step + PAGE - 1) / PAGE * PAGE;
	buffers = calloc(count, sizeof(*buffers));
	if (!buffers)
		workload_fail("no memory for %ld buffers", count);
	remap_took = values_of(count * rounds);
	write_took = values_of(count * rounds);
	for (long n = 0; n < count; n++) {
		buffers[n].size = step;
		buffers[n].start = mmap(NULL, step, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (buffers[n].start == MAP_FAILED)
			workload_fail("cannot map a buffer: %s", strerror(errno));
		advise(buffers[n].start, step, advice);
		write_range(&buffers[n], n, 0);
	}

	for (long round = 0; round < rounds; round++) {
		for (long n = 0; n < count; n++) {
			struct buffer *buffer = &buffers[n];
			size_t old_size = buffer->size;
			uint64_t began, between, ended;
			char *moved;

			began = ticks();
			moved = mremap(buffer->start, old_size, old_size + step, MREMAP_MAYMOVE);
			between = ticks();
			if (moved == MAP_FAILED)
				workload_fail("cannot grow a buffer to %zu bytes: %s",
					      old_size + step, strerror(errno));
			moves += moved != buffer->start;
			buffer->start = moved;
			buffer->size = old_size + step;
			write_range(buffer, n, old_size);
			ended = ticks();
			remap_took[grown] = between - began;
			write_took[grown++] = ended - between;
			remap_sum += between - began;
			write_sum += ended - between;
		}
	}
	metric_reserved("reserved_kib.max");
	khugepaged_wait();
	rollup = smaps_rollup(0);
	for (long n = 0; n < count; n++)
		for (size_t at = 0; at < buffers[n].size; at += PAGE)
			if (*(uint64_t *)(buffers[n].start + at) != mark(n, at))
				workload_fail("buffer %ld at %zu does not contain what was written",
					      n, at);
	sort_values(remap_took, grown);
	sort_values(write_took, grown);

	metric_clock("grow_%s.mean", remap_sum * scale / grown);
	metric_clock("grow_%s.p99", percentile(remap_took, grown, 0.99) * scale);
	metric_clock("write_%s.mean", write_sum * scale / grown);
	metric_clock("write_%s.p99", percentile(write_took, grown, 0.99) * scale);
	metric("moves.total", "moves", moves);
	metric("rss_kib.max", "KiB", rollup.rss_kib);
	metric("anon_huge_kib.max", "KiB", rollup.anon_huge_kib);
	workload_end();
}
