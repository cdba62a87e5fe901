# SPDX-License-Identifier: GPL-2.0-only
"""The command line tool, with stand-ins for what takes long and has no part in a fault of the host.

The guest image is two keys and a megabyte of zeros, made by the real cache in pieces. The topology of a guest is not
compared, and no report is drawn. All else is real: cache, source, patches, kernel builds (of a tree of ten files), the
supervision of QEMU, SSH, the sampler, the run directory. `fake_machine.py` stands for QEMU.

usage: python seam.py ARGUMENT...     as `orchestrate ARGUMENT...`
Workers of a cluster load this file with `dask worker --preload`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_machine import PADDING

from orchestrator.cache import Artefact, Cache
from orchestrator.events import Events
from orchestrator.execution import bench
from orchestrator.guest.image import HOST_ALIAS, GuestImage
from orchestrator.guest.keys import keys_artefact
from orchestrator.project import Project

_PIECES = 4
_PIECE_S = 0.05


def image_artefact(
    project: Project, cache: Cache, events: Events, layers: Sequence[str] = (), selftests: Any = None
) -> Artefact[GuestImage]:
    """An image that holds nothing but its keys, at the end."""

    def make(directory: Path) -> None:
        keys = keys_artefact(cache).obtain()
        image = GuestImage(directory, directory.name)
        with image.initramfs.open("wb") as stream:
            for _ in range(_PIECES):
                stream.write(bytes(PADDING // _PIECES))
                stream.flush()
                time.sleep(_PIECE_S)
            facts = {"host": (keys.directory / "host").read_text(), "client": keys.client_public}
            stream.write(json.dumps(facts).encode())
        image.client_key.touch(0o600)
        image.client_key.write_bytes(keys.client.read_bytes())
        image.host_key_public.write_text(keys.host_public + "\n")
        image.known_hosts.write_text(f"{HOST_ALIAS} {keys.host_public}\n")

    def key() -> dict[str, Any] | None:
        keys = keys_artefact(cache).existing()
        if keys is None:
            return None
        return {"stands for": "an image", "layers": list(layers), "keys": keys.fingerprint}

    return Artefact(
        cache,
        "image",
        key,
        make,
        lambda directory: GuestImage(directory, directory.name),
        keys_artefact(cache).obtain,
    )


def install() -> None:
    """Put the stand-ins in their places."""
    from orchestrator.execution.measure import report

    for module, name, stand_in in (
        (bench, "image_artefact", image_artefact),
        (bench, "verify", lambda guest, topology: []),
        (report, "plot_run", lambda run, directory: []),
        (report, "write_report", lambda *arguments: None),
    ):
        setattr(module, name, stand_in)


def dask_setup(worker: Any) -> None:
    """Called by a worker that preloads this file."""
    install()


if __name__ == "__main__":
    from orchestrator.__main__ import start

    start(install)
