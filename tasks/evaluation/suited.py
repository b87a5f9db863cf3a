"""Does a model suit the shared path? It has to prove it, on a small forest, against its own plain forward.

A model suits if a token's logits depend on the tokens before it in its own sequence, on how many they are, and on
nothing else. A recurrent state runs from one branch into the next, ALiBi counts places in the row: the small forest
shows both. It stands behind so many other branches as a pass may hold, and is too small for what begins at some length
of a sequence (windows, chunks); there the configuration is asked.
"""

import inspect
from typing import Any

import torch
from transformers import DynamicCache

from tasks.evaluation.branches import Rows, branch_of, logits_after
from tasks.evaluation.forest import plan

NEEDED = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
COUNTING = {"window_size": "GPT-Neo", "attn_temperature_tuning": "Llama 4"}  # what goes by places, not by positions
LIMITED = {"full_attention", "sliding_attention", "chunked_attention"}  # alike, up to the length of window or chunk
# Largest difference of a token's log-probability in nats. SmolLM2-135M, right against wrong (branches that see each
# other, places in the row, one token seen too much): float32 1e-5 against 7 and more, bfloat16 0.3 and NF4 0.2 against
# 2.4 to 10. Logits around 20 are an eighth apart in bfloat16.
TOLERANCE = {torch.float32: 1e-3}
COARSE = 1.0
FILLER = 2048  # places before the small forest, at most: they are computed, too
CONTEXTS = ("The capital of France is", "In 1969 the first people walked on the moon, and")
ENDINGS = (
    " Paris, a city of two million.",
    " Paris, a town in Texas?",
    " the other side of it was dark.",
    " no",
    " no one",
)


@torch.inference_mode()
def why_unsuited(model: Any, tokenizer: Any, room: int = 256) -> str | None:
    """Why this model cannot be scored on the shared path in passes with so much room, if so."""
    config = model.config.get_text_config()
    missing = sorted(set(NEEDED) - set(inspect.signature(model.forward).parameters))
    if missing:
        return f"{type(model).__name__} takes no {', '.join(missing)}"
    if getattr(config, "alibi", False):
        return "its attention counts places in the row (ALiBi)"
    for name, what in COUNTING.items():
        if getattr(config, name, None):
            return f"it counts places in the row ({name}, as in {what})"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - LIMITED)
    if other:
        return f"it has {', '.join(other)} layers"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention implementation, {config._attn_implementation}, takes no mask of branches"
    try:
        difference = _difference(model, tokenizer, min(room, FILLER))
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        return f"it cannot compute a small forest: {error}"
    allowed = TOLERANCE.get(model.dtype, COARSE)
    if not difference <= allowed:
        return f"its log-probabilities on a small forest are off by {difference:.2g} (allowed {allowed:g})"
    return None


def why_too_long(config: Any, longest: int) -> str | None:
    """Why sequences of this many tokens cannot be scored on the shared path, though shorter ones can."""
    config = config.get_text_config()
    limits = {"attention_chunk_size": getattr(config, "attention_chunk_size", None)}
    if getattr(config, "use_sliding_window", True):
        limits["sliding_window"] = getattr(config, "sliding_window", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # scaled by the longest sequence of the row
        limits["original_max_position_embeddings"] = rope.get("original_max_position_embeddings")
    for name, limit in limits.items():
        if isinstance(limit, int) and longest > limit:
            return f"a sequence has {longest} tokens, above its {name}, {limit}"
    return None


def _difference(model: Any, tokenizer: Any, before: int) -> float:
    """Largest difference of a log-probability between the forest, steps behind its branches, and plain forwards.

    About `before` tokens of other sequences stand before it. They are short: no position is above those of the texts.
    """
    texts = [context + ending for context in CONTEXTS for ending in ENDINGS]
    sequences = [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    others = [(0, number // 256, number % 256) for number in range(before)]  # sorted, so they stand first
    (one,) = plan(sequences + others, room=sum(map(len, sequences + others)))
    cache = DynamicCache()
    paths = [one.path(one.last[number]) for number in range(len(sequences))]
    places = sorted(set().union(*paths))
    row = {place: at for at, place in enumerate(places)}
    together = logits_after(model, one, places, cache).float().log_softmax(-1)
    rows = Rows(model, [branch_of(cache, path[:-1]) for path in paths])
    stepped = rows.step([sequence[-1] for sequence in sequences]).float().log_softmax(-1)
    worst = 0.0
    for sequence, path, step in zip(sequences, paths, stepped, strict=True):
        ids = torch.tensor([sequence], device=model.device)
        alone = model(input_ids=ids).logits[0].float().log_softmax(-1)
        likely = torch.cat([ids[0, 1:], alone[-1:].argmax(-1)])[:, None]  # the tokens that follow, and the next one
        shown = together[[row[place] for place in path]]
        for other in (shown, torch.cat([shown[:-1], step[None]])):
            worst = max(worst, float((other - alone).gather(1, likely).abs().max()))
    return worst
