// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A plugin for QEMU's TCG that counts the guest's instructions per chain of kernel functions.
 *
 * A translated block adds its number of instructions to the current node of a tree of calls. A node is a function
 * and the node of its caller. A block at the start of a function is a call; a block of another function is a return
 * to it. Each task has its own place in the tree. What names a task is the address where its task_struct keeps its
 * stack pointer: __switch_to_asm (arch/x86/entry/entry_64.S) stores that of the old task, after it pushed registers, and
 * then loads that of the new one. All user space is one function, the first.
 *
 * It is made for one host thread that executes all CPUs, as with -icount.
 *
 * Arguments:
 *   functions=FILE  lines "START END" in hexadecimal, sorted, without overlap; the number of a line plus 2 is the
 *                   number of the function. 0 is user space, 1 is code of the kernel outside of all functions.
 *   switch=ADDRESS  start of __switch_to_asm, in hexadecimal
 *   fork=ADDRESS    start of ret_from_fork_asm, where a new task begins
 *   socket=PATH     to whoever connects, lines "NODE CALLER FUNCTION INSTRUCTIONS" are written, and "end TOTAL"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "interface.h"

EXPORT int qemu_plugin_version = INTERFACE_VERSION;

#define USER 0
#define OTHER 1
#define MAX_CPUS 256
#define MAX_NODES (1u << 22)
#define MAX_TASKS (1u << 16)
#define KERNEL_SPACE (1ull << 63)

struct range {
	uint64_t start, end;
};

/* A node of the tree of calls. The first node is the root, and not a function. */
struct node {
	uint64_t insns;
	uint32_t function;
	uint32_t caller;
	uint32_t first_callee; /* 0: none */
	uint32_t next; /* callee of the same caller */
};

/* A translated block, once per address and length: QEMU translates many again. */
struct block {
	struct block *next;
	uint64_t address;
	uint32_t insns;
	uint32_t function;
	bool is_start; /* of its function */
	bool switches; /* the start of __switch_to_asm */
	bool begins; /* the start of a new task */
};

struct task {
	uint64_t name; /* 0: free */
	uint32_t node;
};

struct cpu {
	uint32_t node;
	bool switching;
	uint64_t stored; /* last address that __switch_to_asm wrote to */
};

static struct range *ranges;
static size_t nr_ranges;
static struct node *nodes;
static uint32_t nr_nodes = 1;
static struct task *tasks;
static struct cpu cpus[MAX_CPUS];
static struct block *blocks[1u << 16];
static uint64_t switch_to, from_fork;
static int server = -1;

static uint32_t function_at(uint64_t address)
{
	size_t low = 0, high = nr_ranges;

	if (address < KERNEL_SPACE)
		return USER;
	while (low < high) {
		size_t middle = (low + high) / 2;

		if (address < ranges[middle].start)
			high = middle;
		else if (address >= ranges[middle].end)
			low = middle + 1;
		else
			return middle + 2;
	}
	return OTHER;
}

static uint32_t callee_of(uint32_t caller, uint32_t function)
{
	uint32_t *link = &nodes[caller].first_callee, found;

	for (; *link; link = &nodes[*link].next) {
		if (nodes[*link].function != function)
			continue;
		/* The one that is called most moves to the front. */
		found = *link;
		*link = nodes[found].next;
		nodes[found].next = nodes[caller].first_callee;
		nodes[caller].first_callee = found;
		return found;
	}
	if (nr_nodes == MAX_NODES)
		return caller;
	found = nr_nodes;
	nodes[found] = (struct node){ .function = function,
				      .caller = caller,
				      .next = nodes[caller].first_callee };
	/* A reader sees a node only when it is whole. */
	__atomic_store_n(&nr_nodes, found + 1, __ATOMIC_RELEASE);
	nodes[caller].first_callee = found;
	return found;
}

/* The place of a task in the tree; the last slot is shared if there are too many. */
static struct task *task_of(uint64_t name)
{
	uint32_t slot = (name >> 6) * 2654435761u % MAX_TASKS, tries;

	for (tries = 0; tries < 64; tries++, slot = (slot + 1) % MAX_TASKS) {
		if (tasks[slot].name == name)
			return &tasks[slot];
		if (!tasks[slot].name)
			break;
	}
	tasks[slot] = (struct task){ .name = name };
	return &tasks[slot];
}

static void executed(unsigned int number, void *data)
{
	const struct block *block = data;
	struct cpu *cpu = &cpus[number % MAX_CPUS];
	uint32_t node = cpu->node;

	if (nodes[node].function != block->function || node == 0 || block->is_start) {
		if (block->function == USER || block->begins) {
			node = callee_of(0, block->function);
		} else if (block->is_start) {
			/* A loop may begin at the start of a function, but few functions call themselves. */
			if (node == 0 || nodes[node].function != block->function)
				node = callee_of(node, block->function);
		} else {
			uint32_t caller = node;

			while (node && nodes[node].function != block->function)
				node = nodes[node].caller;
			/* Not a return: an entry for an interrupt (irq_entries_start), or a jump to a .cold part. */
			if (!node)
				node = callee_of(caller, block->function);
		}
		cpu->node = node;
		if (block->switches)
			cpu->switching = true;
	}
	nodes[node].insns += block->insns;
}

static void switched(unsigned int number, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
	struct cpu *cpu = &cpus[number % MAX_CPUS];
	uint32_t next;

	if (!cpu->switching)
		return;
	if (qemu_plugin_mem_is_store(info)) {
		cpu->stored = address;
		return;
	}
	cpu->switching = false;
	task_of(cpu->stored)->node = cpu->node;
	next = task_of(address)->node;
	cpu->node = next ? next : callee_of(0, nodes[cpu->node].function);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	uint64_t address = qemu_plugin_tb_vaddr(tb);
	size_t insns = qemu_plugin_tb_n_insns(tb), i;
	struct block **link = &blocks[(address ^ address >> 16 ^ insns << 7) & 0xffff], *block;

	for (block = *link; block; block = block->next)
		if (block->address == address && block->insns == insns)
			break;
	if (!block) {
		block = calloc(1, sizeof(*block));
		if (!block)
			abort();
		block->next = *link;
		block->address = address;
		block->insns = insns;
		block->function = function_at(address);
		block->is_start = block->function > OTHER &&
				  ranges[block->function - 2].start == address;
		block->switches = address == switch_to;
		block->begins = address == from_fork;
		*link = block;
	}
	if (address >= switch_to && block->function > OTHER &&
	    address < ranges[block->function - 2].end &&
	    ranges[block->function - 2].start == switch_to)
		for (i = 0; i < insns; i++)
			qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), switched,
							 QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW,
							 NULL);
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void tell(int client)
{
	uint32_t count = __atomic_load_n(&nr_nodes, __ATOMIC_ACQUIRE), i;
	uint64_t *insns = malloc(count * sizeof(*insns)), total = 0;
	FILE *out = fdopen(client, "w");

	if (!insns || !out)
		abort();
	/* All of them at once, as the guest goes on. */
	for (i = 0; i < count; i++)
		insns[i] = __atomic_load_n(&nodes[i].insns, __ATOMIC_RELAXED);
	for (i = 1; i < count; i++) {
		total += insns[i];
		fprintf(out, "%u %u %u %llu\n", i, nodes[i].caller, nodes[i].function,
			(unsigned long long)insns[i]);
	}
	fprintf(out, "end %llu\n", (unsigned long long)total);
	fclose(out);
	free(insns);
}

static void *serve(void *unused)
{
	for (;;) {
		int client = accept4(server, NULL, NULL, SOCK_CLOEXEC);

		if (client >= 0)
			tell(client);
		else if (errno != EINTR && errno != ECONNABORTED)
			return NULL;
	}
}

static int read_functions(const char *path)
{
	unsigned long long start, end;
	FILE *in = fopen(path, "r");
	size_t room = 0;

	if (!in)
		return -1;
	while (fscanf(in, "%llx %llx", &start, &end) == 2) {
		if (nr_ranges == room) {
			room = room ? room * 2 : 4096;
			ranges = realloc(ranges, room * sizeof(*ranges));
			if (!ranges)
				return -1;
		}
		ranges[nr_ranges++] = (struct range){ start, end };
	}
	fclose(in);
	return nr_ranges ? 0 : -1;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	pthread_t thread;
	sigset_t all, before;
	int failed;

	if (strlen(path) >= sizeof(address.sun_path))
		return -1;
	strcpy(address.sun_path, path);
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(server, 4))
		return -1;
	/* QEMU handles signals in a thread of its own. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	failed = pthread_create(&thread, NULL, serve, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return failed ? -1 : 0;
}

static void *reserved(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
			       char **argv)
{
	const char *functions = NULL, *path = NULL;
	int i;

	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "functions=", 10))
			functions = argv[i] + 10;
		else if (!strncmp(argv[i], "switch=", 7))
			switch_to = strtoull(argv[i] + 7, NULL, 16);
		else if (!strncmp(argv[i], "fork=", 5))
			from_fork = strtoull(argv[i] + 5, NULL, 16);
		else if (!strncmp(argv[i], "socket=", 7))
			path = argv[i] + 7;
	}
	nodes = reserved(MAX_NODES * sizeof(*nodes));
	tasks = reserved(MAX_TASKS * sizeof(*tasks));
	if (!functions || !path || !switch_to || !nodes || !tasks || read_functions(functions)) {
		fprintf(stderr, "profile: wrong arguments, or no memory\n");
		return -1;
	}
	if (listen_at(path)) {
		fprintf(stderr, "profile: cannot listen at %s: %s\n", path, strerror(errno));
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
