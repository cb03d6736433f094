# SPDX-License-Identifier: Apache-2.0
"""Run by a test: saves a session over and over, killed at every step that touches the disk.

    python killed_save.py FOLDER

FOLDER/good is a save of 4 frames. For each step k, FOLDER/<k> begins as a copy of it, and a forked
process that has seen 6 frames is killed while saving there, just before its k-th step. The last
one is not killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from forking import fork
from tiny_llava import make_model, make_tokenizer, video

from stc_video import RekvConfig, StreamingSession
from stc_video.session import storage

#: what a save calls to touch the disk, and where it finds it
STEPS = (
    (os, "fsync"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree"), (storage, "save_file"),
    (storage, "write_record"), (storage, "write_new"), (storage.StoredFile, "link"),
)  # fmt: skip


def kill_before(step: int, calls: tuple = STEPS) -> None:
    """Let this process die before its step-th call of any of these."""
    left = step

    def dying(call):
        def run(*args, **kwargs):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)

        return run

    for owner, name in calls:
        setattr(owner, name, dying(getattr(owner, name)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = RekvConfig(window_tokens=32, host_bytes=16_384, slab_bytes=4_096,
                        disk_bytes=1 << 20, disk_folder=folder / "blocks")  # fmt: skip
    session = StreamingSession(make_model(), make_tokenizer(), memory=config, tokens_per_frame=6)
    session.push(video(12)[:8])
    session.save(folder / "good")
    session.push(video(12)[8:])
    for step in range(1000):
        target = folder / str(step)
        shutil.copytree(folder / "good", target)
        child = fork()
        if child == 0:
            kill_before(step)
            session.save(target)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise RuntimeError("a save has more than 1000 steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
