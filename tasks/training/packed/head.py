"""The loss where labels are, and its gradient to the hidden states in the same breath.

The head is frozen, so nothing of the logits is needed once both are known: they live for one tile of tokens at a time.
"""

from typing import Any

import torch

TILE_BYTES = 64 * 2**20  # of logits in float32


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.empty(len(targets), dtype=_exact(hidden.dtype), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(TILE_BYTES // (4 * head.shape[0]), 1)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ head.t()).to(losses.dtype).mul_(scale)
            wanted = targets[part, None]
            log_total = torch.logsumexp(logits, dim=1, keepdim=True)
            losses[part] = (log_total - logits.gather(1, wanted)).squeeze(1)
            if gradient is not None:
                probabilities = logits.sub_(log_total).exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(log_total, -1.0))
                probabilities.mul_(weights[part, None].to(losses.dtype) * scale)
                gradient[part] = probabilities.to(head.dtype) @ head
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses)
        return (losses * weights.to(losses.dtype)).sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None, None


def weighted_loss(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weight times loss, each loss) of `hidden` (n, size) before `head` (words, size) at `targets` (n,).

    Losses are negative log-likelihoods in nats, in float32 or the hidden states' float64; only the sum has a gradient,
    and only to `hidden`. Logits are multiplied by `scale`.
    """
    return _Loss.apply(hidden, head, targets, weights, scale)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def logit_scale(config: Any) -> float:
    """What this architecture multiplies logits by."""
    return 1.0 / getattr(config, "logits_scaling", 1.0)
