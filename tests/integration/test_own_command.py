# SPDX-License-Identifier: GPL-2.0-only
"""A program of the user, without a manifest, in real guests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from orchestrator.kernel.build import KernelBuild

#: Needs libm, a shared library that the guest does not have.
PROGRAM = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
	printf("rate: %.1f MB/s\n", sqrt(atof(argv[argc - 1])));
	return fputs("kept\n", fopen("log.txt", "w")) < 0;
}
"""


def test_a_command_is_measured_with_its_files_and_its_own_metric(
    tmp_path: Path, baseline_kernel: KernelBuild, kernel: KernelBuild
) -> None:
    program = tmp_path / "bench"
    subprocess.run(["gcc", "-x", "c", "-", "-o", str(program), "-lm"], input=PROGRAM.encode(), check=True)
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "orchestrator",
                "run",
                "-p",
                "core-only",
                "-t",
                "1x512M/1",
                "-a",
                "tcg",
                "-n",
                "1",
            ),
            *("--set", "promotion_threshold=1", "--swap", "64M", "--sample", "slabinfo"),
            *("--copy-in", str(program), "--copy-out", "log.txt", "-w", "cmd:bench 'not this' 16"),
            *("--metric", "rate,MB/s,higher=rate: ([0-9.]+)"),
        ],
        env={**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "results").iterdir()
    metrics = pd.read_parquet(run / "metrics.parquet").set_index("metric")["value"]
    assert list(metrics["rate.value"]) == [4.0] * 3
    assert (metrics["run_ns.sum"] > 0).all() and (metrics["faults.total"] > 0).all()
    logs = list((run / "logs").glob("*.cmd_bench.1"))
    assert {(each / "fetched-log.txt").read_text() for each in logs} == {"kept\n"}
    assert {(each / "command.output").read_text() for each in logs} == {"rate: 4.0 MB/s\n"}
    samples = pd.read_parquet(run / "samples.parquet")
    assert set(samples[samples["source"] == "meminfo"].query("counter == 'SwapTotal'")["value"]) == {65532}
    assert "slabinfo" in set(samples["source"])
