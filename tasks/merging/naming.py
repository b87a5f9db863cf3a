"""What the base's files call a tensor that the adapter names by the model's modules.

transformers puts a prefix on some files' names when it loads them (GPT-2's file says h.0.attn, the model says
transformer.h.0.attn), and takes one off others. No other difference is bridged: a guess could hit another layer.
"""

from collections.abc import Collection
from difflib import get_close_matches


def stored_name(name: str, stored: Collection[str]) -> str:
    """The one of `stored` that is `name`, but for a prefix; if none or several is, LookupError names the nearest."""
    if name in stored:
        return name
    found = [one for one in stored if one.endswith(f".{name}") or (name.endswith(f".{one}") and "." in one)]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(f"could be {', '.join(found[:3])}")
    near = get_close_matches(name, stored, n=3, cutoff=0.5)
    raise LookupError(f"nearest are {', '.join(near)}" if near else "and nothing like it")
