"""How far an adapter's distributions are from its base's, where the base is computed once for all adapters on it."""

import torch
from torch.nn.functional import kl_div

from tasks.evaluation.branches import logits_after
from tasks.evaluation.forest import Pass

MOST = 256 * 2**20  # bytes of the base's states that are held
CHUNK = 1024  # places whose log-probabilities are held at a time


class BaseStates:
    """What the base puts into its head at the places of a pass: a small part of the logits that the head makes of it.

    Held only while a model's logits are nothing but its head's output, which each model has to show once.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[tuple[int, ...], ...], torch.Tensor] = {}
        self._room = MOST
        self._plain_head: bool | None = None  # not known yet

    @torch.inference_mode()
    def logits(self, base: torch.nn.Module, one: Pass, places: list[int]) -> torch.Tensor:
        """The base's logits (len(places), vocabulary) of what follows the tokens at these places."""
        head = base.get_output_embeddings()  # type: ignore[operator]
        key = tuple(one.tokens), tuple(one.parents), tuple(places)
        if key in self._held:
            return head(self._held[key])
        if head is None or self._plain_head is False:
            return logits_after(base, one, places)
        into: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, given: into.append(given[0][0]))
        try:
            logits = logits_after(base, one, places)
        finally:
            hook.remove()
        if self._plain_head is None:
            self._plain_head = len(into) == 1 and torch.equal(head(into[0]), logits)
        if self._plain_head and (size := into[0].nbytes) <= self._room:
            self._held[key], self._room = into[0], self._room - size
        return logits


def divergence(ours: torch.Tensor, base: torch.Tensor) -> float:
    """KL(base || ours), summed over the rows of two tensors of logits (places, vocabulary), in nats."""
    total = 0.0
    for pair in zip(ours.split(CHUNK), base.split(CHUNK), strict=True):
        own, theirs = (part.float().log_softmax(-1) for part in pair)
        total += float(kl_div(own, theirs, log_target=True, reduction="sum"))
    return total
