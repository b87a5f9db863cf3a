"""The verb that merges adapters by hand."""

import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from flows.commands.options import AsJson
from infra.errors import Fault, RequestError

By = Literal["linear", "ties", "dare"]
FILES = ("adapter_config.json", "adapter_model.safetensors")
DENSITY = 0.5


def merge(
    adapters: Annotated[tuple[Path, ...], Parameter(name="ADAPTER", help="folders of PEFT adapters of one base")],
    *,
    output: Annotated[Path, Parameter(help="folder to write the model to; must not exist")],
    base: Annotated[
        Path | None, Parameter(help="folder of the base model; default: the one that the adapters name, if it is local")
    ] = None,
    by: Annotated[
        By, Parameter(help="how several are combined: sum, TIES (arXiv 2306.01708) or DARE (arXiv 2311.03099)")
    ] = "linear",
    weights: Annotated[
        tuple[float, ...],
        Parameter(
            negative=(),
            consume_multiple=True,
            help="one for each adapter, behind the adapters (--weights 0.7 0.3); default: 1 / adapters, for ties 1 (it "
            "takes means)",
        ),
    ] = (),
    density: Annotated[
        float | None,
        Parameter(help=f"share of each adapter's numbers that ties and dare keep, 0 to 1; default {DENSITY}"),
    ] = None,
    seed: Annotated[int | None, Parameter(help="of what dare drops; default 0")] = None,
    json_: AsJson = False,
) -> int:
    """Merge one adapter, or several combined, into their base's own weights. The result bears no verdict.

    Example: tunefleet merge adapters/dates adapters/names --by ties --output both
    """
    bases, unreadable = _named_bases(adapters)
    faults = [*unreadable, *_of_options(adapters, by, weights, density, seed)]
    if base is None and len(bases) == 1 and Path(bases[0]).is_dir():
        base = Path(bases[0])
    faults += _of_base(base, bases) if base or bases else []
    if output.exists():
        faults.append(Fault(f"{output} exists already; give a folder that does not.", "--output"))
    if faults:
        raise RequestError(faults)
    assert base
    if len(bases) > 1:
        print(f"note: the adapters name different bases: {', '.join(bases)}; merged into {base}", file=sys.stderr)
    job = {
        "base": str(base.absolute()),
        "adapters": [str(adapter.absolute()) for adapter in adapters],
        "by": by,
        "weights": list(weights or [1.0 if by == "ties" else 1 / len(adapters)] * len(adapters)),
        "density": DENSITY if density is None else density,
        "seed": seed or 0,
    }
    note = _made(job, output)
    if json_:
        print(json.dumps({"output": str(output), **note}, ensure_ascii=False))
    else:
        how = f", combined by {by}" if len(adapters) > 1 else ""
        print(f"{output}: {len(adapters)} adapter{'s' * (len(adapters) > 1)}{how} merged into {base}")
        print(f"  {note['tensors_changed']} tensors changed, {note['tensors_copied']} copied byte for byte")
        print("  nobody has judged this model: it bears no verdict, and `tunefleet publish` does not release it")
    return 0


def _made(job: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run the job in a process of its own, beside `output`; only a model that passed its checks gets that name."""
    from tasks.runs import child

    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    made = work / "output"
    try:
        made.mkdir(parents=True)
        note = child(
            *("tasks.merging", {**job, "output": str(made)}, work),
            on_line=lambda line: print(line, file=sys.stderr),
            preloaded=None,
        )
        made.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return note


def _named_bases(adapters: tuple[Path, ...]) -> tuple[list[str], list[Fault]]:
    """(the bases that the adapters name, each once; what is wrong with their folders)."""
    bases: dict[str, None] = {}
    faults: list[Fault] = []
    for adapter in adapters:
        if missing := [name for name in FILES if not (adapter / name).is_file()]:
            faults.append(Fault(f"no {' and no '.join(missing)} in it; give a folder that PEFT saved.", str(adapter)))
            continue
        try:
            config = json.loads((adapter / FILES[0]).read_text(encoding="utf-8"))
            bases[str(config["base_model_name_or_path"])] = None
        except (ValueError, TypeError, KeyError) as error:
            faults.append(Fault(f"not PEFT's: {type(error).__name__}: {error}", str(adapter / FILES[0])))
    return list(bases), faults


def _of_base(base: Path | None, named: list[str]) -> Iterator[Fault]:
    if base is None:
        shown = ", ".join(map(repr, named))
        yield Fault(f"the adapters name {shown}, which is not one local folder; give the base's folder.", "--base")
    elif not (base / "config.json").is_file() or not any(base.glob("*.safetensors")):
        yield Fault(f"{base} holds no config.json with safetensors; give the folder of a model.", "--base")


def _of_options(
    adapters: tuple[Path, ...], by: By, weights: tuple[float, ...], density: float | None, seed: int | None
) -> Iterator[Fault]:
    if by != "linear" and len(adapters) < 2:
        yield Fault(f"got {by} for one adapter, which has nothing to be combined with; leave it out.", "--by")
    if weights and len(weights) != len(adapters):
        yield Fault(f"got {len(weights)} for {len(adapters)} adapters; give one for each.", "--weights")
    if any(weight == 0 or not abs(weight) < float("inf") for weight in weights):
        yield Fault(f"got {', '.join(map(str, weights))}; give finite numbers other than 0.", "--weights")
    if density is not None and by == "linear":
        yield Fault("given with linear, which keeps every number; leave it out, or take ties or dare.", "--density")
    if density is not None and not 0 < density <= 1:
        yield Fault(f"got {density}; allowed is above 0, to 1.", "--density")
    if seed is not None and by != "dare":
        yield Fault(f"given with {by}, which draws nothing at random; leave it out, or take dare.", "--seed")
    if seed is not None and seed < 0:
        yield Fault(f"got {seed}; allowed are 0 and more.", "--seed")
