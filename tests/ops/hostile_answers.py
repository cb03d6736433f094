# SPDX-License-Identifier: Apache-2.0
"""Makes a hostile call on each backend and compares what they say."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hostile_calls import INDICES, Call, make
from torch import Tensor

import stc_kernels
from stc_kernels import _schemas

#: what says that there is no memory, which depends on the machine and not on the call
_NO_MEMORY = ("allocate", "bad_alloc", "not enough memory", "Cannot create", "Storage size")
_TOLERANCE = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def judge(seed: int) -> tuple[str, str | None]:
    """Make the call of a seed; return what came of it, and what was wrong."""
    call = make(seed)
    if call.way == "library":
        return _alone(call), None
    if call.way == "threads":
        return _in_threads(call), None
    if call.way == "fork":
        return _in_child(seed)
    expected, error = answer(call, "reference")
    for backend in _others(call, seed):
        again = make(seed)
        got, other_error = answer(again, backend)
        if fault := _difference(call, again, (expected, error), (got, other_error)):
            return "answered", f"{backend}: {fault} in {make(seed)}"
    fault = _written_despite(error, call, make(seed))
    if error is None:
        return "answered", None
    own = str(error).startswith(f"`{call.op}`")
    kind = (
        "for lack of memory" if _lacks_memory(error) else "in one sentence" if own else "by torch"
    )
    if kind == "by torch" and call.way == "public":
        fault = fault or f"refused by torch ({type(error).__name__}: {error}) in {make(seed)}"
    return f"refused {kind}", fault


def _others(call: Call, seed: int) -> list[str]:
    """The backends to compare with the reference."""
    first = call.arguments[0]
    if isinstance(first, Tensor) and first.is_meta:
        return []  # shapes only, and those are the reference's
    slow = () if seed % 10 == 0 else ("triton",)
    return [b for b in stc_kernels.available_backends(call.op) if b not in ("reference", *slow)]


def answer(call: Call, backend: str) -> tuple[Any, Exception | None]:
    """Return what a backend answers: a result or an error."""
    try:
        if call.way == "dispatcher":
            operator = getattr(torch.ops.stc_kernels, call.op).default
            return operator(*call.arguments, backend=backend), None
        names = _schemas.parameter_names(call.op)
        arguments = dict(zip(names, call.arguments, strict=True))
        return getattr(stc_kernels, call.op)(**arguments, backend=backend), None
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        return None, error


def _difference(
    first: Call, second: Call, right: tuple[Any, Any], ours: tuple[Any, Any]
) -> str | None:
    (expected, error), (got, other_error) = right, ours
    if (error is None) != (other_error is None):
        if _lacks_memory(error) or _lacks_memory(other_error):
            return None
        return f"{other_error or 'a result'!r} and not {error or 'a result'!r}"
    if error is not None:
        if _lacks_memory(error) or type(error) is type(other_error):
            return None
        return f"{other_error!r} and not {error!r}"
    written = _schemas.written_arguments(first.op)
    pairs = zip(
        _tensors(expected) + first.arguments[:written],
        _tensors(got) + second.arguments[:written],
        strict=True,
    )
    return next((told for pair in pairs if (told := _unequal(first, *pair))), None)


def _unequal(call: Call, right: Tensor, got: Tensor) -> str | None:
    if (right.shape, right.dtype, right.device) != (got.shape, got.dtype, got.device):
        return f"{tuple(got.shape)} {got.dtype} and not {tuple(right.shape)} {right.dtype}"
    # Sums of inf and NaN, and the order of equal scores, are matters of other tests.
    wild = any("numbers" in what or "shared" in what for what in call.spoilt)
    if right.is_meta or wild or not right.is_floating_point():
        return None
    # The mean of a few unit vectors may vanish: then rounding decides which way it points.
    if call.op == "saliency_topk" and call.arguments[0].shape[1] < 33:
        return None
    if any(isinstance(v, float) and not abs(v) < 1e4 for v in call.arguments):
        return None
    limit = _TOLERANCE[right.dtype]
    if torch.allclose(got.float(), right.float(), rtol=limit, atol=limit, equal_nan=True):
        return None
    return "another result"


def _written_despite(error: Exception | None, call: Call, untouched: Call) -> str | None:
    """What was refused must be as it was."""
    if error is None:
        return None
    for i in range(_schemas.written_arguments(call.op)):
        before, after = untouched.arguments[i], call.arguments[i]
        plain = isinstance(after, Tensor) and after.layout is torch.strided and after.is_cpu
        if not plain or after.is_nested or any("short" in what for what in call.spoilt):
            continue
        if after.numel() < 1e6 and not torch.equal(_bits(before), _bits(after)):
            return f"refused ({error}) and written to all the same: {untouched}"
    return None


def _bits(t: Tensor) -> Tensor:
    return t.detach().resolve_neg().contiguous().view(-1).view(torch.uint8)


def _lacks_memory(error: Exception | None) -> bool:
    return error is not None and (
        isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY)
    )


def _tensors(value: Any) -> list[Any]:
    values = value if isinstance(value, tuple) else (value,)
    return [v for v in values if v is not None]


def _alone(call: Call) -> str:
    """What the library registers, which nothing stands before: it may refuse, and not crash."""
    if "native" not in stc_kernels.available_backends(call.op):
        return "not in the library"
    operator = getattr(torch.ops.stc_kernels, _schemas.native_name(call.op)).default
    try:
        operator(*call.arguments)
    except (ValueError, TypeError, RuntimeError, MemoryError):
        return "refused by the library alone"
    return "answered by the library alone"


def _in_threads(call: Call) -> str:
    """The same call in eight threads, while one more writes to its indices."""
    ended = threading.Event()
    integers = [v for v in call.arguments if isinstance(v, Tensor) and v.dtype == torch.int32
                and v.layout is torch.strided and v.is_cpu and not v.is_nested and v.numel() < 1e6]  # fmt: skip

    def disturb() -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            for t in integers:
                try:
                    t.fill_(INDICES[turn % 7])
                except RuntimeError:
                    return

    backends = stc_kernels.available_backends(call.op)
    backend = "native" if "native" in backends else "reference"
    threads = [threading.Thread(target=answer, args=(call, backend)) for _ in range(8)]
    if backend == "native" and not any("storage" in what for what in call.spoilt):
        threads.append(threading.Thread(target=disturb))
    for thread in threads:
        thread.start()
    for thread in threads[:8]:
        thread.join()
    ended.set()
    for thread in threads[8:]:
        thread.join()
    return "in threads"


def _in_child(seed: int) -> tuple[str, str | None]:
    """In a process forked from one that has run the operators.

    With one thread, as in workers of torch's DataLoader: the threads of OpenMP did not come along,
    and torch's own operators wait for them for ever.
    """
    child = _fork()
    if child == 0:
        faulthandler.dump_traceback_later(120, exit=True)
        torch.set_num_threads(1)
        call = make(seed)
        for backend in stc_kernels.available_backends(call.op):
            if backend != "triton":
                answer(call, backend)
        os._exit(0)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return "after a fork", f"ended with {code} after a fork: {make(seed)}" if code else None
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "after a fork", f"did not end after a fork: {make(seed)}"


def _fork() -> int:
    """Fork while no other thread runs.

    One that the child has not got may hold a lock of AddressSanitizer's allocator, which GCC 12
    does not open in the child; threads that were joined are at it when they free their memory.
    """
    while any(_runs(thread) for thread in Path("/proc/self/task").iterdir()):
        time.sleep(0.001)
    return os.fork()


def _runs(thread: Path) -> bool:
    """Whether it is another thread than this one and does not sleep."""
    if int(thread.name) == threading.get_native_id():
        return False
    with suppress(FileNotFoundError, ProcessLookupError):
        return (thread / "stat").read_text().rpartition(") ")[2][0] != "S"
    return False
