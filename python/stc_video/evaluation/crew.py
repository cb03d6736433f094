# SPDX-License-Identifier: Apache-2.0
"""Workers on a Ray cluster, who share the videos of a run.

Ray finds room for them and notices when one is gone. Here is only who has which video, and that a
video that nobody finished is done again.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from stc_video.cluster import connect, room_for_models
from stc_video.evaluation.answers import Answers
from stc_video.evaluation.queries import Query
from stc_video.evaluation.runner import Given
from stc_video.evaluation.worker import Assignment, Facts, Worker

#: how many workers a video, or for each place a load of the model, may cost
_TRIES = 3
#: seconds between looks at Ctrl-C
_PATIENCE = 0.5

_Entries = list[dict[str, Any]]


class _RemoteWorker:
    """A worker in a process that Ray made."""

    def load(self, assignment: Assignment) -> Facts:
        """Load the model."""
        self._worker = Worker(assignment)
        return self._worker.facts

    def ask(self, queries: Sequence[Query], answered: Iterable[tuple[str, str]]) -> _Entries:
        """Ask about a video; returns the entries of its answers."""
        answers = Answers(answered)
        self._worker.run(queries, answers)
        return answers.entries


class Crew:
    """A worker on every GPU of a cluster or, if it has none, on every processor.

    The answers of a video come together when a worker has finished it, so that a video whose worker
    dies is done again as a whole, by another one. A video that has cost three workers is left
    without answers.

    Parameters
    ----------
    assignment
        What they do. On processors they have one thread each, if it does not say another number.
    address
        Of the cluster: ``auto`` for the one that this machine belongs to, ``local`` for a new one
        on this machine, or ``HOST:PORT``.

    Attributes
    ----------
    facts
        Of the first worker that has loaded its model; the others must have the same.
    lost
        Videos that the last run left.

    Raises
    ------
    ModuleNotFoundError
        If Ray is not there.
    ValueError
        If the cluster is not there or has no room, or the model cannot be loaded.
    """

    facts: Facts

    def __init__(self, assignment: Assignment, address: str) -> None:
        self._ray = connect(address)
        self._calls: dict[Any, tuple[Any, str | None]] = {}  # whose, and about which video
        self._idle: list[Any] = []
        self._failed_loads = 0
        self.lost: list[str] = []
        try:
            self._hire(assignment)
        except BaseException:
            self.close()
            raise

    def _hire(self, assignment: Assignment) -> None:
        """Start the workers, and wait for the first."""
        needs, self._places = room_for_models(self._ray, assignment.device, assignment.threads)
        self._assignment = replace(assignment, threads=needs.get("num_cpus", assignment.threads))
        self._kind = self._ray.remote(**needs)(_RemoteWorker)
        for _ in range(self._places):
            self._add_worker()
        while not self._idle:
            for _ in self._look():
                pass

    def _add_worker(self) -> None:
        """Wish for a worker; Ray starts it when there is room."""
        worker = self._kind.remote()
        self._calls[worker.load.remote(self._assignment)] = (worker, None)

    def run(
        self,
        queries: Sequence[Query],
        answers: Answers,
        on_answer: Callable[[Given], None] = lambda given: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Ask what has no answer yet; returns whether everything has one then."""
        groups: dict[str, list[Query]] = defaultdict(list)
        for query in queries:
            if any((one.name, query.key) not in answers.answered
                   for one in self.facts.configurations):  # fmt: skip
                groups[query.video].append(query)
        waiting, cost, self.lost = deque(sorted(groups)), Counter[str](), []
        while (waiting or self._at_work) and not stopped():
            while waiting and self._idle:
                self._give(waiting.popleft(), groups, answers)
            for video, entries in self._look():
                if entries is not None:
                    _write(entries, groups[video], answers, on_answer)
                    continue
                cost[video] += 1
                (waiting if cost[video] < _TRIES else self.lost).append(video)
        return not (waiting or self._at_work or self.lost)

    @property
    def _at_work(self) -> bool:
        return any(video is not None for _, video in self._calls.values())

    def _give(self, video: str, groups: dict[str, list[Query]], answers: Answers) -> None:
        worker, keys = self._idle.pop(), {query.key for query in groups[video]}
        answered = [name for name in answers.answered if name[1] in keys]
        self._calls[worker.ask.remote(groups[video], answered)] = (worker, video)

    def _look(self) -> Iterator[tuple[str, _Entries | None]]:
        """Wait a little; yields videos that are finished, and None for those whose worker died."""
        errors = self._ray.exceptions
        for call in self._ray.wait(list(self._calls), timeout=_PATIENCE)[0]:
            worker, video = self._calls.pop(call)
            try:
                found = self._ray.get(call)
            except errors.RayTaskError as error:  # as without Ray, and said in one sentence
                raise error.cause from error
            except errors.RayError as error:
                self._replace(worker, error if video is None else None)
                found = None
            else:
                self._idle.append(worker)
            if video is not None:
                yield video, found
            elif found is not None:
                self._meet(found)

    def _replace(self, worker: Any, failed_load: Exception | None) -> None:
        self._ray.kill(worker)  # it may only be out of reach
        self._failed_loads += failed_load is not None
        if self._failed_loads >= _TRIES * self._places:
            raise ValueError(f"--ray: workers die while they load the model: {failed_load}")
        self._add_worker()

    def _meet(self, facts: Facts) -> None:
        """Check that a worker does the same as the others."""
        self._failed_loads = 0
        before = getattr(self, "facts", facts)
        for name, value in facts.protocol.items():
            if value != before.protocol[name]:
                raise ValueError(
                    f"--ray: workers have another {name}: {value!r} and {before.protocol[name]!r}"
                )
        self.facts = before

    def close(self) -> None:
        """Dismiss the workers."""
        self._ray.shutdown()


def _write(
    entries: _Entries,
    queries: Sequence[Query],
    answers: Answers,
    on_answer: Callable[[Given], None],
) -> None:
    """Write what a worker found about a video."""
    by_key = {query.key: query for query in queries}
    for entry in entries:
        answers.add(entry)
        if entry["kind"] == "answer":
            query = by_key[entry["key"]]
            on_answer(Given(entry["configuration"], query, entry["answer"], entry["time"]))
    answers.sync()
