# SPDX-License-Identifier: GPL-2.0-only
"""Defaults that the help texts show; kept apart from the code that uses them, so that --help imports little."""

from __future__ import annotations

from typing import Final

#: Fresh boots per variant and workload: the fewest for which the statistics can decide on the primary metrics.
REPEAT: Final = 6
#: Most of them where a run goes on until it is decided.
MAX_REPEAT: Final = 20
WORKLOADS: Final = ("chunk", "fault_latency")
#: Four nodes, for placement across nodes. A guest of 8 GiB gives the same answers in chunk and takes twice as long.
TOPOLOGY: Final = "4x1G"
#: Debian's source package for a series that names none.
PACKAGE: Final = "linux-source-6.12"
#: Largest relative difference that counts as unchanged.
MARGIN: Final = 0.005

#: Bisection: probability that the result is right, lowest reproduction rate of a bad stage, limit of boots.
CONFIDENCE: Final = 0.99
RATE: Final = 0.3
MAX_BOOTS: Final = 200

#: Default topologies of `check`, `test`, `bisect` and `series verify`.
CHECK_TOPOLOGY: Final = "2x512M/1"
TEST_TOPOLOGY: Final = "2x1536M"
BISECT_TOPOLOGY: Final = "2x512M"
VERIFY_TOPOLOGY: Final = "4x512M"
