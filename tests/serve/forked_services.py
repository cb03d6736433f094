# SPDX-License-Identifier: Apache-2.0
"""Run by tests: imports everything once, and forks a process for each service.

    python forked_services.py FOLDER

FOLDER has a model. Each line of standard input is JSON: {"start": options, "output": file} runs
`stc serve` with these options in a process of its own and answers its number; {"wait": number}
answers its exit code when it has ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch

import stc_video.serve.server
from stc_video.cli.app import run_app
from stc_video.loading.video_llm import load_chat_model


def start(options: list[str], output: str) -> int:
    """Fork a service."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = run_app(["serve", *options])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    load_chat_model(folder)  # imports what loading needs
    assert stc_video.serve.server
    for line in sys.stdin:
        wish = json.loads(line)
        if "start" in wish:
            print(start(wish["start"], wish["output"]), flush=True)
        else:
            status = os.waitpid(wish["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
