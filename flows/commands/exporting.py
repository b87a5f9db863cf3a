"""The verb that writes a model for llama.cpp, whoever made it."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from infra.errors import Fault, RequestError

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


def export(
    folder: Annotated[Path, Parameter(help="a model of safetensors with its tokenizer, or a PEFT adapter")],
    *,
    to: Annotated[Path, Parameter(help="the GGUF to write; never one that is there already")],
    type: Annotated[GgufType, Parameter(help="numbers of the weights; an adapter's are f16")] = "f16",
    base: Annotated[Path | None, Parameter(help="of an adapter: the folder of the model it was trained on")] = None,
) -> int:
    """Write a model, or a LoRA adapter, as one GGUF file that llama.cpp loads, and check it number by number.

    Example: tunefleet export merged/ --to model.gguf --type q8_0
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    wrong = {
        f"{folder} is no folder with a config.json or an adapter_config.json; give one that save_pretrained wrote.": (
            not is_adapter and not (folder / "config.json").is_file()
        ),
        f"{folder} is an adapter: --base must be the folder of its model, with a config.json.": (
            is_adapter and not (base and (base / "config.json").is_file())
        ),
        f"{folder} is no adapter; --base is for those.": bool(base and not is_adapter),
        f"{folder} is an adapter, and llama.cpp's adapters are f16 here; leave out --type {type}.": (
            is_adapter and type != "f16"
        ),
        f"{folder} holds no *.safetensors, and other weights are not read; save it with save_pretrained.": (
            (is_adapter or (folder / "config.json").is_file()) and not any(folder.glob("*.safetensors"))
        ),
        f"{base} holds no *.safetensors, and other weights are not read; --base is the folder of a saved model.": bool(
            is_adapter and base and (base / "config.json").is_file() and not any(base.glob("*.safetensors"))
        ),
        f"{to} exists already; give another name to --to.": to.exists(),
        f"{to.parent} is no folder; make it first.": not to.parent.is_dir(),
    }
    if any(wrong.values()):
        raise RequestError([Fault(message) for message, is_so in wrong.items() if is_so])
    from tasks.runs import child

    # Beside its place, so that it appears there whole, and only once it was checked.
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".exporting-") as place:
        work, whole = Path(place), folder.absolute()
        if is_adapter and base:
            job = {"adapter": str(whole), "base": str(base.absolute()), "output": str(work.absolute())}
        else:
            job = {"model": str(whole), "type": type, "output": str(work.absolute())}
        facts = child(
            *("tasks.exporting", job, work),
            on_line=lambda line: print(line, file=sys.stderr),
            folder_stays=False,
            preloaded=None,
        )
        (work / ("adapter-f16.gguf" if is_adapter else f"model-{type}.gguf")).rename(to)
    print(f"{to}: {facts['tensors']} tensors, {facts['bytes'] / 1e6:.1f} MB")
    for note in facts.get("notes", ()):
        print(f"note: {note}")
    return 0
