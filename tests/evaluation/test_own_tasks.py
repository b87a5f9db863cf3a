"""A user's own tasks on a tiny real model: shots, template, limits, parts, metrics, clusters; and what is refused."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError, StageError
from tasks.evaluation.bench import Bench
from tasks.evaluation.catalogue import task_manager
from tasks.evaluation.engine import drafts_of, score_cell
from tasks.evaluation.lm_tasks import load, running_code
from tasks.evaluation.parts import ask_only
from tasks.evaluation.records import clusters_by_document, read_records, scores_by_document
from tests.evaluation.own_tasks import write_task
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow

ACC, NORM = ({"metric": name, "higher_is_better": True} for name in ("acc", "acc_norm"))
EXACT = {"metric": "exact_match", "higher_is_better": True}
QUESTIONS = [
    {"q": f"Question {n}?", "choices": ["yes", "no, never", "x"][: 2 + n % 2], "answer": n % 2, "passage": n // 3}
    for n in range(9)
]
OPEN = [{"q": f"Say {n}", "answer": str(n)} for n in range(5)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    bench = Bench(save_tiny_base(tmp_path_factory.mktemp("base")), "none", "cpu", batch_size=4)
    with bench.answering_as(None) as answering:
        yield answering


def scored(lm: Any, folder: Path, name: str, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    output = folder.parent / f"{name}-{len(list(folder.parent.iterdir()))}"
    output.mkdir()
    facts = score_cell(lm, {"kind": "general", "name": name, "include_path": str(folder), **changes}, output)
    return facts, read_records(output / "records.parquet")


def test_parts_are_the_whole_task_with_the_same_prompts_and_scores(lm: Any, tmp_path: Path) -> None:
    """Few-shot examples are drawn in the order of the documents: a part has to draw as the whole does."""
    folder = write_task(tmp_path / "own", "quiz", "multiple_choice", QUESTIONS, ACC, more="fewshot_split: train\n")
    facts, whole = scored(lm, folder, "quiz", num_fewshot=2)
    parts = [scored(lm, folder, "quiz", num_fewshot=2, part=[number, 4]) for number in (1, 2, 3, 4)]
    assert sorted(len(records) for _, records in parts) == [2, 2, 2, 3] and facts["n"] == 9
    assert all(facts["available"] == 9 for facts, _ in parts)
    kept = ("doc_id", "doc_digest", "prompt_digest", "prompt", "score", "choices")
    together = {record["doc_id"]: record for _, records in parts for record in records}
    assert len({record["prompt"] for record in whole}) == 9
    for record in whole:
        assert {key: together[record["doc_id"]][key] for key in kept} == {key: record[key] for key in kept}
        assert together[record["doc_id"]]["loglikelihoods"] == pytest.approx(record["loglikelihoods"], abs=0.2)
    _, first = scored(lm, folder, "quiz", part=[1, 2], limit=4)
    _, second = scored(lm, folder, "quiz", part=[2, 2], limit=4)
    assert sorted(record["doc_id"] for record in first + second) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("name", "template"), [("quiz", False), ("quiz", True), ("open", False), ("open", True)])
def test_what_is_asked_is_what_the_stock_command_asks(lm: Any, tmp_path: Path, name: str, template: bool) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    shots = "fewshot_split: train\n"
    folder = write_task(tmp_path / "own", "quiz", "multiple_choice", QUESTIONS, ACC, more=shots)
    write_task(folder, "open", "generate_until", OPEN, EXACT, more=shots)
    stock = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4, softmax_dtype="float32")
    manager = task_manager(name, str(folder))
    wanted = simple_evaluate(
        stock, tasks=[name], num_fewshot=2, apply_chat_template=template, task_manager=manager, bootstrap_iters=0
    )["samples"][name]
    _, records = scored(lm, folder, name, num_fewshot=2, apply_chat_template=template)
    for sample, record in zip(wanted, records, strict=True):
        assert record["prompt"] == sample["arguments"][0][0]
        assert record["choices"] == ([one[1] for one in sample["arguments"]] if name == "quiz" else None)
        assert record["doc_digest"] == sample["doc_hash"]


def test_drafts_are_named_as_the_requests_are(tmp_path: Path) -> None:
    documents = [{"q": f"Say {n}", "answer": [f"first {n}", "other"]} for n in range(9)]
    folder = write_task(tmp_path / "own", "open", "generate_until", documents, EXACT)
    task = load("open", str(folder))[0]["tasks"]["open"]
    ask_only(task, {2, 5, 8})
    drafts = drafts_of({"open": task}, 6)
    task.build_all_requests(limit=6)
    assert [one.doc_id for one in task.instances] == [2, 5]
    assert [drafts[one.task_name, one.doc_id] for one in task.instances] == ["first 2", "first 5"]
    assert [number for number, _ in task.doc_iterator(limit=6)] == [2, 5]


def test_a_group_is_cut_task_by_task_and_its_clusters_are_kept_apart(lm: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "long", "multiple_choice", QUESTIONS, ACC)
    write_task(folder, "short", "multiple_choice", QUESTIONS[:1], ACC)
    (folder / "both.yaml").write_text("group: both\ntask: [long, short]\naggregate_metric_list: [{metric: acc}]\n")
    parts = [scored(lm, folder, "both", part=[number, 3], clusters="passage") for number in (1, 2, 3)]
    long = {"long:0": 3, "long:1": 3, "long:2": 3}
    found = [record for _, records in parts for record in records]
    assert {c: sum(r["cluster"] == c for r in found) for c in {r["cluster"] for r in found}} == {**long, "short:0": 1}
    assert {record["doc_id"] for record in found} == {*(f"long:{n}" for n in range(9)), "short:0"}
    _, records = scored(lm, folder, "both", clusters="task")
    assert [record["cluster"] for record in records] == ["long"] * 9 + ["short"]
    with pytest.raises(RequestError, match=r"part 1 of 3 of 'short' has no documents; lower gate\.looks"):
        scored(lm, folder, "short", part=[1, 3])
    with pytest.raises(RequestError, match="`clusters` is 'story', and a document has no such column; it has answer"):
        scored(lm, folder, "long", clusters="story")


def test_shots_template_and_limit_are_what_the_cell_says(lm: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "open", "generate_until", OPEN, EXACT, more="fewshot_split: train\n")
    bare, (record, other) = scored(lm, folder, "open", apply_chat_template=False, limit=2)
    assert (record["prompt"], record["target"], bare["n"], bare["chat_template"]) == ("Say 0", "0", 2, False)
    assert other["prompt"] == "Say 1"
    _, (shown, *_) = scored(lm, folder, "open", apply_chat_template=False, num_fewshot=1, limit=2)
    assert shown["prompt"].endswith("\n\nSay 0") and shown["prompt"].startswith("Say ")
    chat, (turns, *_) = scored(lm, folder, "open", num_fewshot=1, limit=2)
    assert turns["prompt"].count("<|im_start|>user") == 2 and chat["chat_template"]
    assert turns["prompt"].endswith("<|im_start|>user\nSay 0<|im_end|>\n<|im_start|>assistant\n")
    assert bare["metric"] == "exact_match" and len(record["response"]) <= 4
    none = write_task(tmp_path / "none", "fixed", "generate_until", OPEN, EXACT, more="num_fewshot: 0\n")
    with pytest.raises(RequestError, match="num_fewshot is 1, and task 'fixed' is made for none"):
        scored(lm, none, "fixed", num_fewshot=1)


def test_without_a_chat_template_none_is_applied_and_none_can_be_asked_for(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "open", "generate_until", OPEN, EXACT)
    for has_template in (True, False):
        _, template = load("open", str(folder), apply_chat_template=None, has_template=has_template)
        assert template == has_template
    with pytest.raises(RequestError, match=r"the tokenizer has no chat template; give base\.chat_template"):
        load("open", str(folder), apply_chat_template=True, has_template=False)


def test_the_metric_is_the_one_that_is_asked_for(lm: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "quiz", "multiple_choice", QUESTIONS, ACC, NORM)
    _, plain = scored(lm, folder, "quiz")
    facts, normal = scored(lm, folder, "quiz", metric="acc_norm")
    assert facts["metric"] == "acc_norm" == normal[0]["metric"]
    for metric, records in (("acc", plain), ("acc_norm", normal)):
        for record in records:
            sizes = [len(choice) - 1 if metric == "acc_norm" else 1 for choice in record["choices"]]  # the space
            weighed = [value / size for value, size in zip(record["loglikelihoods"], sizes, strict=True)]
            assert record["score"] == (weighed.index(max(weighed)) == int(record["target"]))
    assert [record["score"] for record in plain] != [record["score"] for record in normal]
    with pytest.raises(RequestError, match=r"task 'quiz' has no metric 'f1'; it has acc, acc_norm$"):
        scored(lm, folder, "quiz", metric="f1")


def test_of_several_filters_the_first_counts_unless_one_is_named(lm: Any, tmp_path: Path) -> None:
    cut = "filter_list:\n"
    for name, function in (("plain", "take_first"), ("lower", "lowercase")):
        cut += f"  - name: {name}\n    filter: [{{function: {function}}}, {{function: take_first}}]\n"
    cut = cut.replace("[{function: take_first}, {function: take_first}]", "[{function: take_first}]")
    folder = write_task(tmp_path / "own", "open", "generate_until", OPEN, EXACT, more=cut)
    first, _ = scored(lm, folder, "open")
    other, records = scored(lm, folder, "open", metric="exact_match,lower")
    assert first["metric"] == other["metric"] == "exact_match" and len(records) == 5
    with pytest.raises(
        RequestError, match=r"no metric 'exact_match,upper'; .*; behind a comma, one of .* plain, lower"
    ):
        scored(lm, folder, "open", metric="exact_match,upper")


def test_corpus_metrics_score_each_document_by_itself(lm: Any, tmp_path: Path) -> None:
    import sacrebleu

    metrics = [{"metric": m, "aggregation": m, "higher_is_better": m != "ter"} for m in ("bleu", "chrf", "ter")]
    folder = write_task(tmp_path / "own", "said", "generate_until", [{"q": "Say it", "answer": "a b"}], *metrics)
    own = "process_results: !function pairs.score\n"  # a task that knows several references pairs them itself
    write_task(folder, "several", "generate_until", [{"q": "Say it", "answer": "x"}], *metrics, more=own)
    pairs = "(['a b', 'c'], results[0])"
    code = f"def score(doc, results):\n    return dict.fromkeys(['bleu', 'chrf', 'ter'], {pairs})\n"
    (folder / "pairs.py").write_text(code)
    for name, references in (("said", ["a b"]), ("several", ["a b", "c"])):
        for metric in ("bleu", "chrf", "ter"):
            facts, (record,) = scored(lm, folder, name, metric=metric)
            wanted = getattr(sacrebleu, f"sentence_{metric}")(record["response"], references).score / 100
            assert record["score"] == pytest.approx(wanted)
            assert facts["higher_is_better"] == (metric != "ter")


def test_the_loss_of_answers_and_of_texts_is_per_token(lm: Any, tmp_path: Path) -> None:
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    documents = [{"q": "Once upon a", "answer": "time"}, {"q": "The", "answer": "é"}]
    folder = write_task(tmp_path / "own", "last", "loglikelihood", documents, perplexity, ACC)
    write_task(folder, "whole", "loglikelihood_rolling", documents)
    facts, records = scored(lm, folder, "last")
    assert (facts["metric"], facts["higher_is_better"]) == ("nll_per_token", False)
    assert [record["tokens"] for record in records] == [5, 3]  # bytes are this model's tokens, and a space
    facts, records = scored(lm, folder, "whole")
    assert [record["bytes"] for record in records] == [record["tokens"] for record in records] == [11, 3]
    for record in records:
        assert record["score"] == pytest.approx(-record["loglikelihoods"][0] / record["tokens"])
    nats = -sum(record["loglikelihoods"][0] for record in records)
    assert facts["perplexity"] == pytest.approx(math.exp(nats / 14))
    assert facts["bits_per_byte"] == pytest.approx(nats / 14 / math.log(2))
    facts, records = scored(lm, folder, "last", metric="acc")
    assert (facts["metric"], records[0]["tokens"], "perplexity" in facts) == ("acc", None, False)
    with pytest.raises(RequestError, match="'whole' has no metric 'acc'; it has nll_per_token; perplexity and bits"):
        scored(lm, folder, "whole", metric="acc")


def test_a_task_without_documents_is_an_error(lm: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "nothing", "multiple_choice", [], ACC)
    with pytest.raises(StageError, match="task 'nothing' could not be loaded: it has no documents"):
        scored(lm, folder, "nothing")
    more = "doc_to_text: !function rows.absent\n"
    folder = write_task(tmp_path / "other", "torn", "multiple_choice", QUESTIONS, ACC, more=more)
    with pytest.raises(StageError, match=r"task 'torn' could not be loaded: AttributeError: .* no function 'absent'"):
        scored(lm, folder, "torn")


def test_what_is_no_number_is_no_score(lm: Any, tmp_path: Path) -> None:
    folder = write_task(
        tmp_path / "own",
        "broken",
        "generate_until",
        OPEN,
        {"metric": "odd", "higher_is_better": True},
        more="process_results: !function odd.score\n",
    )
    (folder / "odd.py").write_text(
        "def score(doc, results):\n    return {'odd': float('nan') if doc['q'] == 'Say 3' else 1}\n"
    )
    with pytest.raises(StageError, match="broken, document 3: the metric 'odd' is nan"):
        scored(lm, folder, "broken")


def test_a_metric_whose_direction_nobody_knows_is_refused(lm: Any, tmp_path: Path) -> None:
    more = "process_results: !function odd.score\n"
    folder = write_task(tmp_path / "own", "unsaid", "generate_until", OPEN, {"metric": "odd"}, more=more)
    (folder / "odd.py").write_text("def score(doc, results):\n    return {'odd': 1}\n")
    with pytest.raises(RequestError, match="does not say whether more of 'odd' is better"):
        scored(lm, folder, "unsaid")


def test_generated_code_runs_only_with_permission(lm: Any, tmp_path: Path) -> None:
    """pass@1 as a task of one's own, with a process that runs what the model wrote, and one that the model did not."""
    folder = write_task(
        tmp_path / "own",
        "program",
        "generate_until",
        OPEN,
        {"metric": "pass@1", "higher_is_better": True},
        more="unsafe_code: true\nprocess_results: !function passing.score\n",
    )
    (folder / "passing.py").write_text(
        "import os, subprocess, sys\n"
        "assert os.environ['HF_ALLOW_CODE_EVAL'] == '1'\n"
        "def score(doc, results):\n"
        "    program = results[0] if doc['answer'] != '2' else 'print(1)'\n"
        "    return {'pass@1': subprocess.run([sys.executable, '-c', program], capture_output=True).returncode == 0}\n"
    )
    with pytest.raises(
        RequestError, match=r"'program' runs code that the model wrote; set evaluation.confirm_run_unsafe"
    ):
        scored(lm, folder, "program")
    facts, records = scored(lm, folder, "program", confirm_run_unsafe_code=True)
    assert (facts["metric"], records[2]["score"]) == ("pass@1", 1)
    for permitted in (False, True, False):
        with running_code(permitted):
            assert (os.environ.get("HF_ALLOW_CODE_EVAL") == "1") == permitted
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_equal_documents_of_a_task_are_two(lm: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "twice", "multiple_choice", [QUESTIONS[0]] * 3, ACC)
    _, records = scored(lm, folder, "twice", clusters="passage")
    assert len({record["doc_digest"] for record in records}) == 1
    paths = [path / "records.parquet" for path in tmp_path.glob("twice-*")]
    assert len(scores_by_document(paths)) == len(clusters_by_document(paths) or ()) == 3


def test_other_choices_are_another_question(lm: Any, tmp_path: Path) -> None:
    """A prompt alone does not tell what was asked: behind an empty one stand only the choices."""
    changed = [{**QUESTIONS[0], "choices": ["yes", "maybe"]}]
    digests = []
    for name, documents in (("one", QUESTIONS[:1]), ("other", changed), ("again", QUESTIONS[:1])):
        _, (record,) = scored(lm, write_task(tmp_path / name, name, "multiple_choice", documents, ACC), name)
        digests.append(record["prompt_digest"])
    assert digests[0] == digests[2] != digests[1]


def test_a_task_that_shuffles_while_it_loads_asks_every_side_the_same(lm: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "mixed", "multiple_choice", QUESTIONS, ACC)
    with (folder / "rows.py").open("a") as code:
        code.write(
            "import random\n"
            "def shuffled(**_):\n"
            "    rows = mixed()['test'].to_list()\n"
            "    random.shuffle(rows)\n"
            "    return {'test': Dataset.from_list(rows)}\n"
        )
    task = folder / "mixed.yaml"
    task.write_text(task.read_text().replace("rows.mixed", "rows.shuffled"))
    first, again = ([record["prompt"] for record in scored(lm, folder, "mixed")[1]] for _ in range(2))
    assert first == again != sorted(first)
