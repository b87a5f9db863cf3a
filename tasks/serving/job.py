"""What the process of a chat is told: the folders, the precision, and how each speaker was asked in training.

An adapter is asked as it was trained: with the system message that all its rows share, and as plain text if its rows
were plain. What it was asked is shown beside its name, for few people know the prompts of somebody else's adapter.
"""

from collections.abc import Sequence
from typing import Any, Literal

from infra.errors import RequestError
from infra.storage import Store
from tasks.ingestion.dataset import read_jsonl
from tasks.registry.judged import Judged
from tasks.serving.chat import COMMANDS
from tasks.serving.naming import names_of, refuse_several_bases

Precision = Literal["none", "nf4"]
RESERVED = ("base", *COMMANDS)
SHOWN = 60  # characters of a question


def chat_job(
    store: Store,
    members: Sequence[Judged],
    *,
    precision: Precision | None,
    device: str,
    max_new_tokens: int,
    system: str | None,
) -> dict[str, Any]:
    """The job of `python -m tasks.serving`; RequestError if there is no one base, or no one precision, for all."""
    refuse_several_bases(members)
    named = names_of(members, RESERVED)
    folders = {name: str(store.fetch(one.adapter)) for name, one in named.items()}
    rows = {name: _rows(store, one) for name, one in named.items()}
    systems = {name: {_content(row, "system") for row in some} for name, some in rows.items()}
    return {
        "base": str(store.fetch(members[0].base)),
        "base_name": members[0].base.name,
        "quantization": precision or _precision(named),
        "device": device,
        "max_new_tokens": max_new_tokens,
        "system": system,
        "adapters": {name: folder for name, folder in folders.items() if named[name].method != "full"},
        "models": {name: folder for name, folder in folders.items() if named[name].method == "full"},
        "plain": [name for name, some in rows.items() if some and not isinstance(some[0].get("prompt", ""), list)],
        "trained_with": {name: found.pop() for name, found in systems.items() if len(found) == 1 and "" not in found},
        "about": {name: _about(one, rows[name]) for name, one in named.items()},
    }


def _precision(named: dict[str, Judged]) -> str:
    """The one that all were judged in."""
    by_name = {name: one.quantization for name, one in named.items() if one.method != "full"}
    if len(found := set(by_name.values())) > 1:
        told = ", ".join(f"{name} in {how}" for name, how in by_name.items())
        raise RequestError(
            f"these were judged beside the base in different precisions ({told}), and it is loaded once: choose "
            "--precision none or nf4, or chat with those of one."
        )
    return found.pop() if found else "none"


def _rows(store: Store, one: Judged) -> list[dict[str, Any]]:
    """What it was trained on; nothing if that is gone."""
    return read_jsonl(store.fetch(one.data) / "train.jsonl") if one.data else []


def _content(row: dict[str, Any], role: str) -> str:
    """The last message of this role in a row's prompt; "" if there is none."""
    prompt = row.get("prompt", "")
    said = [one["content"] for one in prompt if one["role"] == role] if isinstance(prompt, list) else []
    return said[-1] if said else ""


def _about(one: Judged, rows: Sequence[dict[str, Any]]) -> str:
    parts = [one.label, one.says]
    if rows:
        asked = _content(rows[0], "user") or str(rows[0].get("prompt") or rows[0].get("text", ""))
        asked = " ".join(asked.split())
        parts.append(f"trained on e.g. {_short(asked)!r}")
    return "; ".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
