# SPDX-License-Identifier: Apache-2.0
"""A save that is not what was written is refused, whatever happened to it.

`STC_ATTACKS=2000 python -m pytest -s tests/session/test_damaged_saves.py`, or `make attack-saves`,
tries so many accidents and prints what came of them.
"""

from __future__ import annotations

import json
import os
import random
import stat
from collections import Counter
from pathlib import Path

import damages
import pytest
import torch
from tiny_llava import make_tokenizer, video

from stc_video import RekvConfig, StreamingSession

ATTACKS = int(os.environ.get("STC_ATTACKS", "90"))
QUESTION = "what is on the table?"
BLOCK = 3 * 2 * 2 * 6 * 16 * 4
COMMON = {"prune": "stc", "tokens_per_frame": 6, "prefill_chunk": 4}


def cases(folder: Path) -> dict[str, dict]:
    stores = {"window_tokens": 24, "retrieve_tokens": 30, "slab_bytes": 2 * BLOCK,
              "disk_folder": folder / "blocks"}  # fmt: skip
    return {
        "plain": {"memory": "plain", "cache": "motion", **COMMON},
        "tiers": {"memory": RekvConfig(host_bytes=4 * BLOCK, disk_bytes=1 << 20, **stores),
                  "cache": "stc", **COMMON},
        "disk": {"memory": RekvConfig(host_bytes=0, disk_bytes=1 << 20, storage="int8", **stores),
                 "cache": "motion", **COMMON},
    }  # fmt: skip


@pytest.fixture(scope="module")
def saves(model, tmp_path_factory) -> dict[str, tuple[Path, dict, list[torch.Tensor]]]:
    """By name: a save, its settings, and what is answered from it. Two of each, of other frames."""
    made = {}
    before = os.umask(0)  # whatever it is, saves are for their owner
    folder = tmp_path_factory.mktemp("whole")
    with torch.no_grad():
        for name, settings in cases(folder).items():
            for seed in (0, 1):
                with StreamingSession(model, make_tokenizer(), **settings) as session:
                    session.push(video(18, seed=seed), timestamps=range(18))
                    session.ask("who?", dialogue=True, max_new_tokens=3)
                    session.save(folder / f"{name}-{seed}")
                made[f"{name}-{seed}"] = (folder / f"{name}-{seed}", settings, [])
        os.umask(before)
        for path, settings, expected in made.values():
            expected += answers(path, model, settings)
    return made


def answers(path: Path, model, settings: dict) -> list[torch.Tensor]:
    with StreamingSession.load(path, model, make_tokenizer(), **settings) as session:
        found = [session.logits(QUESTION)]
        session.push(video(5, seed=2))
        return [*found, session.logits(QUESTION)]


def test_no_accident_changes_an_answer(model, saves, tmp_path):
    draw = random.Random(17)
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in damages.DAMAGES}
    wrong = []
    for number in range(ATTACKS):
        kind = list(outcomes)[number % len(outcomes)]
        name = draw.choice(list(saves))
        whole, settings, expected = saves[name]
        other = saves[draw.choice([n for n in saves if n != name])][0]
        path = damages.copy(whole, tmp_path / "save")
        said = f"{name}: {damages.draw_damage(kind, path, other, draw)}"
        try:
            found = answers(path, model, settings)
        except ValueError as error:
            outcome = "refused" if str(path) in str(error) else "refused, but not named"
        except Exception as error:
            outcome = f"failed with {type(error).__name__}"
        else:
            same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            outcome = "loaded, unchanged" if same else "loaded, changed"
        outcomes[kind][outcome] += 1
        if outcome not in ("refused", "loaded, unchanged"):
            wrong.append(f"{outcome}: {said}")
    for kind, counts in outcomes.items():
        print(f"{kind:24} {sum(counts.values()):5} tried", dict(counts))
    total = sum(outcomes.values(), Counter())
    print(f"{'all':24} {sum(total.values()):5} tried", dict(total))
    assert wrong == []
    assert total["refused"] > 0.9 * ATTACKS


def test_what_is_refused_names_folder_and_file(model, saves, tmp_path):
    path = damages.copy(saves["disk-0"][0], tmp_path / "save")
    record = sorted(path.glob("data-*/0*.safetensors"))[1]
    content = bytearray(record.read_bytes())
    content[-1] ^= 1
    record.write_bytes(content)
    with pytest.raises(ValueError, match=rf"save in {path} is damaged: data-\w+/{record.name} has"):
        answers(path, model, saves["disk-0"][1])


def test_of_a_format_without_checksums_the_numbers_are_checked(model, saves, tmp_path):
    whole, settings, expected = saves["tiers-0"]

    def edited(change) -> Path:
        path = damages.copy(whole, tmp_path / "save")
        values = json.loads((path / "session.json").read_text())
        files = values.pop("files")
        values["records"] = [int(name[:-12]) for name in files if name[0] == "0"]
        values["format"] = 2
        del values["checksum"], values["version"]
        change(values, dict(values["state"]["dict"])["session"]["fields"])
        (path / "session.json").write_text(json.dumps(values))
        return path

    found = answers(edited(lambda values, session: None), model, settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for change, message in [
        (lambda v, s: v["memory"]["blocks"][2].update(start=-4), "start of a block must be from 0"),
        (lambda v, s: v["memory"]["blocks"][0].update(time=1e999), "Infinity is no number"),
        (lambda v, s: v["memory"]["blocks"][1].update(number=0), "numbers of blocks must grow"),
        (lambda v, s: v["memory"].pop("evicted"), "memory must have blocks, position"),
        (lambda v, s: v["memory"]["stores"]["host"].pop(), "the stores must hold each block"),
        (lambda v, s: v["records"].pop(), "there must be a record of each block"),
        (lambda v, s: v.update(position=3), "must have the objects"),
        (lambda v, s: s.update(frames=-1), "session.frames must be int from 0, got -1"),
        (lambda v, s: s.update(frames="9"), "session.frames must be int from 0, got '9'"),
        (lambda v, s: s.update(refused=100), "100 cannot be refused"),
        (lambda v, s: s.update(turns={"list": [3]}), "turns must be pairs of texts"),
    ]:
        with pytest.raises(ValueError, match=message):
            answers(edited(change), model, settings)


def test_a_save_is_for_its_owner_only(saves):
    path = saves["disk-0"][0]
    for entry in [path, *path.rglob("*")]:
        expected = 0o700 if entry.is_dir() else 0o600
        assert stat.S_IMODE(entry.stat().st_mode) == expected, entry
    values = json.loads((path / "session.json").read_text())
    assert values["version"]
