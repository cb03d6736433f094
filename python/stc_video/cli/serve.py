# SPDX-License-Identifier: Apache-2.0
"""`stc serve`: live streams over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stc_video.cli.options import (
    ACCESS,
    LIMITS,
    MEMORY,
    MODEL,
    CalibrationOption,
    DeviceOption,
    DtypeOption,
    LanguageModelOption,
    MaxNewTokensOption,
    MemoryOption,
    RetrieveTokensOption,
    StorageOption,
    ThreadsOption,
    TokensPerFrameOption,
    load_calibration,
)
from stc_video.cli.output import show_note
from stc_video.errors import install_hint
from stc_video.memory import command_memory
from stc_video.serve.config import MEMORY as STREAM_MEMORY
from stc_video.serve.config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Options of `stc serve`."""

    model: LanguageModelOption
    host: Annotated[
        str, typer.Option(rich_help_panel=ACCESS, help="Another one than loopback needs a token.")
    ] = ServeConfig.host
    port: Annotated[int, typer.Option(rich_help_panel=ACCESS, help="0: any free one.")] = (
        ServeConfig.port
    )
    token: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ACCESS,
            envvar="STC_SERVE_TOKEN",
            help="What clients must present. Other users of this machine can see options of a "
            "command: prefer the variable, or --token-file.",
        ),
    ] = None
    token_file: Annotated[
        Path | None, typer.Option(rich_help_panel=ACCESS, help="A file with the token.")
    ] = None
    save_folder: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=MEMORY,
            help="Save streams here, and resume them at the start.",
            show_default="no saves",
        ),
    ] = None
    autosave: Annotated[
        float, typer.Option(rich_help_panel=MEMORY, help="Seconds between saves.")
    ] = ServeConfig.autosave_seconds
    memory_mb: Annotated[
        int,
        typer.Option(
            rich_help_panel=MEMORY, min=1, help="Main memory for the frames of each stream, in MB."
        ),
    ] = STREAM_MEMORY.host_bytes >> 20
    calibration: CalibrationOption = None
    tokens_per_frame: TokensPerFrameOption = ServeConfig.tokens_per_frame
    memory: MemoryOption = "rekv"
    retrieve_tokens: RetrieveTokensOption = STREAM_MEMORY.retrieve_tokens
    storage: StorageOption = STREAM_MEMORY.storage
    max_streams: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, min=1, help="Streams at a time.")
    ] = ServeConfig.max_streams
    queue: Annotated[
        int,
        typer.Option(
            rich_help_panel=LIMITS,
            min=1,
            help="Frames of a stream that may wait; one more pushes the oldest out.",
        ),
    ] = ServeConfig.queue_frames
    max_fps: Annotated[
        float, typer.Option(rich_help_panel=LIMITS, help="Frames per second of a stream.")
    ] = ServeConfig.max_fps
    questions: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, min=1, help="Questions answered at a time.")
    ] = ServeConfig.max_questions
    questions_per_minute: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, min=1, help="Of all clients together.")
    ] = ServeConfig.questions_per_minute
    max_new_tokens: MaxNewTokensOption = ServeConfig.max_new_tokens
    ray: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODEL,
            metavar="ADDRESS",
            help="Replicas on a Ray cluster: auto, local or HOST:PORT.",
            show_default="this process",
        ),
    ] = None
    replicas: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=MODEL,
            min=1,
            help="How many, with --ray.",
            show_default="one for each GPU, or one",
        ),
    ] = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    threads: ThreadsOption = None

    def config(self) -> ServeConfig:
        """Return the service's settings.

        Raises
        ------
        ValueError, OSError
            If one is out of range, or the token cannot be read.
        """
        token = self.token
        if self.token_file is not None:
            if token is not None:
                raise ValueError("serve: give the token by --token-file or otherwise, not both")
            token = self.token_file.read_text(encoding="utf-8").strip()
        return ServeConfig(
            host=self.host,
            port=self.port,
            token=token,
            max_streams=self.max_streams,
            queue_frames=self.queue,
            max_fps=self.max_fps,
            max_questions=self.questions,
            questions_per_minute=self.questions_per_minute,
            max_new_tokens=self.max_new_tokens,
            save_folder=self.save_folder,
            autosave_seconds=self.autosave,
            calibration=load_calibration(self.calibration),
            tokens_per_frame=self.tokens_per_frame,
            memory=command_memory(
                self.memory,
                replace(
                    STREAM_MEMORY,
                    host_bytes=self.memory_mb << 20,
                    retrieve_tokens=self.retrieve_tokens,
                    storage=self.storage,
                ),
                STREAM_MEMORY,
            ),
        )


def serve(settings: ServeSettings) -> int:
    """Offer live streams over HTTP: push frames, ask questions, watch what is reused.

    Ctrl-C or SIGTERM ends it; with --save-folder everything is saved then.
    """
    import torch

    from stc_video.loading.video_llm import load_chat_model

    config = settings.config()
    if settings.ray is not None:
        return _serve_on_ray(settings, settings.ray, config)
    if settings.replicas is not None:
        raise ValueError("--replicas belongs to --ray")
    try:
        from stc_video.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "stc_video":
            raise
        raise ModuleNotFoundError(
            f"the package {error.name} is missing: {install_hint('serve')}"
        ) from error

    console = Console(highlight=False, soft_wrap=True)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with console.status("Loading the model ..."):
        chat = load_chat_model(settings.model, device=settings.device, dtype=settings.dtype)
    if chat.notice:
        show_note(console, chat.notice)

    def ready(address: str) -> None:
        guarded = "a token is needed" if config.token else "from this machine only"
        console.print(f"Serving {chat.name} at [bold]{address}[/bold] ({guarded}); Ctrl-C ends it.")
        if config.save_folder is None:
            console.print("Streams are not saved: --save-folder does.", style="dim")

    run_server(chat, config, ready)
    console.print("Ended." if config.save_folder is None else "Saved and ended.")
    return 0


def _serve_on_ray(settings: ServeSettings, address: str, config: ServeConfig) -> int:
    """Start replicas and wait for the end."""
    import signal
    import threading

    from stc_video.cluster import require_ray

    require_ray()
    from stc_video.serve.replicas import ModelChoice, start_replicas, stop_replicas

    console = Console(highlight=False, soft_wrap=True)
    folder = Path(settings.model)
    model = ModelChoice(
        str(folder.resolve()) if folder.is_dir() else settings.model,
        settings.device,
        settings.dtype,
        settings.threads,
    )
    if config.save_folder is not None:
        config = replace(config, save_folder=config.save_folder.resolve())

    def ready(where: str, count: int) -> None:
        console.print(
            f"Serving {settings.model} at [bold]{where}[/bold] by {count} replicas; Ctrl-C saves "
            "and ends them."
        )

    end = threading.Event()
    start_replicas(model, config, address, settings.replicas, ready)
    # Not before: Ray has handlers of its own, which end the process at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    end.wait()
    stop_replicas()
    console.print("Saved and ended.")
    return 0
