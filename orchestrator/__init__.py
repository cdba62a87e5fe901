# SPDX-License-Identifier: GPL-2.0-only
"""Experiments on Linux kernel patch series: build, boot, measure, compare, bisect."""

__version__: str


def __getattr__(name: str) -> str:
    """The version that pyproject.toml has, looked up when it is asked for: most commands do not need it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("orchestrate")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
