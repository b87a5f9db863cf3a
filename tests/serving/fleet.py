"""A store with a tiny base, real PEFT adapters on it, their rows and verdicts, a finished run and releases of some."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from infra.storage import ArtifactRef, Store
from tasks.caching import Work, run_stage_once
from tasks.recipe.schema import Recipe
from tasks.registry import channels
from tasks.registry.records import ReleaseRecord, register
from tests.tiny import save_tiny_base

RUN = "20261122-230000-abcd"
PLAIN_ROWS = [{"id": "0", "prompt": "Once upon", "completion": " a time"}]


@dataclass(frozen=True)
class Fleet:
    """`adapters` are folders by name, as PEFT wrote them; all but `whispers` passed, and all but it are released."""

    store: Store
    base: ArtifactRef
    base_folder: Path
    adapters: dict[str, Path]
    records: dict[str, ReleaseRecord]


def chat_rows(system: str | None = None) -> list[dict[str, Any]]:
    told = [{"role": "system", "content": system}] if system else []
    return [
        {
            "id": str(number),
            "prompt": [*told, {"role": "user", "content": f"Shout {number}"}],
            "completion": [{"role": "assistant", "content": "OK"}],
        }
        for number in range(2)
    ]


def put(store: Store, kind: str, name: str, fill: Callable[[Path], object], **manifest: Any) -> ArtifactRef:
    """An artifact of whatever `fill` leaves in a folder; `manifest` may give spec, upstream and facts."""
    spec, upstream = manifest.get("spec", {"name": name}), manifest.get("upstream", {})

    def make(_: Path, output: Path) -> dict[str, Any]:
        fill(output)
        return dict(manifest.get("facts", {}))

    return run_stage_once(store, Work(kind, 1, kind, name, spec, upstream), make, run_id=RUN).ref


def put_base(store: Store, *, seed: int = 0, name: str = "tiny", **spec: Any) -> ArtifactRef:
    facts = {"model": "org/tiny", "revision": None, "architecture": "LlamaForCausalLM", "model_type": "llama"}
    return put(
        store, "bases", name, lambda output: save_tiny_base(output, seed=seed), facts=facts, spec={"seed": seed, **spec}
    )


def save_adapter(base: Path, folder: Path, *, seed: int = 1, **lora: Any) -> Path:
    """A LoRA adapter whose B is no longer zero, so that it changes the answers."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora}
    adapted: PeftModel = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted.save_pretrained(str(folder))
    return folder


def make_fleet(folder: Path) -> Fleet:
    """`shouts` and `dots.v2` are released and stable, `whispers` (plain rows) failed; one run made all three."""
    store = Store(str(folder / "store"))
    base = put_base(store)
    base_folder = store.fetch(base)
    rows = {"shouts": chat_rows("Be loud."), "dots.v2": chat_rows(), "whispers": PLAIN_ROWS}
    lora: dict[str, dict[str, Any]] = {
        "shouts": {"seed": 4},
        "dots.v2": {"seed": 8, "r": 16, "lora_alpha": 64, "target_modules": ["q_proj", "o_proj", "down_proj"]},
        "whispers": {"seed": 3},
    }
    adapters, records, summaries = {}, {}, []
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "base": {"model": "org/tiny"},
            "method": "lora",
            "adapters": [{"name": name, "data": {"path": "rows.jsonl"}} for name in rows],
        }
    ).resolved()
    for name, some in rows.items():
        saved = save_adapter(base_folder, folder / "saved" / name, **lora[name])
        data = put(store, "datasets", name, _rows_into(some), facts={"kind": "chat", "train": len(some)})
        upstream = {"base": base.digest, "data": data.digest}
        adapter = put(store, "adapters", name, _copy_of(saved), facts={"steps": 1, "loss": 0.5}, upstream=upstream)
        says = "FAIL" if name == "whispers" else "PASS"
        verdict = put(
            store,
            *("verdicts", name),
            _verdict_into(says, adapter.digest),
            upstream={"adapter": adapter.digest},
        )
        adapters[name] = store.fetch(adapter)
        summaries.append(
            {
                **{"name": name, "method": "lora", "digest": adapter.digest, "adapter_uri": adapter.uri},
                **{"verdict": says, "verdict_uri": verdict.uri, "error": None},
            }
        )
        if says == "PASS":
            records[name] = register(
                store,
                name=name,
                adapter=adapter,
                base=base,
                base_model="org/tiny",
                base_revision=None,
                data=data,
                verdict=verdict,
                verdict_says=says,
                override=None,
                method="lora",
                recipe=recipe.model_dump(mode="json"),
                run_id=RUN,
                git_commit=None,
                created="2026-11-22T23:00:00+00:00",
            )
            channels.move(store, records[name], "stable", expected=None)
    prompt = {"name": "asked", "method": "prompt", "adapter_uri": f"{store.root}/prompts/asked-0", "digest": "0"}
    store.write_json(
        f"runs/{RUN}/summary.json",
        {
            "run_id": RUN,
            "recipe": recipe.model_dump(mode="json"),
            "base": {"model": "org/tiny", "digest": base.digest},
            "adapters": [*summaries, prompt],
        },
    )
    return Fleet(store, base, base_folder, adapters, records)


def _rows_into(rows: list[dict[str, Any]]) -> Callable[[Path], object]:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return lambda output: (output / "train.jsonl").write_text(text)


def _verdict_into(says: str, digest: str) -> Callable[[Path], object]:
    content = {"verdict": says, "adapter_digest": digest, "tasks": [], "reasons": []}
    return lambda output: (output / "verdict.json").write_text(json.dumps(content))


def _copy_of(folder: Path) -> Callable[[Path], object]:
    def fill(output: Path) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (output / name).write_bytes((folder / name).read_bytes())

    return fill
