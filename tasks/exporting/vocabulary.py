"""A tokenizer as llama.cpp has it: tokens, kinds, merges, the name of its way to split text, stop tokens, template.

The tokenizer is taken as transformers loads it, for it is that one the model was trained with. llama.cpp does not read
a pattern to split text by; it knows some by name. So the pattern is compared with those whose names are known, and any
other is refused: under a wrong name the model would read other tokens than it learned, and nothing would say so.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from infra.errors import Fault, RequestError

# The pattern of OpenAI's cl100k as Llama 3 and Qwen2 have it; they differ in how many digits stay together.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# (steps of the pre-tokenizer, whether whole words that are tokens are taken before merging) -> llama.cpp's name
NAMES = {
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    ((("Split", CL100K.replace("DIGITS", "")), ("ByteLevel", False)), False): "qwen2",
    ((("Split", CL100K.replace("DIGITS", "{1,3}")), ("ByteLevel", False)), True): "llama-bpe",
    ((("Split", CL100K.replace("DIGITS", "{1,3}")), ("ByteLevel", False)), False): "smaug-bpe",
}
NO_MERGE = "<none> <none>"  # never applies: text is split into single characters first, and none is "<none>"


@dataclass(frozen=True)
class Vocabulary:
    """Everything below tokenizer.* in a GGUF."""

    pre: str
    tokens: list[str]  # by id, as many as the embeddings have rows
    types: list[TokenType]
    merges: list[str]
    stops: list[int]  # the first is eos
    ids: dict[str, int]  # bos, unk and pad
    adds: dict[str, bool]  # whether encoding adds bos, eos
    template: str | dict[str, str] | None
    notes: list[str]

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges or [NO_MERGE])  # llama.cpp insists on some
        for name, token in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        for name, token in zip(("eos", "eot", "eom"), self.stops, strict=False):
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if isinstance(self.template, dict):
            writer.add_chat_template([{"name": name, "template": text} for name, text in self.template.items()])
        elif self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer in `folder`, for embeddings of `rows` tokens; RequestError with all that cannot be said."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(f"{folder.name} has no tokenizer.json; llama.cpp's tokens and merges are read from it.")
    content = json.loads(backend.to_str())
    model, added = content["model"], content["added_tokens"]
    name, faults = _name(content)
    tokens, types = _tokens(model.get("vocab", {}), added, rows, faults) if not faults else ([], [])
    stops = _stops(folder, tokenizer.eos_token_id, faults)
    adds = _adds(backend, tokenizer, faults)
    if faults:
        raise RequestError(faults)
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else stops[0]  # else llama.cpp takes number 11
    ids = {"bos": bos, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    return Vocabulary(
        pre=name,
        tokens=tokens,
        types=types,
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
        stops=stops,
        ids={role: token for role, token in ids.items() if token is not None},
        adds=adds,
        template=tokenizer.chat_template,
        notes=["llama.cpp does not bring text into Unicode's NFC first, as the tokenizer does"]
        if content["normalizer"]
        else [],
    )


def _name(content: dict[str, Any]) -> tuple[str, list[Fault]]:
    """llama.cpp's name for how this tokenizer splits text, or what of it llama.cpp has no name for."""
    model, normalizer = content["model"], content["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece-style BPE" if model["type"] == "BPE" else model["type"]
        return "", [Fault(f"the tokenizer is {kind}; only byte-level BPE can be exported (Llama 3, SmolLM2, Qwen).")]
    faults = [
        Fault(f"the tokenizer's {key} is {model[key]!r}; only none can be said.")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(key)
    ]
    if normalizer not in (None, {"type": "NFC"}):
        faults.append(Fault(f"the tokenizer normalises by {json.dumps(normalizer)[:80]}; allowed are none and NFC."))
    steps = content["pre_tokenizer"] or {"type": "none"}
    steps = tuple(_step(one) for one in steps.get("pretokenizers", [steps]))
    name = NAMES.get((steps, bool(model.get("ignore_merges"))))
    if name is None:
        known = ", ".join(sorted(set(NAMES.values())))
        faults.append(
            Fault(
                f"the tokenizer splits text by {steps}, ignore_merges {bool(model.get('ignore_merges'))}, for which no "
                f"name of llama.cpp is known here; known are {known}."
            )
        )
    return name or "", faults


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    """What a step of a pre-tokenizer does, without what only concerns offsets."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step["use_regex"]
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return kind, step["pattern"]["Regex"]
    return kind, json.dumps(step, sort_keys=True)


def _tokens(
    vocab: dict[str, int], added: list[dict[str, Any]], rows: int, faults: list[Fault]
) -> tuple[list[str], list[TokenType]]:
    """Text and kind of every id below `rows`; ids that the tokenizer leaves free are marked as unused."""
    text = {number: token for token, number in vocab.items()} | {one["id"]: one["content"] for one in added}
    special = {one["id"]: TokenType.CONTROL if one["special"] else TokenType.USER_DEFINED for one in added}
    if text and max(text) >= rows:
        faults.append(Fault(f"the tokenizer has ids up to {max(text)}, the embeddings {rows} rows; resize them first."))
    strip = [one["content"] for one in added if one["lstrip"] or one["rstrip"] or one["single_word"]]
    if strip:
        faults.append(Fault(f"added tokens that take spaces beside them cannot be said: {', '.join(strip[:5])}."))
    tokens = [text.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [special.get(number, TokenType.NORMAL if number in text else TokenType.UNUSED) for number in range(rows)]
    if len(set(tokens)) < len(tokens):
        twice = [token for token, count in Counter(tokens).items() if count > 1][:5]
        faults.append(Fault(f"tokens that stand under two ids cannot be said: {', '.join(twice)}."))
    return tokens, types


def _stops(folder: Path, eos: int | None, faults: list[Fault]) -> list[int]:
    """The tokens that end an answer, the tokenizer's own first; a GGUF has a place for three (eos, eot, eom)."""
    stops = [] if eos is None else [eos]
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        said = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.exists() else None
        if said is not None:
            stops += said if isinstance(said, list) else [said]
            break
    stops = list(dict.fromkeys(stops))
    if not 1 <= len(stops) <= 3:
        faults.append(Fault(f"the model ends its answers with {len(stops)} tokens ({stops}); allowed are 1 to 3."))
    return stops


def _adds(backend: Any, tokenizer: Any, faults: list[Fault]) -> dict[str, bool]:
    """Whether encoding adds bos and eos, seen by encoding something."""
    plain, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    for adds in ({"bos": b, "eos": e} for b in (False, True) for e in (False, True)):
        before = [tokenizer.bos_token_id] * adds["bos"]
        if whole == before + plain + [tokenizer.eos_token_id] * adds["eos"]:
            return adds
    faults.append(Fault(f"encoding 'a' gives the ids {whole}; only bos before and eos behind {plain} can be said."))
    return {}
