# SPDX-License-Identifier: Apache-2.0
"""The steps of a GPU session: what each runs on a GPU, and what stands in for it without one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

#: what the wheels are installed into, below the root of the checkout
SITE = "build/gpu-session/site"
WHEELS = "wheels"

_PYTHON = (sys.executable,)
_SMALL = "(layouts and bfloat16) or (selection and (729 or 2049))"


@dataclass(frozen=True)
class Step:
    """One step of a session.

    Attributes
    ----------
    name, about
        Its name, and what it answers.
    seconds
        What it may take; it is stopped then, and what it has written stays.
    command
        What runs on a GPU. ``{out}`` is the folder of the results.
    pretended
        What a dry run runs instead: the same program, small and on a CPU, or its tests collected
        but not run.
    environment
        More variables.
    """

    name: str
    about: str
    seconds: int
    command: Sequence[str]
    pretended: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


def _tests(*which: str) -> tuple[list[str], list[str]]:
    """Tests marked gpu: the command, and one that only collects them."""
    command = [*_PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", *which]
    return command, [*command, "--collect-only"]


def _script(name: str, on_gpu: str, pretended: str) -> tuple[list[str], list[str]]:
    """A script of benchmarks/ with its arguments on a GPU, and without one."""
    program = [*_PYTHON, f"benchmarks/{name}"]
    return [*program, *on_gpu.split()], [*program, *pretended.split()]


def _module(name: str, on_gpu: str, pretended: str) -> tuple[list[str], list[str]]:
    """A module with its arguments on a GPU, and without one."""
    program = [*_PYTHON, "-m", name]
    return [*program, *on_gpu.split()], [*program, *pretended.split()]


def _sanitizer(tool: str) -> Step:
    """The small suite under one tool of compute-sanitizer.

    Without torch's cache of memory, so that every tensor has bounds of its own.
    """
    tests, collected = _tests("tests/ops/test_gpu.py", "-k", _SMALL)
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *tests]
    return Step(
        tool,
        f"compute-sanitizer {tool}, every operator at small sizes",
        60,
        command,
        collected,
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


#: in order; what they may take adds up to no more than 25 minutes
STEPS: tuple[Step, ...] = (
    Step(
        "install",
        "the packed wheels that this machine lacks",
        60,
        (*_PYTHON, "tools/pack_wheels.py", "install", "--wheels", WHEELS, "--into", SITE),
        (*_PYTHON, "tools/pack_wheels.py", "install", "--help"),
    ),
    Step(
        "library",
        "load stc_kernels._C with its CUDA kernels, or build it for this GPU",
        120,
        (*_PYTHON, "tools/gpu_library.py"),
        (*_PYTHON, "tools/gpu_library.py", "--pretend"),
    ),
    Step(
        "smoke",
        "every operator on every backend against the reference",
        60,
        *_tests("tests/ops/test_gpu.py", "-k", "layouts and bfloat16"),
    ),
    Step(
        "cacher tests",
        "cached towers: graphs, many streams, both policies",
        120,
        *_tests("tests/cacher/test_gpu_cacher.py"),
    ),
    Step(
        "operator tests",
        "accuracy at full size, streams, graphs, repeated calls",
        180,
        *_tests("tests/ops/test_gpu.py"),
    ),
    Step(
        "other tests",
        "pruners in graphs, the contenders of `stc bench`",
        90,
        *_tests("tests/pruners/test_gpu_pruners.py", "tests/bench/test_bench_run.py"),
    ),
    *map(_sanitizer, ("memcheck", "racecheck", "initcheck", "synccheck")),
    Step(
        "operators",
        "`select_changed` and `saliency_topk` in graphs, against a copy of their bytes",
        60,
        *_script(
            "gpu_ops.py",
            "--op select_changed saliency_topk --batch 1 8 --out {out}/gpu_ops.csv",
            "--help",
        ),
    ),
    Step(
        "pruners",
        "the chain from features to kept tokens in a graph, each pruner",
        60,
        *_script("gpu_pruners.py", "--out {out}/gpu_pruners.csv", "--help"),
    ),
    Step(
        "cacher",
        "cached frames against dense ones at 1, 8 and 32 streams, both policies and the paper's",
        240,
        *_module(
            "stc_video.cli",
            "bench --device cuda --dtype bfloat16 --geometry siglip-so400m --streams 1,8,32 "
            "--ratios 1/4 --no-compiled --repeats 20 --seconds 30 "
            "--limits benchmarks/limits/gpu_cacher.csv --out {out} --name gpu_cacher",
            "bench --device cpu --geometry dinov2-small --layers 1 --streams 1 --ratios 1/4 "
            "--no-compiled --repeats 3 --out {out} --name gpu_cacher",
        ),
    ),
    Step(
        "language model",
        "prefill and time to first token at LLaVA-OneVision-7B's geometry",
        150,
        *_script(
            "session.py",
            "--latency-frames 16 --prefill 16 32 --first-token 64 256 --repeats 5 "
            "--out {out}/session.csv",
            "--geometry tiny --device cpu --dtype float32 --latency-frames 2 --prefill 8 "
            "--first-token 8 --repeats 1 --out {out}/session.csv",
        ),
    ),
    Step(
        "tuner",
        "launch parameters and backends for the shapes of the cached frames",
        120,
        *_module(
            "stc_kernels.tune",
            "--geometry siglip-so400m --batch 1 8 32 --out {out}/tuned.json",
            "--help",
        ),
    ),
)
