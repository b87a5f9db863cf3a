"""The documents of an adapter's own tasks, as lm-eval tasks: its target, and the probe questions.

All are rendered by the function that rendered the training rows, so that the model is asked as it was taught. The
kind of row (see tasks/training/rendering.py) says what the target is:

    chat, plain   the greedy answer by `metric` (see tasks/evaluation/answers.py)
    preference    accuracy: the chosen answer, with its end token, has the higher log-likelihood; a tie counts as wrong
    text          mean negative log-likelihood per token of the whole text, in nats (nll_per_token)

A document is the same whether examples stand before its question or not, so that the two answers can be paired.
"""

from collections.abc import Sequence
from typing import Any

from infra.errors import Fault, RequestError, StageError
from tasks.evaluation.answers import SCORES
from tasks.prompting.shots import plain_stop, with_shots
from tasks.training.rendering import render_pair, render_prompt

Document = dict[str, str]
Row = dict[str, Any]
NO_SHOTS: dict[str, Any] = {"num_fewshot": 0, "shots": []}  # the content of a prompt.json


def target_task(
    name: str,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    metric: str = "exact_match",
    prompting: dict[str, Any] = NO_SHOTS,
    room: int | None = None,
) -> dict[str, Any]:
    """The lm-eval task (its config) that scores `rows`, with the examples of `prompting` before each question.

    StageError if there are no rows, or if question and answer take more than `room` tokens: lm-eval would cut the first
    examples in silence. RequestError if `metric` does not fit the kind of row.
    """
    if not rows:
        raise StageError(f"{name}: there are no rows to score.")
    check_metric(rows[0], metric)
    if "text" in rows[0]:
        return perplexity_task(name, [{"text": row["text"]} for row in rows])
    asked: dict[str, str] = {}  # what the model reads, by the question alone
    documents: list[Document] = []
    for row in rows:
        question = render_prompt(tokenizer, row["prompt"])
        prompt = with_shots(row["prompt"], prompting["shots"], prompting["num_fewshot"])
        asked[question] = render_prompt(tokenizer, prompt)
        documents.append({"prompt": question, **_answers(tokenizer, row)})
    if prompting["shots"] and room is not None:
        longest = max(_length(tokenizer, text) for text in asked.values()) + max_new_tokens
        if longest > room:
            raise StageError(
                f"{name}: with {prompting['num_fewshot']} examples the longest question and {max_new_tokens} tokens of "
                f"answer take {longest} tokens, and the model reads {room}; lower num_fewshot."
            )
    if "chosen" in rows[0]:
        return choice_task(name, documents, asked)
    until = [tokenizer.eos_token, *plain_stop(prompting["shots"])]
    return generation_task(name, documents, asked, until=until, max_new_tokens=max_new_tokens, metric=metric)


def check_metric(row: Row, metric: str) -> None:
    """RequestError for a target metric that rows of this kind do not have; exact_match is the recipe's default."""
    if metric not in SCORES:
        raise RequestError(Fault(f"{metric!r} is none of {', '.join(SCORES)}", "target.metric"))
    for column, kind, own in (("chosen", "preference pairs", "acc"), ("text", "plain text", "nll_per_token")):
        if column in row and metric != "exact_match":
            raise RequestError(
                Fault(f"{metric!r} scores an answer, and {kind} are scored by {own}; leave it out", "target.metric")
            )


def _answers(tokenizer: Any, row: Row) -> Document:
    """The answer without surrounding space, or both of a pair as they are trained, with the end token."""
    if "chosen" in row:
        pair = zip(("chosen", "rejected"), render_pair(tokenizer, row), strict=True)
        return {side: tokenizer.decode(one.answer_ids, clean_up_tokenization_spaces=False) for side, one in pair}
    answer = row["completion"]
    return {"answer": (answer if isinstance(answer, str) else answer[0]["content"]).strip()}


def probe_task(name: str, tokenizer: Any, questions: Sequence[str], *, max_new_tokens: int) -> dict[str, Any]:
    """The probes have no right answer: they are shown, not scored."""
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    documents = [{"prompt": prompt, "answer": ""} for prompt in prompts]
    asked = {prompt: prompt for prompt in prompts}
    return generation_task(name, documents, asked, until=[tokenizer.eos_token], max_new_tokens=max_new_tokens)


def generation_task(
    name: str,
    documents: list[Document],
    asked: dict[str, str],
    *,
    until: list[str],
    max_new_tokens: int,
    metric: str = "exact_match",
) -> dict[str, Any]:
    """Ask greedily and score the answer against the row's."""
    score = SCORES[metric]
    return {
        **_task(name, documents, "generate_until", metric, higher_is_better=True),
        "doc_to_text": lambda document: asked[document["prompt"]],
        "doc_to_target": lambda document: document["answer"],
        "process_results": lambda document, results: {metric: score(results[0], document["answer"])},
        "generation_kwargs": {"until": until, "max_gen_toks": max_new_tokens, "do_sample": False},
    }


def choice_task(name: str, documents: list[Document], asked: dict[str, str]) -> dict[str, Any]:
    """Which of two answers is the likelier one? The chosen one comes second: lm-eval takes the first of equals."""
    return {
        **_task(name, documents, "multiple_choice", "acc", higher_is_better=True),
        "doc_to_text": lambda document: asked[document["prompt"]],
        "doc_to_choice": lambda document: [document["rejected"], document["chosen"]],
        "doc_to_target": lambda _: 1,
        "target_delimiter": "",
    }


def perplexity_task(name: str, documents: list[Document]) -> dict[str, Any]:
    """How likely are the texts? Records keep the loss per token; what lm-eval adds up itself is not used."""
    return {
        **_task(name, documents, "loglikelihood_rolling", "bits_per_byte", higher_is_better=False),
        "doc_to_text": "",
        "doc_to_target": lambda document: document["text"],
    }


def _task(
    name: str, documents: list[Document], output_type: str, metric: str, *, higher_is_better: bool
) -> dict[str, Any]:
    from datasets import Dataset

    aggregation = "bits_per_byte" if metric == "bits_per_byte" else "mean"
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
        "test_split": "test",
        "output_type": output_type,
        "metric_list": [{"metric": metric, "aggregation": aggregation, "higher_is_better": higher_is_better}],
        "num_fewshot": 0,
    }


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)
