# SPDX-License-Identifier: Apache-2.0
"""Thousands of hostile calls of every operator: none may crash, and the reference decides.

A call that the reference refuses is refused by all, with the same kind of error, and leaves what it
would have written to as it was; one that it takes gives the same result. The calls are made in a
process of their own, which says beforehand which call it makes, so that a crash has a name and the
others go on::

    make fuzz-hostile
    python tests/ops/hostile.py --calls 10000
    python tests/ops/hostile.py --calls 1 --seed 4711                   # one call again
    python tests/ops/hostile.py --library build/sanitize/lib            # see make fuzz-hostile
"""

from __future__ import annotations

import argparse
import collections
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import IO

#: seconds after which a call counts as one that never ends
PATIENCE = 240
#: of the process without sanitizers, which themselves take terabytes of addresses
ADDRESS_SPACE = 16 << 30


def main() -> int:
    """Make the calls and print what came of them; 1 if any crashed or was answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first call")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--library", help="folder of another build of the compiled library")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, options.seed + options.calls, options.library)
        return 0
    outcomes, faults, made = drive(options)
    for kind, count in sorted(outcomes.items()):
        print(f"{count:7d} {kind}")
    print("\n".join(faults))
    build = options.library or "the installed library"
    print(f"{made} hostile calls ({build}, from seed {options.seed}): {len(faults)} faults")
    return 1 if faults or not made else 0


def drive(options: argparse.Namespace) -> tuple[collections.Counter[str], list[str], int]:
    """Have workers make the calls, a new one after each crash."""
    deadline = time.monotonic() + options.seconds
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    seed, end = options.seed, options.seed + options.calls
    while seed < end and time.monotonic() < deadline:
        done, why = run_worker(seed, end, options.library, deadline, outcomes, faults)
        if why is not None:
            faults.append(f"seed {done}: {why}\n  {describe(done)}")
            outcomes["crashed"] += 1
        seed = done + 1
    return outcomes, faults, seed - options.seed


def describe(seed: int) -> str:
    """Return the call of a seed in words; it is made anew, and not called."""
    import hostile_calls

    return str(hostile_calls.make(seed))


def run_worker(
    seed: int,
    end: int,
    library: str | None,
    deadline: float,
    outcomes: collections.Counter[str],
    faults: list[str],
) -> tuple[int, str | None]:
    """Return the last call of one worker, and how it died, if it did."""
    command = [sys.executable, "-W", "ignore", __file__, "--worker", "--seed", str(seed)]
    command += ["--calls", str(end - seed), *(["--library", library] if library else [])]
    last = seed
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(library), text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        said: collections.deque[str] = collections.deque(maxlen=200)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        readers = [
            threading.Thread(target=said.extend, args=(worker.stderr,), daemon=True),
            threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True),
        ]
        for reader in readers:
            reader.start()
        while True:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                worker.kill()
                return last, f"did not end within {PATIENCE} s"
            if not line:
                break
            word, _, rest = line.rstrip("\n").partition(" ")
            if word == "call":
                last = int(rest)
                if time.monotonic() > deadline:
                    worker.kill()
                    return last - 1, None
            elif word == "fault":
                faults.append(rest)
                outcomes["answered wrongly"] += 1
            else:
                outcomes[rest] += 1
        code = worker.wait()
        readers[0].join(60)
    if code == 0:
        return end - 1, None
    name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return last, f"crashed ({name})\n" + "".join(list(said)[-12:])


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass lines on, and an empty one at the end."""
    for line in stream:
        lines.put(line)
    lines.put("")


def environment(library: str | None) -> dict[str, str]:
    """Return the variables of a worker; with sanitizers their runtime has to be loaded first."""
    variables = {**os.environ, "OMP_NUM_THREADS": "2"}
    if library is None:
        return {**variables, "TRITON_INTERPRET": "1"}
    compiler = os.environ.get("CXX", "c++").split()[-1]
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    options = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096"
    return {**variables, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": options}


def work(seed: int, end: int, library: str | None) -> None:
    """Make the calls of some seeds, each told before."""
    warnings.simplefilter("ignore")
    if library is None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    else:
        import stc_kernels

        stc_kernels.__path__.insert(0, str(Path(library).resolve()))
        from stc_kernels import _C

        assert Path(_C.__file__).parent == Path(library).resolve(), _C.__file__
    import hostile_answers

    for at in range(seed, end):
        print("call", at, flush=True)
        outcome, fault = hostile_answers.judge(at)
        print("outcome", outcome, flush=True)
        if fault:
            print("fault", f"seed {at}: {fault}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
