"""A weaker adapter without training: the same weights, with the factor that PEFT puts before them made smaller.

    W + f B A   ->   W + scale * f B A        f = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

A straight line in weights from the base (scale 0) to the adapter (scale 1), as in WiSE-FT (arXiv 2109.01903). The
factor is proportional to lora_alpha, and to alpha_pattern where a module has its own, in either form, so these are
what is written: every tool that reads adapter_config.json then agrees. r and rank_pattern say shapes and stay.

The line is right for any start of A and B, because what is stored is always a difference from the untouched base:
adapters that began as PiSSA or OLoRA were turned into one when training ended (tasks/training/methods.py). LoftQ's
makes good part of the 4-bit base's rounding as well; scaled, it makes good less of it. Its line still ends in the
4-bit base, the one that it is compared with. DoRA's does not: W + B A is rescaled to learned magnitudes, which no
alpha reaches.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from infra.errors import StageError
from infra.storage import MANIFEST

CONFIG = "adapter_config.json"


def write_scaled(adapter: Path, scale: float, output: Path) -> None:
    """Write the adapter in the folder `adapter`, times `scale`, to the folder `output`; StageError if it has no scale.

    The other files are copied byte by byte.
    """
    if not (adapter / CONFIG).is_file():
        raise StageError(f"{adapter} is a whole model, not an adapter: it has no lora_alpha to scale; use cure.replay.")
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    scaled = scaled_config(config, scale)
    shutil.copytree(
        *(adapter, output),
        ignore=shutil.ignore_patterns(MANIFEST, CONFIG),
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
    )
    (output / CONFIG).write_text(json.dumps(scaled, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def scaled_config(config: dict[str, Any], scale: float) -> dict[str, Any]:
    """PEFT's LoRA configuration with every alpha times `scale`."""
    if config.get("use_dora"):
        raise StageError(
            "the adapter is DoRA's: its learned magnitudes apply whatever lora_alpha is, so a smaller one is no step "
            "back towards the base. Use cure.replay, or lora.use_dora: false."
        )
    own = {module: alpha * scale for module, alpha in (config.get("alpha_pattern") or {}).items()}
    return {**config, "lora_alpha": config["lora_alpha"] * scale, "alpha_pattern": own}
