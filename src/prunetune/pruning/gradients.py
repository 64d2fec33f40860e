"""Gradients of the next-token loss inside every layer, in memory that holds one layer and one chunk of logits.

    forward without a graph, each layer's input kept -> loss of the head, chunk by chunk (models/head_loss.py)
    -> from the last layer to the first: run it again with a graph, take the gradient of its input

Whoever wants gradients inside a layer hangs a hook on a tensor there (`tensor.register_hook`) while gradients are on.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunetune.models.families import family_of
from prunetune.models.head import head_of
from prunetune.models.head_loss import IGNORED, counted, next_token_loss


def backward_by_layer(model: PreTrainedModel, layers: Iterable[nn.Module], batch: dict[str, Tensor]) -> None:
    """Sum of the next-token loss over the real tokens, backwards through all layers. No weight gets a gradient.

    Every layer runs twice: without gradients, then with them.

    Args:
        model: In eval mode.
        layers: Its decoder layers, in order.
        batch: {input_ids, attention_mask}, each [batch, places], padded on either side.
    """
    family = family_of(model.config)
    base = model.get_submodule(family.base)
    calls, last = [_Call(layer) for layer in layers], _Call(model.get_submodule(family.final_norm))
    mask = batch["attention_mask"].bool()
    labels = batch["input_ids"].masked_fill(~mask, IGNORED)
    labels[:, 1:].masked_fill_(~mask[:, :-1], IGNORED)  # nothing real stands before it
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        with torch.no_grad(), ExitStack() as hooks:
            for call in (*calls, last):
                hooks.enter_context(call)
            base(**batch, use_cache=False)
        with torch.enable_grad():
            grad = _head_gradient(model, last, labels)
            for call in reversed(calls):
                grad = call.backward(grad)
    finally:
        for p in trained:
            p.requires_grad_(True)


def _head_gradient(model: PreTrainedModel, norm: _Call, labels: Tensor) -> Float[Tensor, "batch places hidden"]:
    """The gradient of the loss with respect to the last layer's output."""
    hidden = norm.input().requires_grad_()
    states, targets = counted(norm.module(hidden), labels)
    head = head_of(model)
    loss = next_token_loss(head.reads(states), head.weight(), targets, softcap=head.softcap, compute=model.dtype)
    (grad,) = torch.autograd.grad(loss, hidden)
    return grad


class _Call:
    """What a module was called with, so that it can be run again for the gradient of its input."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __enter__(self) -> _Call:
        self.handle = self.module.register_forward_pre_hook(self._hook, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def input(self) -> Tensor:
        """The hidden states that it got, without a graph; they are let go of here."""
        if self.args:
            first, *rest = self.args
            hidden: Tensor = first.detach()
            self.args = (None, *rest)
        else:
            hidden = self.kwargs.pop("hidden_states").detach()
        return hidden

    def backward(self, grad: Float[Tensor, "batch places hidden"]) -> Float[Tensor, "batch places hidden"]:
        """The gradient with respect to its input, from the one with respect to its output."""
        hidden = self.input().requires_grad_()
        output = self.module(hidden, *self.args[1:], **self.kwargs)
        output = output[0] if isinstance(output, tuple) else output
        (back,) = torch.autograd.grad(output, hidden, grad)
        return back
