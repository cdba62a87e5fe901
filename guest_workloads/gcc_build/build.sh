#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# build.sh FILES FUNCTIONS JOBS SEED: write FILES C files of FUNCTIONS functions
# each, compile JOBS of them at a time, and link the objects to one.
set -e
files=$1 functions=$2 jobs=$3 seed=$4
rm -rf /tmp/build
mkdir /tmp/build
cd /tmp/build

# The files need no header: the guest has none (and with -ffreestanding gcc includes none by itself).
awk -v files="$files" -v functions="$functions" -v seed="$seed" 'BEGIN {
	srand(seed)
	for (file = 1; file <= files; file++) {
		name = "file" file ".c"
		for (f = 1; f <= functions; f++) {
			printf "struct s%d { int a[%d]; struct s%d *next; };\n", f, 4 + int(rand() * 28), f >name
			printf "int f%d_%d(struct s%d *p, int n)\n{\n\tint sum = %d;\n", file, f, f, int(rand() * 1000) >name
			printf "\tfor (; p; p = p->next)\n\t\tfor (int i = 0; i < 4; i++)\n" >name
			printf "\t\t\tsum += p->a[i] %% (n | 1) ? p->a[3 - i] * %d : sum >> %d;\n", int(rand() * 100), int(rand() * 8) >name
			if (f > 1)
				printf "\tif (sum & %d)\n\t\tsum ^= f%d_%d((void *)p, sum);\n", f, file, f - 1 >name
			printf "\treturn sum;\n}\n" >name
		}
		close(name)
	}
}'
seq "$files" | xargs -P "$jobs" -I N gcc -O2 -ffreestanding -c fileN.c -o fileN.o
ld -r -o all.o file*.o
set -- file*.o
echo "objects: $#"
echo "object bytes: $(stat -c %s all.o)"
