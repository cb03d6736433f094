# SPDX-License-Identifier: Apache-2.0
"""The options of `stc serve` and `stc chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stc_video.cli.options import (
    MODEL,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ThreadsOption,
)

__all__ = ["chat", "serve"]

MEMORY, LIMITS, ACCESS = "Memory", "Limits", "Access"

Model = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL,
        help="Folder or Hugging Face id of a LLaVA-OneVision. llava-onevision-tiny: random "
        "weights, to try it.",
    ),
]
TokensPerFrame = Annotated[
    int, typer.Option(rich_help_panel=MEMORY, min=1, help="Tokens that are kept of a frame.")
]
RetrieveTokens = Annotated[
    int,
    typer.Option(
        rich_help_panel=MEMORY, min=1, help="Tokens of the video an answer is given from."
    ),
]
Storage = Annotated[
    str, typer.Option(rich_help_panel=MEMORY, help="How frames are stored: exact, int8 or int4.")
]
MaxNewTokens = Annotated[
    int, typer.Option(rich_help_panel=LIMITS, min=1, help="Longest answer, in tokens.")
]


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(rich_help_panel=ACCESS, help="Another one than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(rich_help_panel=ACCESS, help="0: any free one.")] = 8077,
    token: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ACCESS,
            envvar="STC_SERVE_TOKEN",
            help="What clients must present. Other users of this machine can see options of a "
            "command: prefer the variable, or --token-file.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(rich_help_panel=ACCESS, help="A file with the token.")
    ] = None,
    save_folder: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=MEMORY,
            help="Save streams here, and resume them at the start.",
            show_default="no saves",
        ),
    ] = None,
    autosave: Annotated[
        float, typer.Option(rich_help_panel=MEMORY, help="Seconds between saves.")
    ] = 60.0,
    memory_mb: Annotated[
        int,
        typer.Option(
            rich_help_panel=MEMORY, min=1, help="Main memory for the frames of each stream, in MB."
        ),
    ] = 1024,
    tokens_per_frame: TokensPerFrame = 64,
    retrieve_tokens: RetrieveTokens = 4096,
    storage: Storage = "exact",
    max_streams: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, min=1, help="Streams at a time.")
    ] = 16,
    queue: Annotated[
        int,
        typer.Option(
            rich_help_panel=LIMITS,
            min=1,
            help="Frames of a stream that may wait; one more pushes the oldest out.",
        ),
    ] = 4,
    max_fps: Annotated[
        float, typer.Option(rich_help_panel=LIMITS, help="Frames per second of a stream.")
    ] = 30.0,
    questions: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, min=1, help="Questions answered at a time.")
    ] = 2,
    questions_per_minute: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, min=1, help="Of all clients together.")
    ] = 240,
    max_new_tokens: MaxNewTokens = 512,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Offer live streams over HTTP: push frames, ask questions, watch what is reused.

    Ctrl-C or SIGTERM ends it; with --save-folder everything is saved then.
    """
    from stc_video.cli.serve import run_service
    from stc_video.memory import RekvConfig
    from stc_video.serve.config import ServeConfig

    if token_file is not None:
        if token is not None:
            raise ValueError("serve: give the token by --token-file or otherwise, not both")
        token = token_file.read_text(encoding="utf-8").strip()
    config = ServeConfig(
        host=host,
        port=port,
        token=token,
        max_streams=max_streams,
        queue_frames=queue,
        max_fps=max_fps,
        max_questions=questions,
        questions_per_minute=questions_per_minute,
        max_new_tokens=max_new_tokens,
        save_folder=save_folder,
        autosave_seconds=autosave,
        tokens_per_frame=tokens_per_frame,
        memory=RekvConfig(
            host_bytes=memory_mb << 20,
            retrieve_tokens=retrieve_tokens,
            retrieval="normalised",
            storage=storage,
        ),
    )
    run_service(config, model, device=device, dtype=dtype.value, threads=threads)


def chat(
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a camera such as /dev/video0, or an address such as rtsp://..."
        ),
    ],
    model: Model,
    fps: Annotated[float, typer.Option(help="Frames per second that the model gets.")] = 2.0,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Push a recording as fast as possible, not in its own time."),
    ] = False,
    tokens_per_frame: TokensPerFrame = 64,
    retrieve_tokens: RetrieveTokens = 4096,
    storage: Storage = "exact",
    max_new_tokens: MaxNewTokens = 256,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Talk about a video or a camera while it runs.

    Questions are lines; /help lists the commands. The conversation is remembered.
    """
    from stc_video.cli.chat import run_chat
    from stc_video.memory import RekvConfig

    memory = RekvConfig(retrieve_tokens=retrieve_tokens, storage=storage, retrieval="normalised")
    code = run_chat(
        source,
        model,
        fps=fps,
        fast=fast,
        memory=memory,
        tokens_per_frame=tokens_per_frame,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype.value,
        threads=threads,
    )
    raise typer.Exit(code)
