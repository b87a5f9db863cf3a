"""The frozen base that the members of a pack share: its layers, each with the adapters of those that adapt it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tasks.training.packed.head import logit_scale, weighted_loss
from tasks.training.packed.linear import Adaptation, SharedLinear
from tasks.training.packed.passing import NAME, Part, attention_dtype, make_pass, running


class SharedBase:
    """A causal language model of transformers, taken over: after this it computes in packs only.

    `layers` are each member's adaptations by module name. `keeps` is whether weights made of 4 bits are kept.
    """

    def __init__(self, model: Any, layers: Mapping[str, Mapping[str, Adaptation]], *, keeps: bool, recomputes: bool):
        self.model = model
        self.device = str(next(model.parameters()).device)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        adapted = {name for one in layers.values() for name in one}
        self._shared = _replace(model, adapted, keeps=keeps)
        for member, own in layers.items():
            for name, adaptation in own.items():
                self._shared[name].adaptations[member] = adaptation
        model.set_attn_implementation(NAME)
        model.config.use_cache = False
        if recomputes:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # recomputation asks for it; dropout there is none
        self._decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self._head = model.get_output_embeddings()
        assert self._head.bias is None, "no architecture of suited.py has one"
        self._scale = logit_scale(model.config)

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return int(self._head.weight.shape[1])

    def release(self, member: str) -> None:
        """A member that has ended leaves all layers."""
        for layer in self._shared.values():
            layer.adaptations.pop(member, None)

    def losses(self, parts: Sequence[Part], *, trains: bool) -> dict[str, float]:
        """Sum of weighted losses of each part's member; with `trains`, their gradients are added to what is there."""
        now = make_pass(parts, self.device, attention_dtype(self._head.weight.dtype, self.device.split(":")[0]))
        with running(now), torch.set_grad_enabled(trains):
            hidden = self._decoder(input_ids=now.ids, position_ids=now.positions, use_cache=False).last_hidden_state
            total, each = weighted_loss(
                hidden[0].index_select(0, now.predicting), self._head.weight, now.targets, now.weights, self._scale
            )
            if trains and total.requires_grad:
                total.backward()
        weighted = each.double() * now.weights
        return {member: float(weighted[start:stop].sum()) for member, start, stop in now.owners}


def _replace(model: nn.Module, adapted: Iterable[str], *, keeps: bool) -> dict[str, SharedLinear]:
    """Put a SharedLinear in the place of every layer that is adapted or in 4 bits; {name: layer}."""
    wanted = {*adapted} | {name for name, one in model.named_modules() if type(one).__name__ == "Linear4bit"}
    shared = {}
    for name in sorted(wanted):
        parent, _, last = name.rpartition(".")
        shared[name] = SharedLinear(model.get_submodule(name), keeps=keeps)
        setattr(model.get_submodule(parent), last, shared[name])
    return shared
