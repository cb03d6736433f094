# SPDX-License-Identifier: Apache-2.0
"""A loaded model that asks; a run has one, or one on each machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stc_video.evaluation.answers import Answers
from stc_video.evaluation.configurations import Configuration, controls, described
from stc_video.evaluation.queries import Query
from stc_video.evaluation.runner import Given, Runner, Sampling
from stc_video.evaluation.scoring.parsers import PARSERS, rule_of
from stc_video.evaluation.study import study

if TYPE_CHECKING:
    from stc_video.loading.video_llm import ChatModel


@dataclass(frozen=True)
class Assignment:
    """What every worker of a run is told.

    Attributes
    ----------
    benchmark
        Its name.
    videos
        The folder, under the same path for all of them.
    configurations, controls, study
        What is compared, and whether controls, and those of :func:`study`, are added.
    sampling
        Which frames.
    model, device, dtype, threads
        What is loaded, and how; without a number of threads it is torch's choice.
    """

    benchmark: str
    videos: Path
    configurations: Sequence[Configuration]
    controls: bool
    sampling: Sampling
    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    study: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known once the model is loaded.

    Attributes
    ----------
    configurations
        With the controls.
    protocol
        What answers depend on.
    notes
        What the user must know.
    """

    configurations: list[Configuration]
    protocol: dict[str, Any]
    notes: list[str]


class Worker:
    """A loaded model.

    Parameters
    ----------
    assignment
        What to load, and how to ask.

    Attributes
    ----------
    facts
        What is known by now.
    lost
        Videos that were left without answers: none.

    Raises
    ------
    ValueError
        If the model cannot be loaded, or a configuration does not fit it.
    """

    lost: Sequence[str] = ()

    def __init__(self, assignment: Assignment) -> None:
        import torch

        from stc_video.loading.video_llm import load_chat_model

        if assignment.threads is not None:
            torch.set_num_threads(assignment.threads)
        self._assignment = assignment
        self._chat = load_chat_model(
            assignment.model, device=assignment.device, dtype=assignment.dtype
        )
        notes = [self._chat.notice] if self._chat.notice else []
        configurations = _all_configurations(assignment, self._chat, notes)
        protocol = _protocol(self._chat, configurations, assignment.benchmark)
        self.facts = Facts(configurations, protocol, notes)

    def run(
        self,
        queries: Sequence[Query],
        answers: Answers,
        on_answer: Callable[[Given], None] = lambda given: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Ask what has no answer yet, as `Runner` does; returns whether it came to the end."""
        task = self._assignment
        runner = Runner(
            self._chat, self.facts.configurations, task.sampling, task.videos, answers,
            on_answer, stopped,
        )  # fmt: skip
        try:
            return runner.run(queries)
        finally:
            runner.close()

    def close(self) -> None:
        """Nothing is held but the model."""


def _all_configurations(
    assignment: Assignment, chat: ChatModel, notes: list[str]
) -> list[Configuration]:
    """The configurations and their controls, checked against the model's tokens."""
    from stc_video.acceleration import accelerate

    untyped: Any = accelerate(chat.model, None, "none")
    with untyped.stc as handle:
        grid = handle.grid
    tokens = None if grid is None else grid[0] * grid[1]
    made = list(assignment.configurations)
    if assignment.study and tokens is None:
        raise ValueError(
            "--study needs a model whose frames all have as many tokens; those of this one have "
            "another number in each video"
        )
    added = [
        *(controls(made[0], tokens) if assignment.controls else []),
        *(study(tokens) if assignment.study and tokens is not None else []),
    ]
    # What is a control by itself is run once, under the control's name.
    made = [next((c for c in added if _is_same(c, one)), one) for one in made]
    for control in added:
        if not any(_is_same(control, one) for one in made):
            made.append(control)
    if assignment.controls and tokens is None:
        notes.append(
            "the frames of this model have another number of tokens in each video, so there "
            "is no control of uniform frames"
        )
    names = [one.name for one in made]
    if len(set(names)) < len(names):
        raise ValueError(f"two configurations are the same: {', '.join(names)}")
    for one in made:
        chat.check_memory(one.memory_config())
        pruner = one.pruner()
        if tokens is not None and pruner.exact:
            pruner.tokens_kept(tokens)
    return made


def _is_same(one: Configuration, other: Configuration) -> bool:
    return replace(one, name="") == replace(other, name="")


def _protocol(
    chat: ChatModel, configurations: list[Configuration], benchmark: str
) -> dict[str, Any]:
    """What of the protocol is known only with the model."""
    config: Any = chat.model.config
    vision = config.vision_config
    size = getattr(vision, "image_size", None)
    tokenizer = getattr(chat.processor, "tokenizer", chat.processor)
    return {
        "model": {
            "name": chat.name,
            "class": type(chat.model).__name__,
            "random": chat.random,
            # The commit of the hub; a folder has none.
            "revision": getattr(config, "_commit_hash", None),
            "dtype": str(chat.model.dtype).removeprefix("torch."),
            "device": chat.model.device.type,
        },
        "resolution": f"{size} x {size}" if isinstance(size, int) else "that of the video",
        "chat_template": tokenizer.chat_template,
        "decoding": "greedy",
        "parsers": {parser: rule_of(benchmark, parser) for parser in PARSERS},
        "configurations": described(configurations),
    }
