# SPDX-License-Identifier: GPL-2.0-only
"""Defaults that commands show in their help, apart from the code that uses them: --help imports none of that."""

from __future__ import annotations

from typing import Final

#: Fresh boots per variant and workload: the fewest with which the statistics can decide over the primary metrics.
REPEAT: Final = 6
WORKLOADS: Final = ("chunk", "fault_latency")
#: Four nodes, so that memory has places. A guest of 8 GiB gives the same answers in chunk and takes twice as long.
TOPOLOGY: Final = "4x1G"
#: Relative difference up to which a metric counts as unchanged.
MARGIN: Final = 0.005

#: Of a bisection: the probability that its answer is right, the share of a bad stage's boots that show an outcome
#: (at least), and how many boots it may take.
CONFIDENCE: Final = 0.99
RATE: Final = 0.3
MAX_BOOTS: Final = 200

#: Of `check` and of `test`.
CHECK_TOPOLOGY: Final = "2x512M/1"
TEST_TOPOLOGY: Final = "2x1536M"
