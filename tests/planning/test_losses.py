"""Tasks whose score is a loss per token: their margin is a share by which perplexity may rise, whatever asks for it."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tasks.forgetting.sample_size import documents_needed_continuous
from tasks.planning.decisions import power_of
from tasks.planning.general import few_documents, look_at_general
from tasks.planning.measured import Measured
from tasks.planning.power_table import print_power
from tasks.recipe.schema import Evaluation, GeneralTask, Recipe

LAST_WORD = """\
task: last_word
dataset_path: nobody/nothing
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: "{{word}}"
metric_list:
  - {metric: perplexity, higher_is_better: false}
  - {metric: acc, higher_is_better: true}
"""
OURS = "task: capitals_open\ndataset_path: nobody/nothing\noutput_type: generate_until\n"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A folder with a task like LAMBADA, whose first metric is lm-eval's perplexity of an answer."""
    (tmp_path / "last_word.yaml").write_text(LAST_WORD)
    return str(tmp_path)


def power(own: str, **asked: Any) -> dict[str, Any]:
    content = {
        "name": "r",
        "evaluation": {"general": [{"task": "last_word", "margin": 0.2, "limit": 500, **asked}], "include_path": own},
        "adapters": [{"name": "one", "data": {"rows": [{"text": "a"}], "text": "{{ text }}"}}],
    }
    recipe = Recipe.model_validate(content).resolved()
    known = look_at_general(recipe.evaluation)
    rows = [{"name": "one", "kind": "text", "rows": {"held_out": 100}}]
    return power_of(recipe, rows, known, {"last_word": Measured(adapters=1, disagreement=0.0, sd=2.0)})


@pytest.mark.slow
def test_the_loss_of_an_answer_is_one(own: str) -> None:
    found = power(own)
    loss, target = found["tasks"]
    assert (loss["change"], target["change"]) == ("rise", "fall")
    assert loss["needed"] == documents_needed_continuous(math.log1p(0.2), 2.0, alpha=0.05)
    assert math.log1p(loss["detectable"]) == pytest.approx(2.4865 * 2.0 / math.sqrt(500), rel=1e-3)
    console = Console(file=io.StringIO(), width=120)
    print_power(found, console)
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"last_word <= 500 ? rise {100 * loss['detectable']:.1f} % < 20 % {loss['needed']} NO" in printed


@pytest.mark.slow
def test_its_accuracy_is_none(own: str) -> None:
    (accuracy, _) = power(own, metric="acc")["tasks"]
    assert accuracy["change"] == "drop" and accuracy["disagreement"] is not None


def test_texts_that_are_read_are_losses() -> None:
    known = look_at_general(Evaluation(general=("pydoc_perplexity", "minimal_pairs")))  # type: ignore[arg-type]
    assert known["pydoc_perplexity"].loss and not known["minimal_pairs"].loss


def test_each_look_needs_a_document_of_each_task_that_is_counted() -> None:
    general = [GeneralTask(task="pydoc_perplexity"), GeneralTask(task="hellaswag"), GeneralTask(task="mmlu", limit=4)]
    assert few_documents(general, 4, None) == []
    (limited,) = few_documents(general, 112, None)
    assert "general task 'mmlu' has 4 documents, at least one for each look; raise its limit, or set looks to 4" in str(
        limited
    )
    shipped = few_documents([GeneralTask(task="pydoc_perplexity", limit=500)], 113, None)
    assert [str(fault).partition("; ")[2] for fault in shipped] == ["set looks to 112 or less"]


@pytest.mark.slow
def test_a_task_that_only_bears_a_known_name_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "capitals_open.yaml").write_text(OURS)
    assert few_documents([GeneralTask(task="capitals_open")], 500, str(tmp_path)) == []
    assert few_documents([GeneralTask(task="capitals_open")], 500, None) != []
