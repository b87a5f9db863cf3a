"""Which figure of a document is its score: what the recipe asks for, among those that the task has.

A verdict pairs documents, so each needs a figure of its own. lm-eval gives most metrics per document. Of others it
keeps what a figure of the whole task is made of, and there

    loss     a text's log-likelihood, or an answer's: mean negative log-likelihood per token, in nats (nll_per_token)
    corpus   (reference, answer) of BLEU, chrF and TER: sacrebleu's figure for the one sentence, 0 to 1 (TER: and above)

stand in. What has no such figure (the F1 or the correlation of a whole task's labels) cannot be chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import Fault, RequestError

LOSS = "nll_per_token"
CHANCE = frozenset({"acc", "acc_norm", "acc_bytes"})  # right if picked: chance is one over the number of choices
PERPLEXITY = "perplexity"  # lm-eval's name for the loss of an answer (LAMBADA); higher_is_better is that of its total
SENTENCE = ("bleu", "chrf", "chrf++", "ter")


@dataclass(frozen=True)
class Metric:
    name: str
    filter: str  # lm-eval's name of how the answer is cut out of the text; "none" as a rule
    higher_is_better: bool

    def score(self, sample: dict[str, Any]) -> float:
        """The document's score; NaN where lm-eval left none."""
        value = sample.get(self.name)
        if self.name in SENTENCE and isinstance(value, list | tuple):
            return sentence_score(self.name, *_pair(value))
        return math.nan if value is None else float(value)


def metric_of(task: str, results: Any, wanted: str | None) -> Metric:
    """The metric of one task in lm-eval's results: `wanted` ("metric" or "metric,filter"), or the task's first.

    RequestError that names what there is, if the task lacks it.
    """
    if not (samples := results["samples"][task]):
        raise RequestError(Fault(f"task {task!r} has no documents", "evaluation.general"))
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    kind = results["configs"][task]["output_type"]
    if kind == "loglikelihood_rolling":
        offered = {LOSS: False}
    else:
        listed = results["higher_is_better"][task]
        given = {name for sample in samples for name in sample["metrics"]}
        usable = [name for name in listed if name in given and _has_figure(name, samples[0].get(name))]
        usable = [LOSS if name == PERPLEXITY and kind == "loglikelihood" else name for name in usable]
        offered = {name: False if name == LOSS else listed[name] for name in usable}
    name, _, asked = (wanted or next(iter(offered), "")).partition(",")
    if name not in offered or (asked and asked not in filters):
        raise RequestError(Fault(_lacks(task, wanted, offered, filters, kind), "evaluation.general"))
    if offered[name] is None:
        raise RequestError(
            Fault(
                f"task {task!r} does not say whether more of {name!r} is better; add higher_is_better to its "
                "metric_list",
                "evaluation.general",
            )
        )
    return Metric(name, asked or filters[0], bool(offered[name]))


def _lacks(task: str, wanted: str | None, offered: dict[str, Any], filters: list[str], kind: str) -> str:
    has = ", ".join(offered) or "none that gives each document a score of its own"
    if len(filters) > 1:
        has += f"; behind a comma, one of the filters {', '.join(filters)}"
    if kind == "loglikelihood_rolling":
        has += "; perplexity and bits per byte are reported beside it"
    return f"task {task!r} has no metric {wanted!r}; it has {has}" if wanted else f"task {task!r} has as metrics {has}"


def _has_figure(name: str, value: Any) -> bool:
    """Whether a document's value is its score: a number or a truth value, also of NumPy; None is told later."""
    number = hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
    return number or value is None or (name in SENTENCE and isinstance(value, list | tuple))


def _pair(value: Any) -> tuple[Sequence[str], str]:
    """(references, answer), as lm-eval keeps them for its corpus metrics."""
    reference, answer = value
    return ([reference] if isinstance(reference, str) else reference), (
        answer if isinstance(answer, str) else answer[0]
    )


def sentence_score(metric: str, references: Sequence[str], answer: str) -> float:
    """BLEU, chrF (Popovic 2015), chrF++ (2017) or TER (Snover 2006) of one sentence, as a share."""
    import sacrebleu

    if metric == "bleu":
        return sacrebleu.sentence_bleu(answer, references).score / 100
    if metric == "ter":
        return sacrebleu.sentence_ter(answer, references).score / 100
    return sacrebleu.sentence_chrf(answer, references, word_order=2 if metric == "chrf++" else 0).score / 100
