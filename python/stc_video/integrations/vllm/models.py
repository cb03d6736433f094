# SPDX-License-Identifier: Apache-2.0
"""vLLM's models with towers that reuse their work; vLLM imports this when it makes one of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava_onevision, qwen2_5_vl, qwen3_vl, qwen3_vl_moe
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig

from stc_video.integrations.vllm.names import END, NAMELESS, STREAM, StreamName
from stc_video.integrations.vllm.plugin import log
from stc_video.integrations.vllm.pruning import compute_retention_mask
from stc_video.integrations.vllm.qwen import QwenEncoder
from stc_video.integrations.vllm.settings import Settings
from stc_video.integrations.vllm.siglip import SiglipEncoder

_SETTINGS = Settings.of() or Settings()
#: modality -> the field in which its items carry their streams' names
_FIELDS = {"image": "stc_stream_of_images", "video": "stc_stream_of_videos"}
_NAME: ContextVar[StreamName] = ContextVar("stc_stream", default=NAMELESS)

if _SETTINGS.prune:
    for _module in (qwen2_5_vl, qwen3_vl):
        _module.compute_retention_mask = functools.partial(
            compute_retention_mask, prune=_SETTINGS.prune
        )


class _NamedItems:
    """Part of a processor: takes the stream's name out of a request, and puts it into the items."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request; its other options do not see the name."""
        name, rest = StreamName.taken_from(inputs.hf_processor_mm_kwargs)
        inputs.hf_processor_mm_kwargs = rest
        name = _named_by_uuid(inputs) or name
        token = _NAME.set(name)
        try:
            return super().apply(inputs, timing_ctx)  # type: ignore[misc]
        finally:
            _NAME.reset(token)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Tell items of different streams apart: what a stream made of a picture is its own."""
        hashes, name = super()._get_mm_hashes(inputs), _NAME.get()  # type: ignore[misc]
        if not name.key:
            return hashes
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm  # type: ignore[attr-defined]
        own = {STREAM: name.key, END: str(name.is_last)}
        return {
            modality: [MultiModalHasher.hash_kwargs(algorithm, item=item, **own) for item in items]
            for modality, items in hashes.items()
        }

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        made = super()._apply_hf_processor_main(mm_items, hf_kwargs)  # type: ignore[misc]
        for modality, count in mm_items.get_all_counts().items():
            if count and modality in _FIELDS:
                made[_FIELDS[modality]] = _NAME.get().repeated(count)
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        return {
            **super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs),  # type: ignore[misc]
            **{
                field: MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
                for modality, field in _FIELDS.items()
            },
        }


def _named_by_uuid(inputs: Any) -> StreamName | None:
    """Return the name in a request's uuids, which are taken off; None if there is none.

    vLLM takes what has one uuid for the same picture, and would show one client the frames of
    another that uses the same name.
    """
    uuids = inputs.mm_uuid_items or {}
    name = StreamName.from_uuids(uuid for items in uuids.values() for uuid in items)
    if not name.key:
        return None
    for items in inputs.mm_data_items.values():
        if any(item is None for item in items.get_all_items_for_hash()):
            raise ValueError(f"{STREAM}: a picture whose uuid names a stream must be sent")
    inputs.mm_uuid_items = None
    return name


class _StreamingTower:
    """Part of a model: encodes named items by their streams."""

    stc_encoder: QwenEncoder | SiglipEncoder | None = None
    #: what encodes, and where the tower is
    _kind: type[QwenEncoder | SiglipEncoder] = QwenEncoder
    _tower = "visual"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        reason = _obstacle(vllm_config)
        try:
            if not reason:
                # No module of this model: its weights are the tower's.
                encoder = self._kind(getattr(self, self._tower), _SETTINGS, log)
                object.__setattr__(self, "stc_encoder", encoder)
        except AttributeError as error:
            reason = f"the tower is another one than was tested: {error}"
        name = type(self).__name__
        log(f"{name}: not attached, the stock tower runs: {reason}" if reason else f"{name}: on")

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encode a batch of pictures or videos."""
        names = [kwargs.pop(field, None) for field in _FIELDS.values()]
        found = next((name for name in names if isinstance(name, Tensor)), None)
        encoder, context = self.stc_encoder, nullcontext()
        if encoder is not None and found is not None:
            names = StreamName.from_numbers(found)
            context = encoder.naming(names, kwargs)  # type: ignore[assignment]
        with context:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]

    def load_weights(self, weights: Any) -> Any:
        """Load weights; what the streams kept of the old ones is forgotten."""
        if self.stc_encoder is not None:
            self.stc_encoder.table.clear()
        return super().load_weights(weights)  # type: ignore[misc]


def _obstacle(vllm_config: Any) -> str:
    """Say which setting of vLLM the plugin does not go with; empty if there is none."""
    parallel, lora = vllm_config.parallel_config, vllm_config.lora_config
    compilation = vllm_config.compilation_config
    if parallel.tensor_parallel_size > 1:
        return f"tensor_parallel_size must be 1, got {parallel.tensor_parallel_size}"
    if lora is not None and lora.enable_tower_connector_lora:
        return "enable_tower_connector_lora must be off: adapters would share what streams keep"
    if compilation.compile_mm_encoder or compilation.cudagraph_mm_encoder:
        return "compile_mm_encoder and cudagraph_mm_encoder must be off"
    return ""


class _Qwen2_5VLProcessor(_NamedItems, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    pass


class _Qwen3VLProcessor(_NamedItems, qwen3_vl.Qwen3VLMultiModalProcessor):
    pass


class _LlavaOnevisionProcessor(_NamedItems, llava_onevision.LlavaOnevisionMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen2_5VLProcessor,
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class StreamingQwen2_5VL(_StreamingTower, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with a tower that reuses its work per stream."""


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen3VLProcessor,
    info=qwen3_vl.Qwen3VLProcessingInfo,
    dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder,
)
class StreamingQwen3VL(_StreamingTower, qwen3_vl.Qwen3VLForConditionalGeneration):
    """Qwen3-VL with a tower that reuses its work per stream."""


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen3VLProcessor,
    info=qwen3_vl_moe.Qwen3VLMoeProcessingInfo,
    dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder,
)
class StreamingQwen3VLMoe(_StreamingTower, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts, with a tower that reuses its work per stream."""


@MULTIMODAL_REGISTRY.register_processor(
    _LlavaOnevisionProcessor,
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class StreamingLlavaOnevision(
    _StreamingTower, llava_onevision.LlavaOnevisionForConditionalGeneration
):
    """LLaVA-OneVision with a SigLIP that reuses its work per stream."""

    _kind = SiglipEncoder
    _tower = "vision_tower"
