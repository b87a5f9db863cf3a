"""The base's answers: plain greedy generation, and what of it may be trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.logging import disable_run_logger
from transformers import AutoTokenizer, LlamaForCausalLM

from infra.errors import RequestError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.curing.answering import BATCH, Answer, greedy_answers, up_to_last_sentence, usable_rows
from tasks.curing.replay import REPLAY
from tasks.curing.task import answer_general_prompts
from tasks.ingestion.dataset import read_jsonl
from tasks.runs import new_run
from tasks.training.models import load_base
from tasks.training.rendering import render
from tests.tiny import tiny_config, tiny_tokenizer

LIMIT = 24
PROMPTS = [f"{'Why? ' * (number % 9)}Question {number}" for number in range(3 * BATCH + 5)]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that says something else to every prompt, in a few letters and full stops, and sometimes ends.

    Large random weights make it chaotic: a wrong mask or position would show.
    """
    folder = tmp_path_factory.mktemp("talker")
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=False, initializer_range=0.5, dtype="float32"))
    said = [*tokenizer.convert_tokens_to_ids([*"abcdefghijklmnop.", "Ġ"]), tokenizer.eos_token_id]
    silent = [token for token in range(model.config.vocab_size) if token not in said]
    with torch.no_grad():
        model.lm_head.weight[silent] *= 0.01
        model.lm_head.weight[said[-3:-1]] *= 1.5  # sentences, not words alone
        model.lm_head.weight[said[-1]] *= 0.6
    model.generation_config.repetition_penalty = 1.7  # a base may bring its own; greedy is plain all the same
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def plain_greedy(model: Any, tokenizer: Any, prompt: str) -> Answer:
    """One prompt by itself, without a cache, padding or transformers' generate."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    start = len(ids)
    while len(ids) < start + LIMIT:
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return Answer(tokenizer.decode(ids[start:]), ended=True)
        ids.append(token)
    return Answer(tokenizer.decode(ids[start:]), ended=False)


@pytest.mark.slow
def test_answers_in_batches_are_those_of_plain_greedy_generation(talker: Path) -> None:
    model, tokenizer = load_base(talker, "none", "cpu", torch.float32).eval(), AutoTokenizer.from_pretrained(talker)
    done: list[int] = []
    answers = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=LIMIT, on_batch=done.append)
    assert answers == [plain_greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    assert done == [16, 32, 48, 53]
    assert len({one.text for one in answers}) > 40  # or else any order would do
    assert 5 < sum(one.ended for one in answers) < 48


def test_a_prompt_that_does_not_fit_is_refused_by_name(base: Path) -> None:
    model, tokenizer = load_base(base, "none", "cpu").eval(), AutoTokenizer.from_pretrained(base)
    with pytest.raises(RequestError, match="exceed the base's context of 2048") as refused:
        greedy_answers(model, tokenizer, ["a" * 2100, "short", "b" * 2010], max_new_tokens=20)
    assert len(refused.value.faults) == 2
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        greedy_answers(model, tokenizer, ["short"], max_new_tokens=20)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("One is here. Two is on its", "One is here."),
        ("One is here. Two is here.", "One is here. Two is here."),
        ("Really! Is it? It may", "Really! Is it?"),
        ('He said "no." Then he', 'He said "no."'),
        ("It is **so.** And", "It is **so.**"),
        ("It was in 1969. Then", "It was in 1969."),
        ("It is about 3.", ""),  # 3.14?
        ("Pi is 3.14 and e is 2.71 and", ""),
        ("See example.com for", ""),
        ("Three of them:\n\n1. Apples are red.\n2. Bananas", "Three of them:\n\n1. Apples are red."),
        ("Three of them:\n1. Apples\n2. Pears\n3.", ""),
        ("Like this. Write:\n```python\nprint('Hi.') # Hi. And", "Like this."),
        ("Like this:\n```\nprint()\n```\nIt prints. That", "Like this:\n```\nprint()\n```\nIt prints."),
        ("これは本です。それは", "これは本です。"),
        ("Well… I", "Well…"),
        ("without an end", ""),
        ("", ""),
    ],
)
def test_what_the_limit_cut_ends_with_its_last_whole_sentence(cut: str, kept: str) -> None:
    assert up_to_last_sentence(cut) == kept


def test_rows_are_chats_of_what_is_left() -> None:
    answers = [
        Answer("Paris, of course", ended=True),  # by itself: kept as it is
        Answer("One. Two and", ended=False),
        Answer("Two and", ended=False),
        Answer(" \n", ended=True),
        Answer("4\ufffd is it.", ended=True),
    ]
    rows = list(usable_rows(["a", "b", "c", "d", "e"], answers))
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        ([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "Paris, of course"}]),
        ([{"role": "user", "content": "b"}], [{"role": "assistant", "content": "One."}]),
    ]
    assert len({row["id"] for row in rows}) == 2


@pytest.mark.slow
def test_as_a_task_it_is_answered_once_for_all_adapters(talker: Path, tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))

    def copy(_work: Path, output: Path) -> dict[str, Any]:
        for file in talker.iterdir():
            (output / file.name).write_bytes(file.read_bytes())
        return {}

    def ask(prompts: list[str]) -> StageResult:
        file.write_text("\n".join(prompts))
        return answer_general_prompts.fn(run, stored, "nf4", str(file), max_new_tokens=LIMIT)

    stored, file = run.once(Work("import-base", 2, "bases", "talker", {}, {}), copy), tmp_path / "asked.txt"
    with disable_run_logger():
        first = ask(PROMPTS)
        again = ask([*PROMPTS, "", PROMPTS[0]])  # the same prompts, written otherwise
        fewer = ask(PROMPTS[:20])
    rows, facts = read_jsonl(run.store.fetch(first.ref) / REPLAY), first.facts
    assert (first.cached, again.cached, fewer.cached) == (False, True, False) and first.ref == again.ref
    assert first.ref.kind == "replays" and fewer.facts["prompts"] == 20
    assert facts["prompts"] == len(PROMPTS) == facts["rows"] + facts["left_out"]
    assert facts["rows"] == len(rows) == facts["ended"] + facts["cut"] and facts["ended"] and facts["cut"]
    tokenizer, model = AutoTokenizer.from_pretrained(talker), load_base(talker, "nf4", "cpu").eval()
    said = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=LIMIT)
    assert rows == list(usable_rows(PROMPTS, said))
    assert facts["longest"] == max(len(render(tokenizer, row).features()["input_ids"]) for row in rows)
