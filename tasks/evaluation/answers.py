"""How close a generated answer comes to the wanted one, 0 to 1: the metrics of an adapter's own target.

exact_match  the same text, but for space around it
f1           words in common, as in SQuAD (arXiv 1606.05250): without case, punctuation and articles
rouge_l      F1 of the longest common subsequence of words (Lin 2004), words not stemmed
bleu         sentence BLEU with exponential smoothing, as sacrebleu computes it (arXiv 1804.08771)
"""

import re
import string
from collections import Counter
from collections.abc import Callable

from tasks.evaluation.metrics import sentence_score


def exact_match(answer: str, wanted: str) -> float:
    return float(answer.strip() == wanted)


def token_f1(answer: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over words; of two texts without any word, 1."""
    said, right = words(answer), words(wanted)
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def rouge_l(answer: str, wanted: str) -> float:
    """Of two texts without any word, whether they are the same."""
    from rouge_score.rouge_scorer import RougeScorer

    if not _Words.tokenize(answer) and not _Words.tokenize(wanted):
        return exact_match(answer, wanted)
    return float(RougeScorer(["rougeL"], tokenizer=_Words).score(wanted, answer)["rougeL"].fmeasure)


class _Words:
    """ROUGE's words, of letters and digits in lower case, in every script: its own tokenizer drops all but a to z."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def bleu(answer: str, wanted: str) -> float:
    return sentence_score("bleu", [wanted], answer.strip())


def words(text: str) -> list[str]:
    """SQuAD's normal form: lower case, no punctuation, no articles."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


SCORES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "bleu": bleu,
}
