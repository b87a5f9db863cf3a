"""What a run appends for whoever looks at many runs: everything it left, and null for what it did not."""

import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.settings import PROJECT
from infra.storage import Store
from tasks.forgetting.flips import write_flips
from tasks.recipe.schema import Recipe
from tasks.reporting.results import append_results, fill_in, leave_results, parquet, results_path
from tasks.reporting.results_evidence import LONGEST, SHOWN_FLIPS
from tasks.reporting.results_schema import CANDIDATE, COLUMNS, FLIP, RUN, TASK, VERSION, VERSION_KEY
from tasks.reporting.task import report
from tasks.runs import Run
from tests.operations.conftest import free_port
from tests.publishing.s3_server import BUCKET
from tests.reporting.finished_store import (
    FIRST,
    SECOND,
    SECONDS,
    SELF_TESTS,
    TRAINED,
    base_of,
    finish,
    flip,
    general,
    make,
    member,
    prose,
    target,
)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    s3 = request.getfixturevalue("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    return Store(f"s3://{BUCKET}/results/{tmp_path.name}")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def rows(store: Store, run_id: str = FIRST) -> list[dict[str, Any]]:
    data = store.fs.cat_file(f"{store.root}/{results_path(run_id)}")
    return pq.read_table(io.BytesIO(data)).to_pylist()


def test_a_run_leaves_all_that_its_summary_and_its_artifacts_say(store: Store) -> None:
    lost = [flip(number) for number in range(SHOWN_FLIPS + 5)]
    tuned = member(store, FIRST, "tuned", general("pairs", 12, 2), prose(0.01), target("tuned", 60), some_flips=lost)
    other = member(store, FIRST, "other", general("pairs", 2, 2), target("other", 60), method="qlora")
    summary = finish(store, FIRST, tuned, other, self_tests=SELF_TESTS, timings={"train": 3.0})
    assert append_results(store, summary) == f"results/{FIRST}.parquet"
    one, two = rows(store)
    said = summary["adapters"][0]
    assert (one["run_id"], one["position"], two["position"]) == (FIRST, 0, 1)
    assert one["started"].isoformat() == "2026-11-22T10:00:00+00:00" and one["created"] is not None
    for key in ("name", "status", "method", "verdict", "reasons", "digest", "trainable_params", "p_adjusted", "pool"):
        assert one[key] == said[key], key
    assert (one["precision"], two["precision"]) == ("none", "nf4")
    assert (one["base_model"], one["base_revision"], one["alpha"]) == ("acme/tiny", "main", 0.05)
    for task, expected in zip(one["tasks"], said["tasks"], strict=True):
        flips = expected.pop("flips")
        assert {key: task[key] for key in expected} == expected
        assert (task["lost"], task["gained"], task["seconds"]) == (flips["lost"], flips["gained"], SECONDS)
    for key in ("steps", "tokens", "validation_loss", "device", "peak_memory_bytes", "out_of_memory_at", "world_size"):
        assert one[key] == TRAINED[key], key
    for key in ("engine", "pack", "computed_tokens"):
        assert one[key] == TRAINED[key], key
    assert (one["train_seconds"], one["train_loss"], one["tokens_per_second"]) == (4.0, 1.0, 50.0)
    assert (one["train_device_seconds"], one["score_device_seconds"]) == (8.0, 3 * SECONDS)
    assert one["device_seconds"] == 8.0 + 3 * SECONDS
    assert [(point["step"], point["loss"], point["validation_loss"]) for point in one["curve"]] == [
        (1, 2.0, None),
        (2, 1.0, None),
        (2, None, 1.25),
    ]
    assert [(point["tokens_per_second"], point["memory_bytes"]) for point in one["curve"]] == [
        (40.0, 1000),
        (66.5, 1234),
        (None, None),
    ]
    assert [each["doc_id"] for each in one["flips"]] == [str(number) for number in range(SHOWN_FLIPS)]
    assert one["flips"][0] == {
        **{"task": said["tasks"][0]["task"], "doc_id": "0", "kind": "lost", "moved": -1.0, "prompt": "Question 0?"},
        **{"target": "Paris", "right_choice": None, "base_text": "Paris", "base_choice": None, "base_score": 1.0},
        **{"adapter_text": "Rome", "adapter_choice": None, "adapter_score": 0.0, "cut": False},
    }
    assert [[(part["role"], part["text"], part["trained"]) for part in row["parts"]] for row in one["rows_sample"]] == [
        [("user", "Who?", False), ("assistant", "K.", True)],
        [("prompt", "1 +", False), ("completion", " 1", True)],
        [("text", "Once <b>upon</b>", True)],
        [("prompt", "Ask", False), ("chosen", "good", True), ("rejected", "bad", True)],
    ]
    assert one["rows_train"] == 4 and one["duplicates"] == 1 and one["data_source"] == "rows"
    assert {origin["role"] for origin in one["lineage"]} == {"adapter", "base", "data", "verdict", "comparison"}
    assert all(store.read_json(f"{origin['place']}/manifest.json") for origin in one["lineage"])
    assert one["adapter_bytes"] == len(f"tuned of {FIRST}, lora") + 2
    assert json.loads(one["settings_json"])["name"] == "tuned"
    assert two["run"] is None and one["run"]["timings"] == [{"stage": "train", "seconds": 3.0}]
    assert one["run"]["self_tests"][0]["flips"] == 1 and one["run"]["self_tests"][1]["noticed_by"] == ["pairs"]


def test_what_is_gone_or_was_never_made_is_null(local: Store) -> None:
    tuned = member(local, FIRST, "tuned", general("pairs", 12, 2), target("tuned", 60), some_flips=[flip(1)])
    died = member(local, FIRST, "died", target("died", 60))
    died.trained = died.judged = died.verdict = None
    died.error = "out of memory"
    summary = finish(local, FIRST, tuned, died)
    for kind in ("scores", "datasets", "verdicts"):
        shutil.rmtree(Path(local.root) / kind)
    append_results(local, summary)
    one, two = rows(local)
    assert one["verdict"] and one["tasks"] and one["train_device_seconds"] == 8.0
    for key in ("flips", "rows_sample", "rows_train", "score_device_seconds", "device_seconds"):
        assert one[key] is None, key
    assert {origin["role"] for origin in one["lineage"]} == {"adapter", "base"}
    assert (two["status"], two["error"], two["tasks"], two["verdict"]) == ("error", "out of memory", [], None)
    for key in ("curve", "train_seconds", "tokens_per_second", "adapter_bytes", "lineage", "alpha"):
        assert not two[key], key


def test_a_training_of_before_has_its_curve_without_the_pace(local: Store) -> None:
    tuned = member(local, FIRST, "tuned", target("tuned", 60))
    facts = {key: value for key, value in TRAINED.items() if key != "pace"}
    tuned.trained = make(local, FIRST, "train", "adapters", "tuned", {"adapter_model.safetensors": "old"}, {}, facts)
    append_results(local, finish(local, FIRST, tuned))
    (one,) = rows(local)
    assert [point["loss"] for point in one["curve"]] == [2.0, 1.0, None]
    assert {point["tokens_per_second"] for point in one["curve"]} == {None}


def test_what_answering_cost_is_unknown_where_some_records_are_gone(local: Store) -> None:
    summary = finish(local, FIRST, member(local, FIRST, "tuned", general("pairs", 12, 2), target("tuned", 60)))
    (records,) = Path(local.root).glob("scores/tuned-pairs-*")
    shutil.rmtree(records)
    append_results(local, summary)
    (one,) = rows(local)
    assert {task["task"]: task["seconds"] for task in one["tasks"]} == {"pairs": None, "tuned.held_out": SECONDS}
    assert one["score_device_seconds"] is one["device_seconds"] is None and one["train_device_seconds"] == 8.0


def test_a_prompt_costs_its_answers_alone(local: Store) -> None:
    shown = member(local, FIRST, "shown", target("shown", 30))
    shown.adapter = shown.adapter.model_copy(update={"method": "prompt", "num_fewshot": 3})
    shown.trained = make(local, FIRST, "prompt", "prompts", "shown", {"examples.json": "[]"}, {})
    assert shown.verdict
    shown.verdict = {**shown.verdict, "verdict": None}
    append_results(local, finish(local, FIRST, shown))
    (one,) = rows(local)
    assert (one["status"], one["method"], one["num_fewshot"], one["verdict"]) == ("compared", "prompt", 3, None)
    assert one["adapter_place"].startswith("prompts/shown-") and one["train_seconds"] is None
    assert one["device_seconds"] == one["score_device_seconds"] == SECONDS


def test_a_cured_adapter_keeps_its_path_and_what_it_was_scaled_from(local: Store) -> None:
    task = {"task": "pairs", "delta": -0.2, "verdict": "FAIL"}
    curve = [
        {"kind": "scale", "scale": scale, "share": None, "name": name, "digest": "d", "verdict": verdict, "alpha": 0.01,
         "pool": pool, "target": {"delta": 0.5, "ci_low": 0.4, "ci_high": 0.6}, "general": [task]}
        for scale, name, verdict, pool in (
            (1.0, "as trained", "FAIL", {"drop": 0.2, "ci_low": 0.1, "ci_high": 0.3, "n_tasks": 1}),
            (0.5, "tuned.x0.5", "PASS", None),
        )
    ]  # fmt: skip
    cure = {"kept": {"kind": "scale", "scale": 0.5, "share": None}, "curve": curve, "said": "scale 0.5 passes"}
    tuned = member(local, FIRST, "tuned", general("pairs", 2, 2), target("tuned", 60), cure=cure)
    assert tuned.trained
    files, upstream = {"adapter_config.json": '{"lora_alpha": 8}'}, {"adapter": tuned.trained.ref.digest}
    tuned.trained = make(local, FIRST, "scale", "adapters", "tuned", files, upstream, TRAINED)
    append_results(local, finish(local, FIRST, tuned))
    (one,) = rows(local)
    first, second = one["cure"]["curve"]
    assert one["cure"]["kept"]["scale"] == 0.5 and first["general"] == [task]
    assert (first["target_delta"], first["target_ci_low"], first["pool_drop"], first["pool_ci_high"]) == (
        0.5,
        0.4,
        0.2,
        0.3,
    )
    assert second["pool_drop"] is None and second["alpha"] == 0.01
    assert [origin["stage"] for origin in one["lineage"] if origin["role"] in ("adapter", "as trained")] == [
        "scale",
        "train",
    ]
    assert one["train_seconds"] == 4.0


def test_prompts_and_trials_stand_with_their_adapter(local: Store) -> None:
    tuned = member(local, FIRST, "tuned-trial1", target("tuned-trial1", 60))
    trials = [
        {"name": f"tuned-trial{number}", "number": number, "settings": {"lora.r": 8}, "state": "complete", "loss": 1.5,
         "step": 8, "error": None, "kept": number == 1}
        for number in range(2)
    ]  # fmt: skip
    compared = {"adapter": "tuned-trial1", "over": "shown", "task": "t", "metric": "exact_match", "n": 50, "delta": 0.5,
                "adapter_score": 0.75, "over_score": 0.25, "ci_low": 0.4, "ci_high": 0.6, "p_value": 0.001,
                "answer": "yes", "quantization": {"adapter": "none", "over": "nf4"}}  # fmt: skip
    other = {**compared, "adapter": "another"}
    append_results(local, finish(local, FIRST, tuned, searches={"tuned": trials}, comparisons=[compared, other]))
    (one,) = rows(local)
    assert [(trial["name"], trial["kept"]) for trial in one["trials"]] == [
        ("tuned-trial0", False),
        ("tuned-trial1", True),
    ]
    assert json.loads(one["trials"][0]["settings_json"]) == {"lora.r": 8}
    (found,) = one["comparisons"]
    assert (found["over"], found["answer"], found["over_precision"]) == ("shown", "yes", "nf4")


def test_texts_stay_as_they_were_written_and_long_ones_are_said_to_be_cut(local: Store) -> None:
    odd = "<script>alert(1)</script> =1+1 \u202eابجد 🙂 \x00 \u2028"
    long = {"text": "a" * 100_000, "choice": None, "score": 0.0}
    flips = [flip(1, prompt=odd, target=odd), flip(2, prompt="x" * 50_000 + "?", adapter=long)]
    append_results(
        local,
        finish(
            local, FIRST, member(local, FIRST, "tuned", general("pairs", 2, 2), target("tuned", 60), some_flips=flips)
        ),
    )
    (one,) = rows(local)
    first, second = one["flips"]
    assert first["prompt"] == first["target"] == odd and not first["cut"]
    assert second["prompt"].endswith("x?") and second["adapter_text"].startswith("aaa") and second["cut"]
    assert len(second["prompt"]) == len(second["adapter_text"]) == LONGEST


def test_no_number_is_null_and_half_a_character_is_text() -> None:
    row = {"run_id": "1", "name": "a", "position": 0, "p_value": math.nan, "pool": {"drop": math.inf, "n_tasks": 2}}
    data = parquet([row | {"error": "half \ud83d", "tasks": [{"task": "t", "delta": math.nan, "n": math.nan}]}])
    (one,) = pq.read_table(io.BytesIO(data)).to_pylist()
    assert one["p_value"] is one["pool"]["drop"] is one["tasks"][0]["delta"] is one["tasks"][0]["n"] is None
    assert one["pool"]["n_tasks"] == 2 and one["error"] == "half ?"
    assert pq.read_metadata(io.BytesIO(data)).metadata[VERSION_KEY.encode()] == VERSION.encode()


def test_runs_without_results_get_those_that_they_would_have_had(local: Store) -> None:
    for run_id in (FIRST, SECOND):
        finish(local, run_id, member(local, run_id, "tuned", target("tuned", 60)))
    append_results(local, local.read_json(f"runs/{FIRST}/summary.json"))
    told: list[str] = []
    before = local.fs.cat_file(f"{local.root}/{results_path(FIRST)}")
    local.write("runs/20261124-000000-cccc/summary.json", b"{half")
    assert fill_in(local, told.append) == [SECOND]
    assert rows(local, SECOND)[0]["run_id"] == SECOND
    assert local.fs.cat_file(f"{local.root}/{results_path(FIRST)}") == before
    assert told == ["runs/20261124-000000-cccc/summary.json is damaged; the run is not shown"]
    assert fill_in(local, lambda *_: None) == []


def test_one_bad_line_hides_its_file_and_not_the_run(local: Store) -> None:
    tuned = member(local, FIRST, "tuned", general("pairs", 2, 2), target("tuned", 60), some_flips=[flip(1)])
    summary = finish(local, FIRST, tuned)
    assert tuned.judged and tuned.data
    good, bad = (Path(tuned.judged.ref.uri, "flips", f"{task}.jsonl") for task in ("tuned.held_out", "pairs"))
    write_flips(good, [flip(2)])
    whole = json.dumps(flip(1))
    lacking = json.dumps({key: value for key, value in flip(1).items() if key != "target"})
    for line in (whole[:-9], lacking, "5", json.dumps(flip(1, moved="far")), json.dumps(flip(1, base=None)), b"\xff"):
        bad.write_bytes(whole.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()))
        append_results(local, summary)
        (one,) = rows(local)
        assert [(each["task"], each["doc_id"]) for each in one["flips"]] == [("tuned.held_out", "2")], line
        assert len(one["rows_sample"]) == 4
    bad.unlink()
    append_results(local, summary)
    assert [each["task"] for each in rows(local)[0]["flips"]] == ["tuned.held_out"]
    good.write_text("[")
    for line in ('{"id": "a", "te', '{"messages": [{"role": "user"}]}', "[]", '{"messages": [5]}'):
        Path(tuned.data.ref.uri, "train.jsonl").write_text('{"id": "a", "text": "b"}\n' + line)
        append_results(local, summary)
        (one,) = rows(local)
        assert one["flips"] is one["rows_sample"] is None and one["name"] == "tuned", line


def test_addresses_with_credentials_are_not_shown(local: Store) -> None:
    summary = finish(local, FIRST, member(local, FIRST, "tuned", target("tuned", 60)))
    address = "https://me:hidden@host.example/rows.jsonl?sig=hidden"
    said, settings = summary["adapters"][0], summary["recipe"]["adapters"][0]
    said["error"] = f"GET {address} failed"
    said["warnings"] = summary["warnings"] = [f"slow: {address}"]
    settings["data"] = {"path": address, "rows": [{"text": f'see "{address}"'}]}
    trial = {"name": "tuned", "number": 0, "settings": {"from": [address]}, "error": address}
    summary["searches"] = {"tuned": [trial]}
    append_results(local, summary)
    (one,) = rows(local)
    shown = "https://***@host.example/rows.jsonl?***"
    assert one["error"] == f"GET {shown} failed" and one["data_source"] == shown
    assert one["warnings"] == one["run"]["warnings"] == [f"slow: {shown}"]
    assert json.loads(one["settings_json"])["data"] == {"path": shown, "rows": settings["data"]["rows"]}
    assert one["trials"][0]["error"] == shown and json.loads(one["trials"][0]["settings_json"]) == {"from": [shown]}


def test_a_summary_of_an_older_run_has_what_it_has(local: Store) -> None:
    local.write_json(f"runs/{FIRST}/summary.json", {"run_id": FIRST, "adapters": [{"name": "old"}]})
    assert fill_in(local, lambda *_: None) == [FIRST]
    (one,) = rows(local)
    known = {"run_id", "started", "position", "name", "run", "tasks", "comparisons", "trials", "lineage"}
    assert {key for key, value in one.items() if value is not None} == known


def test_results_that_cannot_be_written_are_told_and_fail_nothing(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", f"{local.root}/results")
    summary = finish(local, FIRST, member(local, FIRST, "tuned", target("tuned", 60)))
    (Path(local.root) / "results").write_text("a file where the folder would be")
    told: list[str] = []
    assert not leave_results(local, summary, told.append)
    assert len(told) == 1 and told[0].startswith(f"the results of run {FIRST} were not written: ")
    assert "***" in told[0] and local.root not in told[0]


def test_a_report_leaves_them(local: Store) -> None:
    tuned = member(local, FIRST, "tuned", target("tuned", 60))
    recipe = Recipe.model_validate(
        {"name": "fleet", "adapters": [{"name": "tuned", "data": {"rows": [{"text": "a"}]}}]}
    )
    nothing: dict[str, Any] = {"data": {}, "made": [], "scores": {}, "searches": {}, "self_tests": [], "timings": {}}
    gone = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with disable_run_logger(), temporary_settings(gone):
        summary = report.fn(Run(FIRST, local.root), recipe, [tuned], base=base_of(local, FIRST), **nothing)
    (one,) = rows(local)
    assert one["digest"] == summary["adapters"][0]["digest"] and one["run"]["store"] == local.root


def test_every_column_is_documented_and_every_documented_one_is_there() -> None:
    text = (PROJECT / "docs" / "RESULTS.md").read_text()
    table = [line.split("|")[1] for line in text.partition("## Queries")[0].splitlines() if line.startswith("| ")]
    told = {name.strip() for cell in table for name in cell.split(",")} - {"column"}
    assert told == set(COLUMNS)
    assert max(map(len, text.splitlines())) <= 120
    inner = {"point": "curve", "comparison": "comparisons", "row": "rows_sample", "origin": "lineage"}
    for name, fields in (
        *(("task", TASK), ("flip", FLIP), ("candidate", CANDIDATE), ("run", RUN), ("win rate", COLUMNS["win_rate"])),
        *((name, COLUMNS[column][0]) for name, column in inner.items()),
    ):
        paragraph = re.search(rf"^\*\*{name}\*\*.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
        assert paragraph
        words = set(re.findall(r"\w+", paragraph[0]))
        assert set(fields) <= words, name
    assert f"version `{VERSION}`" in text
