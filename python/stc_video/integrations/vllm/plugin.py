# SPDX-License-Identifier: Apache-2.0
"""The entry point that vLLM calls in every process, group ``vllm.general_plugins``."""

from __future__ import annotations

import importlib.util
import logging
import re
from importlib import metadata
from pathlib import Path

from stc_video.integrations.vllm.hooks import ARCHITECTURES, BELOW, FROM, missing_hooks
from stc_video.integrations.vllm.settings import VARIABLE, Settings

#: below vLLM's own logger, so that its handlers and levels apply
_LOGGER = logging.getLogger("vllm.stc_video")


def register() -> None:
    """Let vLLM make models of ours in place of its own, if ``STC_VLLM`` asks for it.

    May be called any number of times. Nothing of vLLM is changed but the registry of models, and
    that only if this release has everything that the plugin needs.

    Raises
    ------
    ValueError
        If the setting cannot be read.
    """
    settings = Settings.of()
    if settings is None:
        return
    if reason := obstacle():
        log(f"not attached, and vLLM is the stock one: {reason}")
        return
    from vllm import ModelRegistry

    for architecture, name in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"stc_video.integrations.vllm.models:{name}")
    log(f"{VARIABLE}: {settings}; registered for {', '.join(ARCHITECTURES)}")


def obstacle() -> str:
    """Say why the plugin does not go with the vLLM that is installed; empty if it does."""
    found = _release()
    if not FROM <= tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < BELOW:
        lowest, limit = (".".join(map(str, release)) for release in (FROM, BELOW))
        return f"vLLM must be from {lowest} to below {limit}, found {found}"
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    missing = missing_hooks(Path(spec.origin).parent)
    return f"vLLM {found} lacks {'; '.join(missing)}" if missing else ""


def log(line: str) -> None:
    """Write a line to vLLM's log."""
    _LOGGER.info("stc_video: %s", line)


def _release() -> str:
    """Release of the vLLM that is installed, whatever its distribution is called."""
    for name in metadata.packages_distributions().get("vllm", ()):
        return metadata.version(name)
    return "none"
