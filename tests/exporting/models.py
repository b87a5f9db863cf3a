"""Small real models with random weights, and tokenizers with real merges, for each way that text is split."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from tasks.exporting.vocabulary import CL100K
from tests.tiny import CHAT_TEMPLATE

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = 400  # a few more than the tokenizers have tokens, as models have

byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(CL100K.replace("DIGITS", digits)), "isolated")


SPLITTERS: dict[str, tuple[pre_tokenizers.PreTokenizer, bool]] = {  # and whether whole words come before merges
    "gpt-2": (byte_level, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]), False),
    "qwen2": (pre_tokenizers.Sequence([split(""), bytes_only]), False),
    "llama-bpe": (pre_tokenizers.Sequence([split("{1,3}"), bytes_only]), True),
    "smaug-bpe": (pre_tokenizers.Sequence([split("{1,3}"), bytes_only]), False),
}


def trained_tokenizer(splitter: str = "smollm", *, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """Learned from this project's own documents; "qwen2" normalises to NFC, as Qwen's does."""
    steps, ignore_merges = SPLITTERS[splitter]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = steps
    tokenizer.decoder = decoders.ByteLevel()
    if splitter == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(Path(__file__).parents[2] / "README.md")], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def config(kind: type[PretrainedConfig], **changes: Any) -> PretrainedConfig:
    """Weights large enough that a wrong order of rows or a wrong angle shows in every answer."""
    settings = {
        "vocab_size": ROWS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    return kind(**{**settings, **changes})


def save_model(folder: Path, settings: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Path:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # initialised to 0 and 1, which hides what is lost
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
