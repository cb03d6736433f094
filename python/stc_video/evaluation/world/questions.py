# SPDX-License-Identifier: Apache-2.0
"""Questions about what a stream has shown so far, with their answers, in OVO-Bench's categories.

A question that cannot be asked of a moment, because its answer would be unclear, is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stc_video.evaluation.world.scenes import CARD, PLACES, SHAPES, Frame, Thing, looks

#: the option that is right where there is no answer
UNABLE = "unable to answer"
HAPPENED = ("it came", "it moved", "it changed", "nothing")
_TUTORIAL = "shapes"
_KNOWN = "known"
_MOST_TIMES = 3

#: everything up to now, the last frame being now
History = Sequence[Frame]


@dataclass(frozen=True)
class Question:
    """A question at a moment.

    Attributes
    ----------
    task
        Category of OVO-Bench.
    text
        Of a choice the question; of others what the row is about.
    answer
        A text, a number, "Yes" or "No".
    options
        Of a choice; the answer is one of them.
    kind
        Questions of one kind share a balance of answers; empty if they need none, as the answer is
        any option with the same chance.
    """

    task: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    kind: str = ""


@dataclass
class Balance:
    """Keeps the answers of a kind of question as frequent as they should be.

    Attributes
    ----------
    slack
        By how many an answer may be ahead of the rarest.
    """

    slack: int = 2
    _counts: dict[str, Counter[str]] = field(default_factory=dict)

    def takes(self, question: Question) -> bool:
        """Whether the question may be asked; it is counted then."""
        if not question.kind:
            return True
        counts = self._counts.setdefault(question.kind, Counter())
        parts = _PARTS[question.kind.partition(":")[0]]
        answer = question.answer if question.answer in parts else _KNOWN
        rarest = min(counts[other] / part for other, part in parts.items())
        if counts[answer] / parts[answer] > rarest + self.slack:
            return False
        counts[answer] += 1
        return True


Maker = Callable[[np.random.Generator, History], Question | None]


def _choice(
    random: np.random.Generator,
    task: str,
    text: str,
    answer: str,
    others: Sequence[str],
    kind: str,
    count: int = 4,
) -> Question:
    """A choice of the answer and of others that are not it, in any order."""
    wrong = [other for other in dict.fromkeys(others) if other != answer]
    return Question(task, text, answer, _mixed(random, [answer], wrong, count - 1), kind)


def _mixed(
    random: np.random.Generator, first: Sequence[str], others: Sequence[str], count: int
) -> tuple[str, ...]:
    """Some texts and `count` of others, in any order."""
    chosen = [*first, *(others[i] for i in random.permutation(len(others))[:count])]
    return tuple(chosen[i] for i in random.permutation(len(chosen)))


def _now(history: History) -> dict[str, Thing]:
    return {thing.kind: thing for thing in history[-1]}


def _seen(history: History) -> dict[str, tuple[int, Thing]]:
    """For each kind when it was first seen, and how it was last."""
    found: dict[str, tuple[int, Thing]] = {}
    for time, frame in enumerate(history):
        for thing in frame:
            found[thing.kind] = (found[thing.kind][0] if thing.kind in found else time, thing)
    return found


def _pick(random: np.random.Generator, items: Sequence[Any]) -> Any:
    return items[int(random.integers(len(items)))] if items else None


# -- what is there now -----------------------------------------------------------------------


def _sign_now(random: np.random.Generator, history: History) -> Question | None:
    card = _now(history).get(CARD)
    if card is None:
        return None
    return _choice(random, "OCR", "Which sign is on the card now?", card.look, looks(CARD), "")


def _colour_now(random: np.random.Generator, history: History) -> Question | None:
    """Colour of a shape, in half of all cases of one that may not be there."""
    now = {kind: thing for kind, thing in _now(history).items() if kind != CARD}
    kind = _pick(random, list(now) if now and random.random() < 0.8 else SHAPES)
    text = f"What colour is the {kind} now?"
    if random.random() < 0.5:
        look = now[kind].look if kind in now else UNABLE
        return _with_doubt(random, "ATR", text, look, kind, "now")
    return _choice(random, "ATR", text, now[kind].look, looks(kind), "") if kind in now else None


def _with_doubt(
    random: np.random.Generator, task: str, text: str, answer: str, kind: str, when: str
) -> Question:
    """A choice of three looks, and of that there is no answer, which is right in a quarter."""
    balance = f"doubt:{kind} {when}"
    if answer == UNABLE:
        return _choice(random, "HLD", text, answer, looks(kind), balance)
    known = _choice(random, task, text, answer, looks(kind), balance, 3)
    options = _mixed(random, [*known.options, UNABLE], (), 0)
    return Question(task, text, answer, options, balance)


def _shape_now(random: np.random.Generator, history: History) -> Question | None:
    counts = Counter(thing.look for thing in history[-1] if thing.kind != CARD)
    colour = _pick(random, [look for look, count in counts.items() if count == 1])
    if colour is None:
        return None
    shape = next(t.kind for t in history[-1] if t.look == colour and t.kind != CARD)
    return _choice(random, "OJR", f"Which shape is {colour} now?", shape, SHAPES, "")


def _place_now(random: np.random.Generator, history: History) -> Question | None:
    thing = _pick(random, history[-1])
    if thing is None:
        return None
    text = f"Where is the {thing.kind} now?"
    return _choice(random, "STU", text, PLACES[thing.place], PLACES, "")


def _count_now(random: np.random.Generator, history: History) -> Question | None:
    answers, count = ("0", "1", "2", "3"), str(len(history[-1]))
    return _choice(random, "ATR", "How many things are there now?", count, answers, "count")


def _just_now(random: np.random.Generator, history: History) -> Question | None:
    if len(history) < 2 or not history[-1]:
        return None
    thing = _pick(random, history[-1])
    before = {old.kind: old for old in history[-2]}.get(thing.kind)
    if before is None:
        happened = HAPPENED[0]
    elif before.look != thing.look and before.place != thing.place:
        return None
    elif before.place != thing.place:
        happened = HAPPENED[1]
    else:
        happened = HAPPENED[2 if before.look != thing.look else 3]
    text = f"What happened to the {thing.kind} just now?"
    return _choice(random, "ACR", text, happened, HAPPENED, "happened")


# -- what was there before -------------------------------------------------------------------


def _look_before(random: np.random.Generator, history: History) -> Question | None:
    """Colour or sign of what is gone, or was never there."""
    seen, now = _seen(history), _now(history)
    gone = [kind for kind in seen if kind not in now]
    kind = _pick(random, gone if gone and random.random() < 0.8 else (*SHAPES, CARD))
    if kind in now:
        return None
    what = "Which sign was on the" if kind == CARD else "What colour was the"
    text = f"{what} {kind} when it was last seen?"
    answer = seen[kind][1].look if kind in seen else UNABLE
    return _with_doubt(random, "EPM", text, answer, kind, "before")


def _first(random: np.random.Generator, history: History) -> Question | None:
    started = {kind: first for kind, (first, _) in _seen(history).items() if kind != CARD}
    earliest = [kind for kind in started if started[kind] == min(started.values())]
    if len(earliest) != 1 or len(started) < 2:
        return None
    return _choice(random, "EPM", "Which shape was seen first?", earliest[0], SHAPES, "")


def _together(random: np.random.Generator, history: History) -> Question | None:
    """The only shape that was in a picture with a sign."""
    with_sign: dict[str, set[str]] = {}
    for frame in history:
        for card in frame:
            if card.kind == CARD:
                shapes = {thing.kind for thing in frame if thing.kind != CARD}
                with_sign.setdefault(card.look, set()).update(shapes)
    sign = _pick(random, [look for look, shapes in with_sign.items() if len(shapes) == 1])
    if sign is None:
        return None
    text = f"Which shape was seen together with the sign {sign}?"
    return _choice(random, "EPM", text, next(iter(with_sign[sign])), SHAPES, "")


def _order(random: np.random.Generator, history: History) -> Question | None:
    starts: dict[int, str] = {}
    for kind, (first, _) in _seen(history).items():
        if kind != CARD:
            starts.setdefault(first, kind)
    if len(starts) < 3:
        return None
    times = [list(starts)[i] for i in random.permutation(len(starts))[:4]]
    options = [starts[time] for time in times]
    return _choice(random, "ASI", "Which of these came first?", starts[min(times)], options, "")


# -- how often so far, is it now, has it been ------------------------------------------------


def _times(random: np.random.Generator, history: History) -> Question | None:
    """How often a shape came; any number that some shape came is as likely as any other."""
    times = dict.fromkeys(SHAPES, 0)
    before: set[str] = set()
    for frame in history:
        now = {thing.kind for thing in frame} - {CARD}
        for kind in now - before:
            times[kind] += 1
        before = now
    number = _pick(random, [n for n in range(_MOST_TIMES + 1) if n in times.values()])
    if number is None:
        return None
    shape = _pick(random, [kind for kind in SHAPES if times[kind] == number])
    return Question("REC", f"show the {shape}", str(number), kind="times")


def _is_now(random: np.random.Generator, history: History) -> Question | None:
    shape = _pick(random, SHAPES)
    answer = "Yes" if shape in _now(history) else "No"
    return Question("SSR", f"the {shape} is shown", answer, kind="is now")


def _has_been(random: np.random.Generator, history: History) -> Question | None:
    shape = _pick(random, SHAPES)
    answer = "Yes" if shape in _seen(history) else "No"
    return Question("CRR", f"What colour was the {shape}?", answer, kind="has been")


#: name -> what makes the question
FAMILIES: dict[str, Maker] = {
    "colour now": _colour_now,
    "sign now": _sign_now,
    "shape now": _shape_now,
    "place now": _place_now,
    "count now": _count_now,
    "just now": _just_now,
    "look before": _look_before,
    "first": _first,
    "together": _together,
    "order": _order,
    "times": _times,
    "is now": _is_now,
    "has been": _has_been,
}

#: kind of question -> answer -> its part of the questions
_PARTS: dict[str, dict[str, int]] = {
    "count": dict.fromkeys(("0", "1", "2", "3"), 1),
    "happened": dict.fromkeys(HAPPENED, 1),
    "times": dict.fromkeys(("0", "1", "2", "3"), 1),
    "is now": {"Yes": 1, "No": 1},
    "has been": {"Yes": 1, "No": 1},
    "doubt": {_KNOWN: 3, UNABLE: 1},
}


def ask(
    random: np.random.Generator, family: str, history: History, balance: Balance
) -> Question | None:
    """Make a question; None if there is none, or if its answer has been right too often."""
    question = FAMILIES[family](random, history)
    return question if question is not None and balance.takes(question) else None


def write_row(question: Question, key: int, video: str, time: float) -> dict[str, Any]:
    """Write a question as a row of OVO-Bench's file."""
    row: dict[str, Any] = {"id": key, "task": question.task, "video": video}
    if question.options:
        return row | {
            "realtime": time,
            "question": question.text,
            "answer": question.answer,
            "options": list(question.options),
            "gt": question.options.index(question.answer),
        }
    if question.task == "REC":
        test = {"realtime": time, "count": int(question.answer)}
        return row | {"activity": question.text, "start_times": [], "end_times": [],
                      "test_info": [test]}  # fmt: skip
    test = {"realtime": time, "type": int(question.answer == "Yes")}
    if question.task == "SSR":
        return row | {"tutorial": _TUTORIAL, "all_steps": [question.text], "start_time": [],
                      "end_time": [], "test_info": [test | {"step": question.text}]}  # fmt: skip
    return row | {"question": question.text, "answer": "", "ask_time": time, "clue_time": time,
                  "test_info": [test]}  # fmt: skip
