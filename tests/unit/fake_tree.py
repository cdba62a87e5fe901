# SPDX-License-Identifier: GPL-2.0-only
"""A kernel tree of about ten files: enough for a source to be imported, patched, configured and built in a second."""

from __future__ import annotations

import subprocess
from pathlib import Path

FILES = {
    "Makefile": """\
# SPDX-License-Identifier: GPL-2.0
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 117
EXTRAVERSION =
S := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))/
CC = gcc
compile = @echo '  CC      $(1)'; mkdir -p $(dir $@); cd $(O); test ! -e $(S)slow || sleep 5; \\
	gcc -Wall $(if $(KCFLAGS),-g $(KCFLAGS)) -c -o $@ $< && echo 'savedcmd_$@ := gcc' >$(dir $@).$(notdir $@).cmd

allnoconfig:
	cp $(KCONFIG_ALLCONFIG) $(O)/.config
olddefconfig:
	sed -i -e '/CONFIG_UNMET=/d' $(O)/.config
	while read -r name value; do \\
		grep -q "^$$name=" $(O)/.config || echo "$$name=$$value" >>$(O)/.config; \\
	done <$(S)Kconfig
bzImage: $(O)/vmlinux
	mkdir -p $(O)/arch/x86/boot $(O)/include/config
	cp $(O)/vmlinux $(O)/arch/x86/boot/bzImage
	echo 6.12.117 >$(O)/include/config/kernel.release
$(O)/vmlinux: $(O)/mm/memory.o $(O)/init/main.o
	gcc -Wl,--build-id -o $@ $^
$(O)/mm/memory.o: $(S)mm/memory.c
	$(call compile,mm/memory.o)
$(O)/init/main.o: $(S)init/main.c
	$(call compile,init/main.o)
""",
    "Kconfig": "",
    "Kbuild": "# SPDX-License-Identifier: GPL-2.0\n",
    "init/main.c": "int do_anonymous_page(int address);\nint main(void)\n{\n\treturn do_anonymous_page(0);\n}\n",
    "mm/Makefile": "obj-y := memory.o\n",
    "mm/memory.c": (
        "/* one\n * two\n * three\n */\nint do_anonymous_page(int address)\n{\n\treturn address;\n}\n"
    ),
    "include/linux/mm.h": "/* mm */\n",
    ".gitignore": "*.patch\n",
    "ignored.patch": "a file that the tree itself ignores\n",
}

PATCH = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Developer <developer@localhost>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH] {subject}

{body}
---
diff --git a/mm/memory.c b/mm/memory.c
--- a/mm/memory.c
+++ b/mm/memory.c
@@ -4,5 +4,5 @@
  */
 int do_anonymous_page(int address)
 {{
-{old}
+{new}
 }}
--
2.39
"""


NEW_FILE = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Developer <developer@localhost>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH] mm: add {name}

---
diff --git a/{name} b/{name}
new file mode 100644
--- /dev/null
+++ b/{name}
@@ -0,0 +1 @@
+{line}
--
2.39
"""


def write_tree(root: Path) -> Path:
    """Write the tree below `root`."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "link").symlink_to("Makefile")
    return root


def write_patch(path: Path, old: str, new: str, subject: str = "mm: change the answer") -> Path:
    """Write a patch that replaces a line of do_anonymous_page()."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PATCH.format(subject=subject, body="Because.", old=old, new=new))
    return path


def write_new_file(path: Path, name: str, line: str) -> Path:
    """Write a patch that adds a file of one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NEW_FILE.format(name=name, line=line))
    return path


def git(directory: Path, *arguments: str) -> str:
    """Run git as a person would, with an identity given here."""
    identity = ["-c", "user.name=A Person", "-c", "user.email=person@localhost"]
    done = subprocess.run(
        ["git", *identity, "-C", str(directory), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


SERIES = """\
schema = 2
name = "fake"
title = "mm: a fake series"
groups = ["core-only", "docs"]
linux = "6.12"
package = "linux-source-6.12"
directory = "6.12"

[[base]]
version = "6.12.117-1"

[[stage]]
number = 1
name = "first"
group = "core-only"
patch = "0001.patch"
title = "mm: change the answer"
knobs = ["promotion_threshold"]
counters = ["nr_thp_reserved"]

[[stage]]
number = 2
name = "second"
group = "core-only"
patch = "0002.patch"
title = "mm: change it again"
knobs = []
counters = []

[[stage]]
number = 3
name = "third"
group = "docs"
patch = "0003.patch"
title = "mm: and once more"
knobs = []
counters = []

[[knob]]
name = "promotion_threshold"
path = "/sys/kernel/mm/transparent_hugepage/promotion_threshold"
kind = "integer"
minimum = 1
maximum = 512
default = 1
help = "Pages."
"""


def write_series(directory: Path, text: str = SERIES) -> Path:
    """Write a series of three stages for the tree."""
    write_patch(directory / "6.12" / "0001.patch", "\treturn address;", "\treturn address + 1;")
    write_patch(directory / "6.12" / "0002.patch", "\treturn address + 1;", "\treturn address + 2;")
    write_patch(directory / "6.12" / "0003.patch", "\treturn address + 2;", "\treturn address + 3;")
    (directory / "series.toml").write_text(text)
    return directory
