// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for QEMU: loads the profiler's plugin and executes blocks of guest code from standard input.
 *
 * Lines: "run ADDRESS INSNS [+KIND ADDRESS]...": a block, in which memory is read (r) or written (w); and "wait" at
 * the end, until standard input is closed. The plugin hears of a memory access only where it asked for it.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "interface.h"

struct qemu_plugin_insn {
	accessed_t accessed;
};

struct qemu_plugin_tb {
	uint64_t address;
	size_t insns;
	struct qemu_plugin_insn all[64];
	executed_t executed;
	void *data;
};

static translated_t translated;

EXPORT void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translated_t callback)
{
	(void)id;
	translated = callback;
}

EXPORT void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, executed_t callback,
						 int flags, void *data)
{
	(void)flags;
	tb->executed = callback;
	tb->data = data;
}

EXPORT void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, accessed_t callback,
					     int flags, int kinds, void *data)
{
	(void)flags, (void)kinds, (void)data;
	insn->accessed = callback;
}

EXPORT _Bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info)
{
	return info;
}

EXPORT size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb)
{
	return tb->insns;
}

EXPORT uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb)
{
	return tb->address;
}

EXPORT struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb,
							size_t index)
{
	return (struct qemu_plugin_insn *)&tb->all[index];
}

static void run(char *line)
{
	struct qemu_plugin_tb tb = { 0 };
	char *word = strtok(line, " ");

	tb.address = strtoull(word, NULL, 16);
	tb.insns = strtoull(strtok(NULL, " "), NULL, 10);
	translated(1, &tb);
	tb.executed(0, tb.data);
	while ((word = strtok(NULL, " \n"))) {
		uint64_t address = strtoull(strtok(NULL, " \n"), NULL, 16);

		if (tb.all[0].accessed)
			tb.all[0].accessed(0, word[1] == 'w', address, NULL);
	}
}

int main(int argc, char **argv)
{
	void *plugin = dlopen(argv[1], RTLD_NOW);
	int (*install)(qemu_plugin_id_t, const struct qemu_info *, int, char **);
	char line[4096];

	if (!plugin) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	printf("version %d\n", *(int *)dlsym(plugin, "qemu_plugin_version"));
	*(void **)&install = dlsym(plugin, "qemu_plugin_install");
	if (install(1, NULL, argc - 2, argv + 2))
		return 2;
	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "run ", 4))
			run(line + 4);
		else
			printf("ready\n");
		fflush(stdout);
	}
	return 0;
}
