"""The part of a model card that says how to load what was released: PEFT, transformers, vLLM, llama.cpp.

Every line starts with words of ours and quotes what comes from recipes, so that a name can neither end the block nor
run as a command.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tasks.publishing.markdown import code, printable
from tasks.recipe.schema import Artifact

LOCAL_BASE = "path/to/the/base/model"


def is_hub_id(model: str) -> bool:
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def how_to_load(
    what: Artifact,
    *,
    name: str,
    base_model: str,
    base_revision: str | None,
    quantization: Literal["none", "nf4"],
    source: str,
    files: Sequence[str],
) -> list[str]:
    """Markdown blocks. `source` is a repository id or a folder; `files` are the release's, of which the .gguf count."""
    if what == "report":
        return ["Nothing to load: `verdict.json` holds the verdict, `flips/` every document whose answer changed."]
    if what == "gguf":
        return _gguf(source, files)
    if what == "merged":
        return _merged(source)
    served = _word(base_model if is_hub_id(base_model) else LOCAL_BASE)
    return [
        "With PEFT:",
        code("python", _peft(base_model, base_revision, quantization, source)),
        "With vLLM, on the base in 16 bits (a rank above 16 takes `--max-lora-rank` as well):",
        code("bash", [f"vllm serve {served} --enable-lora --lora-modules {_word(f'{name}={source}')}"]),
        "With llama.cpp, after its own script has made a GGUF of it:",
        code(
            "bash",
            [
                f"python convert_lora_to_gguf.py path/to/the/adapter --base {LOCAL_BASE} --outfile adapter.gguf",
                "llama-cli -m path/to/the/base.gguf --lora adapter.gguf",
            ],
        ),
    ]


def _merged(source: str) -> list[str]:
    return [
        "With transformers:",
        code(
            "python",
            [
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f"model = AutoModelForCausalLM.from_pretrained({_quoted(source)})",
                f"tokenizer = AutoTokenizer.from_pretrained({_quoted(source)})",
            ],
        ),
        "With vLLM:",
        code("bash", [f"vllm serve {_word(source)}"]),
        "With llama.cpp, after its own script has made a GGUF of it:",
        code(
            "bash",
            ["python convert_hf_to_gguf.py path/to/the/model --outfile model.gguf", "llama-cli -m model.gguf"],
        ),
    ]


def _gguf(source: str, files: Sequence[str]) -> list[str]:
    found = sorted(file for file in files if file.endswith(".gguf")) or ["model-f16.gguf", "adapter-f16.gguf"]
    adapters = [file for file in found if file.startswith("adapter")]
    commands = [f"llama-cli -m {_word(file)}" for file in found if file not in adapters]
    commands += [f"llama-cli -m path/to/the/base.gguf --lora {_word(file)}" for file in adapters]
    return [f"With llama.cpp, in the folder with the files of {_inline(source)}:", code("bash", commands)]


def _peft(base_model: str, base_revision: str | None, quantization: str, source: str) -> list[str]:
    base = [f"base_model = {_quoted(base_model)}"]
    if not is_hub_id(base_model):  # transformers cannot fetch it by that name
        base = [f"# the base model is {printable(base_model)}", f"base_model = {_quoted(LOCAL_BASE)}"]
    revision = f", revision={_quoted(base_revision)}" if base_revision and is_hub_id(base_model) else ""
    four_bit = quantization == "nf4"
    config = [
        "four_bits = BitsAndBytesConfig(  # as the adapter was trained and judged",
        '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,',
        "    bnb_4bit_compute_dtype=torch.bfloat16,",
        ")",
    ]
    precision = "quantization_config=four_bits" if four_bit else "dtype=torch.bfloat16"
    return [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if four_bit else ''}",
        "",
        *base,
        *(config if four_bit else []),
        f"tokenizer = AutoTokenizer.from_pretrained(base_model{revision})",
        f"model = AutoModelForCausalLM.from_pretrained(base_model{revision}, {precision})",
        f"model = PeftModel.from_pretrained(model, {_quoted(source)})",
    ]


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _word(value: str) -> str:
    """One word of a shell command."""
    return shlex.quote(printable(value))


def _inline(value: str) -> str:
    return f"`{printable(value.replace('`', ' '))}`"
