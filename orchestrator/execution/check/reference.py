# SPDX-License-Identifier: GPL-2.0-only
"""The reference model of a patchset's kernel in a guest, for checks and bisections."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from orchestrator.errors import UserError
from orchestrator.execution.check.differential import ModelFor
from orchestrator.kernel.series import Series, Stage
from orchestrator.kernel.trait import WALKS_PAST_HUGE_PMDS
from orchestrator.machine.topology import Topology
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.point_release import WalksPastHugePmds
from orchestrator.model.trace import Trace


def known_stages(stages: Sequence[Stage]) -> list[str]:
    """Names of the stages that the model knows; all other stages should not change anything that is compared."""
    return [stage.name for stage in stages if stage.name in STAGES]


def check_modelled(series: Series) -> None:
    """Check that the reference model is of this series.

    Raises:
        UserError: it has no stage of the series.
    """
    if not known_stages(series.stages):
        raise UserError(
            f"the reference model is of the project's own series and knows no stage of {series.name}; compare kernels "
            "with `orchestrate run`, or search with a --metric or another outcome."
        )


def memory_nodes(topology: Topology) -> int:
    """Number of NUMA nodes that memory can be bound to."""
    return sum(node.memory_mib > 0 for node in topology.nodes)


def model_of(patchset: str, series: Series, topology: Topology, traits: Set[str] = frozenset()) -> ModelFor:
    """A function that creates models of a patchset's kernel in guests with this topology.

    Knobs that the kernel does not have are removed from the initial settings of a trace, as in the guest.

    Args:
        traits: traits of the kernel source, see :func:`orchestrator.kernel.trait.traits_of`.
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
    """The same trace with all knobs set to the defaults of this model's kernel.

    This prevents another default in the kernel of another stage from being mistaken for the divergence.
    """
    return replace(trace, settings=model_for(trace).settings)
