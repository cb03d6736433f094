# SPDX-License-Identifier: Apache-2.0
"""Is an answer right? By each benchmark's own code, faults included, and by strict rules."""

from __future__ import annotations

import re
from collections.abc import Callable

from stc_video.evaluation.queries import LETTERS, Query

PARSERS = ("official", "strict")

#: seconds that a proactive answer may be early or late
_TOLERANCE = 2.0

#: what each official rule does, for the reports
_OFFICIAL_RULES = {
    "ovo-bench": "choices: the right letter anywhere in the answer, so that 'Answer: B' is right "
    "for A, too; counts: all digits joined; Yes and No: anywhere in the answer, or exactly Y or N",
    "streamingbench": "choices: the first character; an empty answer is left out of the "
    "denominator; proactive: at most 2 s off, and the text is in the answer",
    "mlvu": "all before the first ')' must be exactly the letter",
    "egoschema": "before the first ')', else the first character; else the first option (ReKV)",
    "video-mme": "the first of A to D behind phrases such as 'The best answer is'",
    "rekv": "before the first ')', else the first character",
}
_STRICT_RULE = (
    "choices: one letter, alone, in brackets, in front of . : or ), or behind 'answer' or "
    "'option'; counts: one number; Yes or No: the first word, and not both; an empty answer is "
    "wrong"
)


def rule_of(benchmark: str, parser: str) -> str:
    """Say in words what a parser does."""
    return _STRICT_RULE if parser == "strict" else _OFFICIAL_RULES[benchmark]


def is_right(
    benchmark: str, query: Query, answer: str | None, time: float | None, parser: str
) -> bool | None:
    """Score one answer.

    Parameters
    ----------
    benchmark
        Whose rules.
    query
        What was asked.
    answer
        None if there is none.
    time
        When a proactive answer was given; None if it never was.
    parser
        "official" or "strict".

    Returns
    -------
    bool or None
        None for what is not counted: questions without a public answer, and what the official
        code leaves out.
    """
    if parser not in PARSERS:
        raise ValueError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
    if query.problem:
        return False
    if query.kind == "open":
        return None
    if query.kind == "proactive":
        return _proactive(query, answer, time)
    if parser == "strict":
        return answer is not None and _STRICT[query.kind](query, answer) == query.gold
    if benchmark == "streamingbench" and answer is not None and not answer:
        return None  # count.py leaves it out
    return answer is not None and _OFFICIAL[benchmark](query, answer)


def _proactive(query: Query, answer: str | None, time: float | None) -> bool:
    if not answer or time is None or query.proactive is None:
        return False
    return abs(time - query.proactive.due) <= _TOLERANCE and query.gold in answer


# -- official ------------------------------------------------------------------------------------


def _ovo_bench(query: Query, answer: str) -> bool:
    if query.kind == "count":
        return "".join(re.findall(r"\d+", answer)) == query.gold
    if query.kind == "yes_no" and answer == query.gold[0]:
        return True
    return query.gold in answer


def _streaming_bench(query: Query, answer: str) -> bool:
    return answer[0] == query.gold


def _mlvu(query: Query, answer: str) -> bool:
    return answer.partition(")")[0] == query.gold


def _rekv_letter(answer: str) -> str:
    before, found, _ = answer.partition(")")
    return before.strip().lstrip("(") if found else answer.strip()[:1]


def _rekv(query: Query, answer: str) -> bool:
    return _rekv_letter(answer) == query.gold


def _egoschema(query: Query, answer: str) -> bool:
    return submitted_letter(answer) == query.gold


def submitted_letter(answer: str | None) -> str:
    """Letter that is sent to EgoSchema's server: unreadable answers are the first option."""
    letter = _rekv_letter(answer or "")
    return letter if letter in tuple(LETTERS[:5]) else LETTERS[0]


_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def _video_mme(query: Query, answer: str) -> bool:
    text = answer.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    # A long text without a letter of its own is no answer.
    if len(text.split()) > 10 and not re.search("[ABCD]", text):
        return False
    found = re.search("[ABCD]", text)
    return found is not None and found[0] == query.gold


_OFFICIAL: dict[str, Callable[[Query, str], bool]] = {
    "ovo-bench": _ovo_bench,
    "streamingbench": _streaming_bench,
    "mlvu": _mlvu,
    "egoschema": _egoschema,
    "video-mme": _video_mme,
    "rekv": _rekv,
}

# -- strict --------------------------------------------------------------------------------------

_ALONE = re.compile(r"\(?([A-H])(?:\)|[.:]|\s*$)")
_CLAIMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*\(?([A-H])\b", re.IGNORECASE)


def _strict_choice(query: Query, answer: str) -> str | None:
    text = answer.strip().strip("*`\"'")
    alone = _ALONE.match(text)
    letters = {match[1] for match in _CLAIMED.finditer(text) if match[1].isupper()}
    if alone:
        letters.add(alone[1])
    letters &= set(LETTERS[: len(query.choices)])
    return letters.pop() if len(letters) == 1 else None


def _strict_count(query: Query, answer: str) -> str | None:
    numbers = re.findall(r"\d+(?:\.\d+)?", answer)
    return str(int(numbers[0])) if len(numbers) == 1 and numbers[0].isdigit() else None


def _strict_yes_no(query: Query, answer: str) -> str | None:
    words = re.findall(r"[a-z]+", answer.lower())
    if not words or words[0] not in ("yes", "no") or {"yes", "no"} <= set(words):
        return None
    return "Yes" if words[0] == "yes" else "No"


_STRICT: dict[str, Callable[[Query, str], str | None]] = {
    "choice": _strict_choice,
    "count": _strict_count,
    "yes_no": _strict_yes_no,
}
