# SPDX-License-Identifier: Apache-2.0
"""`stc serve`: from the options to a running service."""

from __future__ import annotations

from rich.console import Console

from stc_video.serve.config import ServeConfig

__all__ = ["run_service"]


def run_service(
    config: ServeConfig, name: str, *, device: str, dtype: str, threads: int | None
) -> None:
    """Load the model and serve until told to end.

    Parameters
    ----------
    config
        Where, and what may be.
    name, device, dtype
        As for :func:`load_chat_model`.
    threads
        CPU threads, or None for torch's choice.

    Raises
    ------
    ValueError, OSError
        For bad input, before anything is served.
    """
    import torch

    from stc_video.loading.video_llm import load_chat_model

    try:
        from stc_video.serve.server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "stc_video":
            raise
        raise ModuleNotFoundError(
            f"the package {error.name} is missing: pip install 'stc-kernels[serve]'"
        ) from error

    console = Console(highlight=False, soft_wrap=True)
    if threads is not None:
        torch.set_num_threads(threads)
    with console.status("Loading the model ..."):
        chat = load_chat_model(name, device=device, dtype=dtype)
    if chat.notice:
        console.print(f"Note: {chat.notice}", style="yellow")

    def ready(address: str) -> None:
        guarded = "a token is needed" if config.token else "from this machine only"
        console.print(f"Serving {chat.name} at [bold]{address}[/bold] ({guarded}); Ctrl-C ends it.")
        if config.save_folder is None:
            console.print("Streams are not saved: --save-folder does.", style="dim")

    serve(chat, config, ready)
    console.print("Ended." if config.save_folder is None else "Saved and ended.")
