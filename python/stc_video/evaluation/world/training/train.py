# SPDX-License-Identifier: Apache-2.0
"""The whole training by one command, which goes on where it was stopped.

``python -m stc_video.evaluation.world.training.train --out FOLDER``
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stc_video.evaluation.world.training.decoder import Decoder, DecoderSettings, begin_decoder
from stc_video.evaluation.world.training.library import LAYERS, Library, fill_library
from stc_video.evaluation.world.training.projector import (
    Words,
    accuracy,
    labels,
    project,
    scale,
    train_projector,
)
from stc_video.evaluation.world.vocabulary import make_tokenizer
from stc_video.loading.world_model import build_world_model, save_trained_part, trained_part

_PROJECTOR, _CHECKPOINT, _MODEL = "projector.pt", "decoder.pt", "model"
_HELD_OUT = 60  # scenes that the projector is checked with
_EVERY = 25  # steps between two lines of the log
_SAVE_EVERY = 50


@dataclass(frozen=True)
class Plan:
    """What is trained for how long.

    Attributes
    ----------
    scenes
        Of the library.
    projector_steps
        Steps of the projector.
    decoder
        Of the decoder.
    seed
        Of everything.
    """

    scenes: int = 2500
    projector_steps: int = 2500
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    seed: int = 1


class Log:
    """Writes lines to a file and to the screen."""

    def __init__(self, path: Path) -> None:
        self._path, self._start = path, time.monotonic()

    def __call__(self, text: object) -> None:
        """Write a line."""
        line = f"{time.monotonic() - self._start:8.1f} s  {text}"
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def train(folder: Path, plan: Plan) -> Path:
    """Train, or go on; returns the folder of what was trained.

    Parameters
    ----------
    folder
        For the library, checkpoints and the log.
    plan
        A run that goes on may have other steps of the decoder, to which its learning rate and its
        questions are fitted then; the rest must be as it began.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.txt")
    log(f"plan {json.dumps(asdict(plan))}; {torch.get_num_threads()} threads")
    fill_library(folder / "library", plan.scenes, plan.seed, show=_every(log, 200))
    library = Library(folder / "library")
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer()
    model: Any = build_world_model(tokenizer, LAYERS)
    tokens = _projected(folder, plan, model, tokenizer, library, log)
    begin_decoder(model, tokenizer, plan.seed)
    model.model.language_model.train(True)
    decoder = Decoder(model, tokenizer, tokens, library.scenes, plan.decoder, plan.seed)
    _train_decoder(folder, plan, model, decoder, log)
    save_trained_part(model, tokenizer, folder / _MODEL)
    return folder / _MODEL


def _every(log: Log, count: int) -> Callable[[int], None]:
    def show(done: int) -> None:
        if done % count == 0:
            log(f"library: {done} scenes encoded")

    return show


def _projected(
    folder: Path, plan: Plan, model: Any, tokenizer: Any, library: Library, log: Log
) -> Tensor:
    """Train the projector, or read the trained one; returns the library's tokens (S, F, N, E)."""
    projector = model.model.multi_modal_projector
    embedding = model.model.language_model.embed_tokens.weight
    path = folder / _PROJECTOR
    if not path.exists():
        tokens = _train_projector(projector, embedding, plan, tokenizer, library, log)
        torch.save({"projector": projector.state_dict(), "embedding": embedding.data,
                    "tokens": tokens}, path)  # fmt: skip
    state = torch.load(path, weights_only=True)
    projector.load_state_dict(state["projector"])
    embedding.data.copy_(state["embedding"])
    made: Tensor = state["tokens"]
    return made


def _train_projector(
    projector: Any,
    embedding: nn.Parameter,
    plan: Plan,
    tokenizer: Any,
    library: Library,
    log: Log,
) -> Tensor:
    """Train the projector, and project the whole library with it."""
    count, frames, side, width = library.features.shape
    features = np.array(library.features).reshape(-1, side, width)
    truth = labels(library.scenes, int(side**0.5) // 2).reshape(count * frames, -1, 3)
    _standardise(projector, *_moments(features))
    words, cut = Words.of(tokenizer), (count - _HELD_OUT) * frames
    train_projector(projector, embedding, words, features[:cut], truth[:cut],
                    plan.projector_steps, plan.seed, log)  # fmt: skip
    right = accuracy(projector, embedding, words, features[cut:], truth[cut:])
    log(f"projector: on scenes held out, kind {right[0]:.3f} and look {right[1]:.3f} right")
    with torch.no_grad():
        pieces = np.array_split(features, max(1, len(features) // 100))
        parts = [project(projector, torch.from_numpy(piece).float()) for piece in pieces]
    tokens = scale(projector, embedding.data, torch.cat(parts))
    return tokens.view(count, frames, *parts[0].shape[1:])


def _moments(features: Any) -> tuple[Tensor, Tensor]:
    some = torch.from_numpy(features[:: max(1, len(features) // 500)]).float().flatten(0, 1)
    return some.mean(0), some.std(0)


@torch.no_grad()
def _standardise(projector: Any, mean: Tensor, deviation: Tensor) -> None:
    """Let the first layer begin as if its inputs had mean 0 and deviation 1."""
    first: nn.Linear = projector.linear_1
    nn.init.normal_(first.weight, 0.0, first.in_features**-0.5)
    nn.init.normal_(projector.linear_2.weight, 0.0, projector.linear_2.in_features**-0.5)
    first.weight /= deviation
    first.bias.copy_(-(first.weight @ mean))
    projector.linear_2.bias.zero_()


def _train_decoder(folder: Path, plan: Plan, model: Any, decoder: Decoder, log: Log) -> None:
    path, begin = folder / _CHECKPOINT, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"], strict=False)
        decoder.hints.load_state_dict(state["hints"])
        decoder.optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]
        log(f"decoder: goes on at step {begin}")
    sums: dict[str, list[float]] = defaultdict(list)
    for step in range(begin, plan.decoder.steps):
        for name, value in decoder.step(step).items():
            sums[name].append(value)
        if (step + 1) % _EVERY == 0:
            shown = " ".join(f"{n} {np.mean(v):.2f}" for n, v in sorted(sums.items()))
            log(f"decoder {step + 1}/{plan.decoder.steps}: {shown}")
            sums.clear()
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == plan.decoder.steps:
            state = {"model": trained_part(model), "hints": decoder.hints.state_dict(),
                     "optimizer": decoder.optimizer.state_dict(), "step": step + 1}  # fmt: skip
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; a run goes on in it")
    parser.add_argument("--scenes", type=int, default=Plan.scenes)
    parser.add_argument("--projector-steps", type=int, default=Plan.projector_steps)
    parser.add_argument("--steps", type=int, default=DecoderSettings.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = Plan(given.scenes, given.projector_steps, DecoderSettings(given.steps), given.seed)
    print(f"model: {train(given.out, plan)}")


if __name__ == "__main__":
    main()
