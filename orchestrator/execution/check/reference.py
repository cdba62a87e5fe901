# SPDX-License-Identifier: GPL-2.0-only
"""The reference model of a patchset's kernel in a guest, as a check and a bisection ask for it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from orchestrator.execution.check.differential import ModelFor
from orchestrator.kernel.series import Series, Stage
from orchestrator.kernel.trait import WALKS_PAST_HUGE_PMDS
from orchestrator.machine.topology import Topology
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.point_release import WalksPastHugePmds
from orchestrator.model.trace import Trace


def known_stages(stages: Sequence[Stage]) -> list[str]:
    """Names of the stages that the model has; any other stage is expected to change nothing that is compared."""
    return [stage.name for stage in stages if stage.name in STAGES]


def memory_nodes(topology: Topology) -> int:
    """Number of NUMA nodes that memory can be bound to."""
    return sum(node.memory_mib > 0 for node in topology.nodes)


def model_of(patchset: str, series: Series, topology: Topology, traits: Set[str] = frozenset()) -> ModelFor:
    """Makes models of a patchset's kernel in guests of this topology.

    A knob that the kernel does not have yet is left out of the settings at the head of a trace, as the guest does.

    Args:
        traits: of the kernel's source, see :func:`orchestrator.kernel.trait.traits_of`.
    """
    stages = series.select(patchset)
    nodes = memory_nodes(topology)
    absent = {knob.name for knob in series.knobs} - {knob for stage in stages for knob in stage.knobs}
    names = known_stages(stages)
    kind = WalksPastHugePmds if WALKS_PAST_HUGE_PMDS in traits else Model

    def model(trace: Trace) -> Model:
        settings = {knob: value for knob, value in trace.settings.items() if knob not in absent}
        return kind(names, settings, trace.blocks, nodes)

    return model


def pinned(trace: Trace, model_for: ModelFor) -> Trace:
    """The same trace with every knob set to what this model's kernel starts from.

    So a default that differs on another stage's kernel is not mistaken for the divergence.
    """
    return replace(trace, settings=model_for(trace).settings)
