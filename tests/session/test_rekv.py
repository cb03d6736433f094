# SPDX-License-Identifier: Apache-2.0
"""The ReKV memory against its definition written out, and against the stock model."""

from __future__ import annotations

import pytest
import torch
from rekv_oracle import RekvOracle
from tiny_llava import TOKENS, video

from stc_video import MemoryFullError, RekvConfig
from stc_video.memory import Frame, RekvMemory

PREFIX, PROMPT, WIDTH = 3, 5, 64
QUESTION = slice(1, 4)


def config(**settings) -> RekvConfig:
    """The paper's retrieval, but for the settings given."""
    paper = {"retrieval": "plain", "recent_frames": 0}
    return RekvConfig(**{"slab_bytes": 1 << 18, "host_bytes": 1 << 22, **paper, **settings})


def embeds(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn((tokens, WIDTH), generator=torch.Generator().manual_seed(seed))


def frames(sizes: list[int], *, gaps: bool = False) -> list[Frame]:
    made = []
    for number, size in enumerate(sizes):
        offsets = torch.arange(size) * (2 if gaps else 1)
        span = 16 if gaps else size
        made.append(Frame(embeds(size, number), offsets, span, number, 0.5 * number))
    return made


def logits(model, memory, prompt) -> torch.Tensor:
    """Logits behind the prompt: its last token fed to the stock model on the context."""
    context = memory.context(prompt, QUESTION, "?")
    out = model.model.language_model(
        inputs_embeds=prompt[None, -1:],
        position_ids=torch.tensor([[context.tokens]]),
        past_key_values=context.cache,
    )
    return model.lm_head(out.last_hidden_state[0, -1])


SIZES = [4, 6, 1, 9, 5, 3, 8, 2, 7, 4]


@pytest.mark.parametrize(
    ("window", "budget"),
    [(12, 20), (20, 1000), (1000, 20), (1000, 1000), (9, 7)],
)
@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_equals_the_definition(model, window, budget, chunk):
    oracle = RekvOracle(model, window, budget)
    memory = RekvMemory(model.model.language_model, config(window_tokens=window,
                                                           retrieve_tokens=budget))  # fmt: skip
    oracle.begin(embeds(PREFIX, 100))
    memory.begin(embeds(PREFIX, 100))
    stream = frames(SIZES)
    for first in range(0, len(stream), chunk):
        memory.append(stream[first : first + chunk])
    for frame in stream:
        oracle.push(frame.embeds)
    prompt = embeds(PROMPT, 200)
    torch.testing.assert_close(
        logits(model, memory, prompt), oracle.logits(prompt, QUESTION), atol=2e-5, rtol=0
    )
    used = memory.context(prompt, QUESTION, "?").retrieved
    for frame in used:
        assert frame.layers == sum(frame.number in layer for layer in oracle.retrieved)
        assert frame.time == 0.5 * frame.number
    assert [f.number for f in used] == sorted({n for layer in oracle.retrieved for n in layer})


def dense(model, stream, prompt, *, gaps=False) -> torch.Tensor:
    """One causal forward of the stock model over everything."""
    parts, places, at = [embeds(PREFIX, 100)], list(range(PREFIX)), PREFIX
    for frame in stream:
        parts.append(frame.embeds)
        places += (at + frame.offsets).tolist()
        at += frame.span
    x = torch.cat([*parts, prompt])[None]
    places += range(at, at + len(prompt))
    out = model.model.language_model(inputs_embeds=x, position_ids=torch.tensor([places]))
    return model.lm_head(out.last_hidden_state[0, -1])


@pytest.mark.parametrize("gaps", [False, True], ids=["repacked", "original"])
def test_a_short_stream_is_plain_causal_attention(model, gaps):
    memory = RekvMemory(model.model.language_model, config())
    memory.begin(embeds(PREFIX, 100))
    stream = frames(SIZES, gaps=gaps)
    memory.append(stream)
    prompt = embeds(PROMPT, 200)
    torch.testing.assert_close(
        logits(model, memory, prompt), dense(model, stream, prompt), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "stores",
    [
        {"host_bytes": 1 << 22},
        {"host_bytes": 0, "device_bytes": 1 << 22},
        {"host_bytes": 0, "disk_bytes": 1 << 22},
        {"device_bytes": 12_000, "host_bytes": 12_000, "disk_bytes": 1 << 22, "slab_bytes": 6_000},
    ],
    ids=["host", "device", "disk", "three tiers"],
)
def test_where_frames_are_stored_changes_nothing(model, stores, tmp_path):
    """All blocks off-loaded and retrieved equal the window of the definition, bit for bit."""
    found = []
    for settings in ({"host_bytes": 1 << 22}, stores):
        memory = RekvMemory(
            model.model.language_model,
            config(window_tokens=12, retrieve_tokens=30, disk_folder=tmp_path, **settings),
        )
        memory.begin(embeds(PREFIX, 100))
        memory.append(frames(SIZES))
        found.append(logits(model, memory, embeds(PROMPT, 200)))
        held = memory.nbytes()
        for name in ("device", "host", "disk"):
            assert held.get(name, 0) <= settings.get(f"{name}_bytes", 0)
        memory.clear()
    assert torch.equal(*found)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("gaps", [False, True], ids=["repacked", "original"])
def test_frames_without_tokens_change_nothing_however_they_are_grouped(model, gaps):
    found = []
    sizes = [0, 5, 0, 0, 6, 4, 0, 7, 0, 0, 5, 6, 0]
    for chunk in (1, 4, len(sizes)):
        memory = RekvMemory(
            model.model.language_model, config(window_tokens=12, retrieve_tokens=30)
        )
        memory.begin(embeds(PREFIX, 100))
        stream = frames(sizes, gaps=gaps)
        for first in range(0, len(stream), chunk):
            memory.append(stream[first : first + chunk])
        found.append(logits(model, memory, embeds(PROMPT, 200)))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=0)


def test_a_question_changes_nothing(model):
    memory = RekvMemory(model.model.language_model, config(window_tokens=12, retrieve_tokens=20))
    memory.begin(embeds(PREFIX, 100))
    memory.append(frames(SIZES))

    def state():
        made = memory.snapshot()
        tensors = {**made.tensors, **made.records}
        return repr(made.values), {str(name): t.clone() for name, t in tensors.items()}

    before = state()
    first = [logits(model, memory, embeds(PROMPT, seed)) for seed in (1, 2)]
    after = state()
    assert before[0] == after[0]
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    second = [logits(model, memory, embeds(PROMPT, seed)) for seed in (2, 1)]
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[0])


def test_the_prefix_is_seen_once_while_the_window_begins_to_slide(model):
    """The step at which the reference counts the prefix twice: each key has one weight."""
    memory = RekvMemory(model.model.language_model, config(window_tokens=8))
    memory.begin(embeds(PREFIX, 100))
    seen = []
    original = type(memory._decoder.layers[0]).attend

    def attend(self, query, key, value, mask):
        if self is memory._decoder.layers[0]:
            seen.append(key.shape[1])
        return original(self, query, key, value, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory._decoder.layers[0]), "attend", attend)
        for frame in frames([4] * 6):
            memory.append([frame])
    assert seen == [PREFIX + n for n in (4, 8, 12, 12, 12, 12)]


def test_frames_without_tokens_take_no_room(model):
    memory = RekvMemory(model.model.language_model, config(window_tokens=12))
    memory.begin(embeds(PREFIX, 100))
    memory.append(frames([4, 0, 5, 0, 0]))
    memory.append(frames([0]))
    reference = RekvMemory(model.model.language_model, config(window_tokens=12))
    reference.begin(embeds(PREFIX, 100))
    reference.append([f for f in frames([4, 0, 5]) if len(f.embeds)])
    prompt = embeds(PROMPT, 200)
    assert torch.equal(logits(model, memory, prompt), logits(model, reference, prompt))


def test_a_question_about_nothing_sees_the_prefix_only(model):
    memory = RekvMemory(model.model.language_model, config())
    memory.begin(embeds(PREFIX, 100))
    prompt = embeds(PROMPT, 200)
    torch.testing.assert_close(logits(model, memory, prompt), dense(model, [], prompt))


def stream_of(model, count: int, **settings) -> RekvMemory:
    memory = RekvMemory(model.model.language_model, config(**settings))
    memory.begin(embeds(PREFIX, 100))
    for frame in frames([8] * count):
        memory.append([frame])
    return memory


BLOCK = 3 * 2 * 2 * 8 * 16 * 4


def test_the_oldest_frames_are_forgotten(model):
    memory = stream_of(model, 12, window_tokens=16, host_bytes=4 * BLOCK, slab_bytes=BLOCK)
    # Three in the window (the last one has only been added), four in the store.
    assert [f.number for f in memory.context(embeds(2, 0), slice(0, 1), "").retrieved] == [
        *range(5, 12)
    ]
    assert memory.evicted == 5
    assert memory.nbytes()["host"] == 4 * BLOCK


def test_the_most_redundant_frames_are_merged(model):
    settings = config(window_tokens=16, host_bytes=4 * BLOCK, slab_bytes=BLOCK,
                      eviction="redundant")  # fmt: skip
    memory = RekvMemory(model.model.language_model, settings)
    memory.begin(embeds(PREFIX, 100))
    stream = frames([8] * 8)
    # Frame 2 shows what frame 1 showed; its keys are nearly the same.
    stream[2] = Frame(stream[1].embeds, stream[2].offsets, 8, 2)
    for frame in stream:
        memory.append([frame])
    held = [f.number for f in memory.context(embeds(2, 0), slice(0, 1), "").retrieved]
    assert held == [0, 1, 3, 4, 5, 6, 7]
    assert memory._blocks[1].stands_for == 2


def test_a_full_memory_that_may_not_forget_refuses(model):
    memory = stream_of(model, 7, window_tokens=16, host_bytes=4 * BLOCK, slab_bytes=BLOCK,
                       eviction="refuse")  # fmt: skip
    prompt = embeds(PROMPT, 200)
    before = logits(model, memory, prompt)
    with pytest.raises(MemoryFullError, match=r"the host store of .* is full"):
        memory.append(frames([8]))
    assert torch.equal(logits(model, memory, prompt), before)


def test_without_a_store_a_long_stream_is_refused(model):
    with pytest.raises(MemoryFullError, match="give device_bytes, host_bytes or disk_bytes"):
        stream_of(model, 5, window_tokens=16, host_bytes=0)
    with pytest.raises(MemoryFullError, match="does not fit into the host store"):
        stream_of(model, 5, window_tokens=16, host_bytes=BLOCK - 1, slab_bytes=BLOCK)
    with pytest.raises(ValueError, match="fit into the window of 4 tokens"):
        stream_of(model, 1, window_tokens=4)


def test_a_failing_model_loses_nothing(model):
    memory = stream_of(model, 7, window_tokens=16)
    prompt = embeds(PROMPT, 200)
    before = logits(model, memory, prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model.language_model.layers[1].mlp, "forward", None)
        with pytest.raises(TypeError):
            memory.append(frames([8, 8, 8]))
    assert torch.equal(logits(model, memory, prompt), before)
    # And it goes on as if nothing had happened.
    more = [Frame(embeds(8, 7), torch.arange(8), 8, 7)]
    memory.append(more)
    other = stream_of(model, 8, window_tokens=16)
    torch.testing.assert_close(logits(model, memory, prompt), logits(model, other, prompt))


def test_recent_frames_are_always_retrieved(model):
    memory = stream_of(model, 12, retrieve_tokens=24, recent_frames=2)
    retrieved = memory.context(embeds(PROMPT, 200), QUESTION, "?").retrieved
    layers = {frame.number: frame.layers for frame in retrieved}
    assert layers[10] == layers[11] == 3


def test_an_external_scorer_decides_for_all_layers(model):
    asked = []

    def scorer(question, numbers):
        asked.append(question)
        return [1.0 if number in (2, 5) else 0.0 for number in numbers]

    memory = stream_of(model, 12, retrieve_tokens=16, scorer=scorer)
    retrieved = memory.context(embeds(PROMPT, 200), QUESTION, "where?").retrieved
    assert [(f.number, f.layers) for f in retrieved] == [(2, 3), (5, 3)]
    assert asked == ["where?"]
    wrong = stream_of(model, 3, scorer=lambda question, numbers: [1.0])
    with pytest.raises(ValueError, match="one score for each of 3 frames"):
        wrong.context(embeds(PROMPT, 200), QUESTION, "?")


@pytest.mark.parametrize("retrieval", ["normalised", "mmr"])
def test_the_other_retrievals_take_as_many_tokens(model, retrieval):
    memory = stream_of(model, 12, retrieve_tokens=20, retrieval=retrieval)
    context = memory.context(embeds(PROMPT, 200), QUESTION, "?")
    assert context.tokens == PREFIX + 20 + PROMPT - 1
    assert sum(frame.layers for frame in context.retrieved) == 3 * 3


def test_the_positions_of_a_very_long_stream_are_exact(model):
    """The same frames at position 0 and at ten million: attention sees differences only."""
    found = []
    for start in (0, 10_000_000):
        memory = RekvMemory(model.model.language_model, config(window_tokens=12,
                                                               retrieve_tokens=30))  # fmt: skip
        memory.begin(embeds(0, 0))
        memory._window.position += start
        memory.append(frames(SIZES))
        found.append(logits(model, memory, embeds(PROMPT, 200)))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eviction", ["oldest", "redundant"])
def test_a_long_stream_stays_within_its_budgets(model, eviction, tmp_path):
    """The 20,000 frames of benchmarks/long_stream.py, in small: everything is bounded."""
    budgets = {"device": 4 * BLOCK, "host": 8 * BLOCK, "disk": 16 * (BLOCK + 256)}
    settings = config(
        window_tokens=32, retrieve_tokens=32, slab_bytes=2 * BLOCK, eviction=eviction,
        disk_folder=tmp_path, **{f"{name}_bytes": size for name, size in budgets.items()},
    )  # fmt: skip
    memory = RekvMemory(model.model.language_model, settings)
    memory.begin(embeds(PREFIX, 100))
    held, counts = [], []
    for frame in frames([8] * 150):
        memory.append([frame])
        held.append(memory.nbytes())
        counts.append(memory.tokens)
        assert all(held[-1][name] <= budget for name, budget in budgets.items())
    assert held[-1] == held[60]
    assert counts[-1] == counts[60]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(512 * path.stat().st_blocks for path in files) == held[-1]["disk"]
    assert memory.evicted == 150 - (counts[-1] - PREFIX) // 8
    represented = sum(block.stands_for for block in memory._blocks.values())
    assert represented == (150 if eviction == "redundant" else 150 - memory.evicted)
    memory.clear()


def test_a_small_session_of_real_frames(open_session):
    """Through the whole session: tower, pruner, memory."""
    session = open_session(
        config(window_tokens=3 * TOKENS), cache="motion", prune="stc", tokens_per_frame=6
    )
    session.push(video(12))
    assert session.stats().tokens_kept == 72
    assert len(session.ask("what?", max_new_tokens=2).retrieved) == 12
