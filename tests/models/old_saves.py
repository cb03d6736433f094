# SPDX-License-Identifier: Apache-2.0
"""Saves that an earlier revision made, and how it went on from them.

    PYTHONPATH=.:python:tests/session:tests/models python tests/models/old_saves.py FOLDER CASE...

was run once at each revision that gives its name to a folder of `saves/`: for each case it writes
the save and, in `*.after.safetensors`, what the session answered when it went on. The weights lie
beside the folders, as random numbers may differ by rounding between machines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny_llava
import tiny_qwen_vl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stc_video import CacheConfig, RekvConfig, StreamingSession

QUESTION = "what is it?"
#: where the weights lie, those of each family once
SAVES = Path(__file__).parent / "saves"
#: a policy without a promise of quality: nothing that it does depends on measurements
MOTION = CacheConfig(threshold=0.9)
PRUNER = {"prune": "stc", "prefill_chunk": 4}
CASES: dict[str, dict[str, Any]] = {
    "llava-plain-motion": {"memory": "plain", "cache": MOTION, "tokens_per_frame": 6, **PRUNER},
    "llava-rekv-stc": {
        "memory": RekvConfig(window_tokens=24, retrieve_tokens=30, host_bytes=1 << 20,
                             retrieval="plain", recent_frames=0),
        "cache": "stc", "tokens_per_frame": 6, **PRUNER,
    },
    "qwen-plain-motion": {"memory": "plain", "cache": MOTION, "tokens_per_frame": 3, **PRUNER},
    "qwen-plain-promise": {
        "memory": "plain", "cache": CacheConfig(), "tokens_per_frame": 3, **PRUNER
    },
}  # fmt: skip
#: the revision that made the save of each case
REVISIONS = dict.fromkeys(CASES, "6e68475") | {"qwen-plain-promise": "4a08406"}


def build(case: str) -> torch.nn.Module:
    """The model of a case, with whatever random weights this machine makes."""
    return tiny_qwen_vl.make_model("qwen2-vl") if "qwen" in case else tiny_llava.make_model()


def writer(case: str) -> Any:
    """Tokenizer and chat template of a case."""
    if "qwen" in case:
        return tiny_qwen_vl.make_tokenizer(tiny_qwen_vl.CHAT)
    return tiny_llava.make_tokenizer()


def frames(case: str) -> Tensor:
    """Twelve frames."""
    if "qwen" in case:
        return tiny_qwen_vl.video(12).view(12, *tiny_qwen_vl.GRID, -1)
    return tiny_llava.video(12)


def go_on(session: StreamingSession, case: str) -> dict[str, Tensor]:
    """Ask, push the other frames, ask again."""
    before = session.logits(QUESTION)
    session.push(frames(case)[9:])
    answer = session.ask(QUESTION, do_sample=False, max_new_tokens=6)
    return {"before": before, "after": session.logits(QUESTION), "ids": answer.ids}


def make(folder: Path, case: str) -> None:
    """Write a case."""
    model = with_weights(case)
    with StreamingSession(model, writer(case), **CASES[case]) as session:
        session.push(frames(case)[:9])
        session.ask("who?", dialogue=True, do_sample=False, max_new_tokens=3)
        session.save(folder / case)
        save_file(go_on(session, case), folder / f"{case}.after.safetensors")


def with_weights(case: str) -> torch.nn.Module:
    """The model of a case with the weights that its save was made with."""
    model = build(case)
    weights = load_file(SAVES / f"{case.split('-')[0]}.safetensors")
    model.load_state_dict(weights, strict=False)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    return model


def load(case: str, folder: Path | None = None) -> StreamingSession:
    """Open the save of a case, or another save of its session."""
    folder = SAVES / REVISIONS[case] / case if folder is None else folder
    return StreamingSession.load(folder, with_weights(case), writer(case), **CASES[case])


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    with torch.no_grad():
        for name in sys.argv[2:]:
            make(out, name)
