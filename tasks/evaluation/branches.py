"""A pass through a model, and going on from a branch of it: tensors around tasks/evaluation/forest.py."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from tasks.evaluation.forest import Pass

Branch = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer the keys and values, (heads, tokens, head size)


def logits_after(model: Any, one: Pass, places: Sequence[int], cache: DynamicCache | None = None) -> torch.Tensor:
    """Logits (len(places), vocabulary) of what follows the tokens at these places; `cache` is filled on the way.

    The model's own head runs, on these places only, so that whatever a model does to its logits is done. ValueError if
    it ran on others.
    """
    visible = one.mask().to(model.device)[None, None]
    if model.config.get_text_config()._attn_implementation != "sdpa":  # eager attention adds its mask
        dtype = model.get_input_embeddings().weight.dtype
        visible = torch.zeros(visible.shape, dtype=dtype, device=model.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )
    output = model(
        input_ids=torch.tensor([one.tokens], device=model.device),
        position_ids=torch.tensor([one.positions], device=model.device),
        attention_mask=visible,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=torch.tensor(places, device=model.device),
    )
    if len(output.logits[0]) != len(places):
        raise ValueError(f"asked for the logits of {len(places)} places, it gives those of {len(output.logits[0])}")
    return output.logits[0]


def branch_of(cache: DynamicCache, path: Sequence[int]) -> Branch:
    """What the model remembers of the tokens on a path of the pass that filled the cache."""
    layers = _layers(cache)
    at = torch.tensor(path, device=layers[0][0].device)
    return [(keys[0].index_select(1, at), values[0].index_select(1, at)) for keys, values in layers]


def _layers(cache: DynamicCache) -> Branch:
    """Keys and values of each layer, (rows, heads, tokens, head size)."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


class Rows:
    """Branches that go on side by side, one token a step; shorter ones have padding before them."""

    def __init__(self, model: Any, branches: Sequence[Branch]):
        self._model = model
        self.lengths = [one[0][0].shape[1] for one in branches]  # tokens that each row holds
        longest = max(self.lengths)
        self._cache = DynamicCache()
        for layer, pairs in enumerate(zip(*branches, strict=True)):
            keys, values = (
                torch.stack([torch.nn.functional.pad(one, (0, 0, longest - one.shape[1], 0)) for one in side])
                for side in zip(*pairs, strict=True)
            )
            self._cache.update(keys, values, layer)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Put one more token behind each row; the logits (rows, vocabulary) of what follows."""
        device = self._model.device
        width = self._cache.get_seq_length() + 1
        before = torch.tensor(self.lengths, device=device)[:, None]
        output = self._model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            position_ids=before,
            attention_mask=(torch.arange(width, device=device) >= width - 1 - before).long(),
            past_key_values=self._cache,
            use_cache=True,
        )
        self.lengths = [length + 1 for length in self.lengths]
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(torch.tensor(rows, device=self._model.device))
        self.lengths = [self.lengths[row] for row in rows]

    def branches(self) -> list[Branch]:
        return [
            [(keys[row, :, -length:], values[row, :, -length:]) for keys, values in _layers(self._cache)]
            for row, length in enumerate(self.lengths)
        ]
