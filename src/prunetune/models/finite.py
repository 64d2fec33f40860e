"""Where a model stops giving numbers: the first layer whose weights or activations are not finite, as one error.

    if not math.isfinite(loss):
        raise overflow(model, inputs, "the held-out loss")

A NaN is not an answer: argmax makes a token of it, a sort makes a plan of it, a mean makes a figure of it. Whoever
computes with a model's outputs looks at what came out, and asks here for the place where it began.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunetune.errors import NotFinite
from prunetune.models.families import family_of


def is_finite(x: Tensor) -> bool:
    """Whether no element is NaN or infinite. One number crosses from the device.

    A sum holds no number if an element is none, and takes a tenth of the time of a look at each; it may overflow too.
    """
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def layer_overflow(layer: nn.Module, index: int, what: str, dtype: torch.dtype | None = None) -> NotFinite:
    """The error for a layer whose output is the first that is not finite.

    Args:
        layer: The decoder layer.
        index: Its place.
        what: What was to be computed, such as `the scores`.
        dtype: In what it ran (default: its weights').
    """
    kind = dtype or next(layer.parameters()).dtype
    for name, weight in layer.named_parameters():
        if not is_finite(weight):
            return broken_weights(f"layer {index}", name, weight)
    return _overflow(f"layer {index}", kind, what)


@contextmanager
def numbers_only(model: object) -> Iterator[None]:
    """NotFinite as soon as the head's last logits of a row are NaN or infinite: for loops that are not ours (lm-eval).

    Args:
        model: A transformers model; anything else is let be.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if head is None:
        yield
        return

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if not is_finite(output[:, -1].amax(-1)):
            raise NotFinite(
                f"the logits of this model are NaN or infinite in {_name(output.dtype)}",
                fix="save the model in a wider type first (bfloat16, float32); `prunetune score` says where it begins",
            )

    handle = head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def overflow(model: PreTrainedModel, inputs: Mapping[str, Tensor], what: str) -> NotFinite:
    """Run the model once more and name the first place that gives no number.

    Args:
        model: The model that gave something that is not finite.
        inputs: What it was given: input_ids [batch, places], attention_mask [batch, places].
        what: What was to be computed from it.
    """
    places: dict[str, nn.Module] = {"the embedding": model.get_input_embeddings()}
    layers: Any = model.get_submodule(family_of(model.config).layers)
    places |= {f"layer {i}": layer for i, layer in enumerate(layers)}
    if (head := model.get_output_embeddings()) is not None:
        places["the head"] = head
    real = inputs["attention_mask"].bool().to(model.device)
    seen: list[str] = []

    def watch(place: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            if not seen and not is_finite(out[real]):
                seen.append(place)

        return hook

    handles = [module.register_forward_hook(watch(place)) for place, module in places.items()]
    try:
        model(**{k: v.to(model.device) for k, v in inputs.items()}, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        return NotFinite(
            f"{what} is no finite number, though all activations are",
            value=str(model.dtype).removeprefix("torch."),
            fix="a wider type (float32), or other weights: these give logits that nothing can be computed from",
        )
    for name, weight in places[seen[0]].named_parameters():
        if not is_finite(weight):
            return broken_weights(seen[0], name, weight)
    return _overflow(seen[0], model.dtype, what)


def broken_weights(place: str, name: str, weight: Tensor) -> NotFinite:
    """The error for a weight that holds NaN or infinity itself."""
    bad = int((~torch.isfinite(weight)).sum())
    count = f"{bad:,} of {weight.numel():,}"
    return NotFinite(
        f"weights of {place} are no numbers: {count} are NaN or infinite in {_name(weight.dtype)}",
        value=name,
        fix="copy or download the model again, or save it in a wider type (bfloat16, float32)",
    )


def _overflow(place: str, dtype: torch.dtype, what: str) -> NotFinite:
    wider = "bfloat16" if dtype == torch.float16 else "float32"
    fix = (
        f'save the model in {wider} first: AutoModelForCausalLM.from_pretrained(FOLDER, dtype="{wider}")'
        ".save_pretrained(OUT), and the tokenizer beside it"
        if dtype != torch.float32
        else "use other weights: these give no numbers on this input in any type"
    )
    return NotFinite(
        f"activations of {place} overflow in {_name(dtype)}: {what} would be no number",
        valid=f"at most {torch.finfo(dtype).max:.4g} in {_name(dtype)}",
        fix=fix,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
