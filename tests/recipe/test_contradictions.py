"""What cannot go together in a recipe: every rule once broken and once kept, and all of it said at once."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.recipe.contradictions import MODULES, contradictions
from tasks.recipe.loading import load_recipe, prepared
from tasks.recipe.schema import Recipe

CHAT = {"messages": {"user": "{{ q }}", "assistant": "{{ a }}"}}
ROWS = {"rows": [{"q": "1+1", "a": 2}]}
DATA = {**ROWS, **CHAT}
CHECKED = {"data": {**DATA, "validation": 0.1}}
NEEDS_VALIDATION = "needs rows for a validation loss; set data.validation, e.g. 0.1"
TPE = {"sampler": "tpe", "over": {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}}


def fleet(*adapters: dict[str, Any], **recipe: Any) -> Recipe:
    filled = [{"name": "one", "data": DATA, **adapter} for adapter in adapters]
    return Recipe.model_validate({"name": "fleet", "adapters": filled, **recipe}).resolved()


def found(*adapters: dict[str, Any], **recipe: Any) -> list[str]:
    return [str(fault) for fault in contradictions(fleet(*adapters, **recipe))]


def start(init: str | bool, method: str, **lora: Any) -> dict[str, Any]:
    return {"method": method, "lora": {"init_lora_weights": init, "target_modules": ["q_proj"], **lora}}


def tpe(**sweep: Any) -> dict[str, Any]:
    return {**CHECKED, "sweep": {**TPE, **sweep}}


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"method": "prompt", "num_fewshot": 3},
        {"method": "prompt", "num_fewshot": 3, "data": {**ROWS, "format": "preference"}},
        {"method": "prompt", "data": {**ROWS, "text": "x"}},
        {"method": "prompt", "data": {**ROWS, "prompt": "{{ q }}", "completion": "{{ a }}"}},
        {"method": "full", "data": {**ROWS, "format": "preference"}},
        {"method": "full", "data": {**ROWS, "text": "{{ q }}"}},
        start("loftq", "qlora"),
        start("pissa", "lora"),
        start("pissa_niter_4", "lora", use_rslora=True),
        start("olora", "lora", rank_pattern={"q_proj": 3}),
        start("orthogonal", "lora", r=8),
        start("gaussian", "qlora", use_dora=True),
        start(False, "qlora", use_rslora=True, rank_pattern={"q_proj": 3}),
        {"lora": {"layers_to_transform": [0], "target_modules": ["q_proj"]}},
        {"lora": {"layers_to_transform": [0], "target_modules": None}},
        {"training": {"group_by_length": True}, "method": "full"},
        {"accelerate": {"num_processes": 2, "config": "fsdp"}, "method": "qlora"},
        {"accelerate": {"num_processes": 2}},
        {**CHECKED, "training": {"eval_steps": 5, "early_stopping_patience": 2, "load_best_model_at_end": True}},
        tpe(),
        tpe(over={"method": ["lora", "qlora"], "lora.r": {"low": 2, "high": 8}, "lora.target_modules": [["q"], ["v"]]}),
    ],
)
def test_what_goes_together(adapter: dict[str, Any]):
    assert found(adapter) == []


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"method": "lora", "num_fewshot": 2}, "num_fewshot: got 2 with method lora, which is asked as it was trained"),
        ({"method": "full", "num_fewshot": 1}, "num_fewshot: got 1 with method full"),
        (
            {"method": "prompt", "num_fewshot": 1, "data": {**ROWS, "text": "x"}},
            "num_fewshot: got examples for rows of",
        ),
        (
            {"method": "prompt", "num_fewshot": 1, "data": {**ROWS, "format": "text"}},
            "num_fewshot: got examples for rows",
        ),
        ({"method": "full", "lora": {"use_dora": True}}, "lora.use_dora: given for method full, which has no LoRA"),
        ({"method": "prompt", "lora": {"r": 4}}, "lora.r: given for method prompt, which has no LoRA"),
        (start("loftq", "lora"), "lora.init_lora_weights: got loftq with method lora; it makes good what 4-bit"),
        (start("pissa", "qlora"), "lora.init_lora_weights: got pissa with method qlora; it moves a part of the base's"),
        (start("pissa_niter_4", "qlora"), "lora.init_lora_weights: got pissa_niter_4 with method qlora"),
        (start("olora", "qlora"), "lora.init_lora_weights: got olora with method qlora"),
        (start("orthogonal", "qlora"), "lora.init_lora_weights: got orthogonal with method qlora"),
        (start("orthogonal", "lora", r=7), "lora.init_lora_weights: got orthogonal with r: 7; it needs even ranks"),
        (start("orthogonal", "lora", rank_pattern={"q": 3}), "got orthogonal with q: 3; it needs even ranks"),
        (start(True, "lora", rank_pattern={"q": 0}), "lora.rank_pattern: got q: 0; a rank is at least 1"),
        (start("loftq", "qlora", use_dora=True), "lora.use_dora: got true with init_lora_weights: loftq"),
        (start("pissa", "lora", use_dora=True), "lora.use_dora: got true with init_lora_weights: pissa"),
        (
            start("olora", "lora", use_rslora=True, alpha_pattern={"q": 1}),
            "lora.use_rslora: got true with init_lora_weights: olora and a rank_pattern or alpha_pattern",
        ),
        ({"lora": {"layers_to_transform": [1]}}, "lora.layers_to_transform: needs target_modules as a list of names"),
        ({"training": {"eval_steps": 5}}, f"training.eval_steps: {NEEDS_VALIDATION}"),
        ({"training": {"early_stopping_patience": 2}}, f"training.early_stopping_patience: {NEEDS_VALIDATION}"),
        ({"training": {"load_best_model_at_end": True}}, f"training.load_best_model_at_end: {NEEDS_VALIDATION}"),
        ({"accelerate": {"config": "fsdp"}}, "accelerate.config: got fsdp with num_processes 1"),
        ({"sweep": TPE}, "data.validation: tpe compares trials by their validation loss"),
        ({**tpe(), "method": "prompt"}, "sweep: method prompt trains nothing that tpe could compare"),
        (tpe(over={"method": ["prompt", "lora"]}), "sweep: method prompt trains nothing that tpe could compare"),
        (tpe(over={"data.limit": [1, 2]}), "sweep.over: data.limit leaves no validation losses that tpe could compare"),
        (tpe(over={"target.gain": [0, 0.1]}), "sweep.over: target.gain leaves no validation losses"),
        (tpe(over={"training.beta": [0.1, 0.2]}), "sweep.over: training.beta leaves no validation losses"),
        (tpe(keep=3, n_trials=2), "sweep.keep: got 3 of 2 trials; keep at most n_trials"),
        (tpe(over={"lora.r": {"low": 4.5, "high": 8}}), "sweep.over: lora.r: got 4.5: input should be a valid integer"),
        (tpe(over={"lora.r": {"low": 0, "high": 8}}), "sweep.over: lora.r: got 0.0: input should be greater than"),
        (tpe(over={"lora.rr": {"low": 1, "high": 8}}), "sweep.over: lora.rr: unknown key 'rr'; did you mean 'r'?"),
        (
            tpe(over={"lora.use_dora": {"low": 0, "high": 1}}),
            "sweep.over lora.use_dora: got a range, and the key takes",
        ),
        (tpe(over={"lora.init_lora_weights": [True, "pissa"]}), "lora.init_lora_weights: got pissa with method qlora"),
    ],
)
def test_what_does_not(adapter: dict[str, Any], says: str):
    (fault,) = found(adapter)
    assert fault.startswith("adapter 'one' ")
    assert says in fault


def test_trials_of_a_search_get_names_that_are_free_and_short_enough():
    assert found({**tpe(), "name": "a" * 57}) == []
    (fault,) = found({**tpe(n_trials=11), "name": "a" * 57})
    assert "are longer than 64 characters" in fault
    (fault,) = found(tpe(), {"name": "one-trial3"})
    assert fault.endswith("its trials are called as other adapters are: one-trial3; rename one of them")
    assert found(tpe(n_trials=3), {"name": "one-trial3"}) == []


@pytest.mark.parametrize("tracker", MODULES)
def test_a_tracker_must_be_installed(tracker: str):
    missing = not any(map(find_spec, MODULES[tracker]))
    says = f"adapter 'one' training.report_to: {tracker} is not installed; pip install {tracker}, or leave it out"
    assert found({"training": {"report_to": [tracker]}}) == ([says] if missing else [])


def test_deepspeed_must_be_installed():
    missing = not find_spec("deepspeed")
    assert len(found({"accelerate": {"num_processes": 2, "config": "deepspeed"}})) == missing


def test_a_fleet_may_mix_methods_though_they_share_keys():
    """What the fleet shares is for those adapters that use it."""
    shared = {"lora": {"use_dora": True, "init_lora_weights": "gaussian"}, "accelerate": {"config": "fsdp"}}
    methods = [{"name": method, "method": method} for method in ("prompt", "full", "lora")]
    (fault,) = found(*methods, **shared)
    assert fault.startswith("adapters 'full', 'lora' accelerate.config: got fsdp with num_processes 1")
    assert found({"method": "prompt"}, training={"eval_steps": 5, "report_to": ["wandb"]}) == []


def test_all_contradictions_at_once_and_what_adapters_share_only_once():
    adapters = [{"name": f"a{number}", "training": {"eval_steps": 3}} for number in range(5)]
    recipe = fleet(*adapters, {**start("loftq", "lora"), "num_fewshot": 1})
    with pytest.raises(RequestError) as error:
        prepared(recipe)
    assert [str(fault).split(":")[0] for fault in error.value.faults] == [
        "adapters 'a0', 'a1', 'a2' and 2 more training.eval_steps",
        "adapter 'one' num_fewshot",
        "adapter 'one' lora.init_lora_weights",
    ]


def test_a_sweep_that_is_wrong_hides_nothing_else():
    (sweep, shots) = found({**tpe(over={"lora.rr": [1]}), "num_fewshot": 1})
    assert "unknown key 'rr'" in sweep and "num_fewshot: got 1" in shots


TEXT = {"data": {**ROWS, "text": "{{ q }}"}}
PAIRS = {"data": {**ROWS, "format": "preference"}}
PROMPT = {"name": "shots", "method": "prompt", "num_fewshot": 3}


@pytest.mark.parametrize("metric", ["f1", "rouge_l", "bleu"])
def test_a_metric_of_answers_needs_rows_that_are_answered(metric: str):
    target = {"target": {"metric": metric}}
    assert found(target) == found({**target, "method": "prompt"}) == []
    for rows, kind in ((TEXT, "plain text"), ({"data": {**ROWS, "format": "text"}}, "plain text"), (PAIRS, "pairs")):
        (fault,) = found({**rows, **target})
        assert fault.startswith(f"adapter 'one' target.metric: got {metric} for ") and kind in fault
        assert found({**rows, "target": {"metric": "exact_match"}}) == []


def over(name: str, **target: Any) -> dict[str, Any]:
    return {"target": {"over": name, **target}}


def test_a_prompt_that_was_asked_the_same_can_be_what_must_be_surpassed():
    assert found(over("shots"), PROMPT) == []
    assert found({**over("shots"), "method": "full"}, PROMPT) == []
    alike = {"limit": 9, "max_new_tokens": 5, "metric": "f1"}
    assert found(over("shots", **alike, gain=0.1), {**PROMPT, "target": alike}) == []
    assert found({"method": "prompt", **over("shots")}, PROMPT) == []  # a prompt has no gate


def test_names_of_the_adapters_that_try_the_general_tasks_are_theirs():
    assert found({"name": "self-tests"}) == found({"name": "my-self-test-1"}) == []
    for adapter in ({}, tpe()):
        (fault,) = found({**adapter, "name": "self-test-mine"})
        assert fault.startswith("adapter 'self-test-mine' name: begins with self-test-, as the adapters do that try")


@pytest.mark.parametrize(
    ("name", "other", "says"),
    [
        ("shot", PROMPT, "got 'shot', which is the name of no adapter of this recipe; did you mean shots?"),
        ("mirror", PROMPT, "of this recipe; allowed are base and adapters with method prompt, here shots"),
        ("one", PROMPT, "got 'one', which has method qlora; allowed are base and adapters with method prompt, here sh"),
        ("two", {"name": "two", "method": "lora"}, "got 'two', which has method lora; allowed are base and adapters"),
        ("two", {"name": "two", "method": "lora"}, "with method prompt, here none"),
        ("shots", {**PROMPT, "data": {**DATA, "held_out": 0.5}}, "got 'shots', which was given another data.held_out;"),
        (
            "shots",
            {**PROMPT, "target": {"max_new_tokens": 7}},
            "which was given another target.max_new_tokens; the two",
        ),
        ("shots", {**PROMPT, "target": {"metric": "f1"}}, "which was given another target.metric; the two"),
        (
            "shots",
            {
                **{**PROMPT, "data": {**DATA, "seed": 1}},
                "target": {"limit": 3, "decides": "train", "splits": ["held_out", "train"]},
            },
            "which was given another data.seed, target.decides, target.limit; the two are compared document by",
        ),
    ],
)
def test_what_cannot_be_surpassed(name: str, other: dict[str, Any], says: str):
    (fault,) = found(over(name), other)
    assert fault.startswith("adapter 'one' target.over: got ")
    assert says in fault


def judge(**keys: Any) -> dict[str, Any]:
    return {"evaluation": {"judge": keys}}


def test_a_judge_needs_answers():
    named = judge(model="some/judge")
    assert found({}, **named) == found({**TEXT, "name": "text"}, {}, **named) == found(PROMPT, **named) == []
    (fault,) = found(TEXT, {**PAIRS, "name": "two"}, **named)
    assert fault.startswith("evaluation.judge: given, and no adapter has rows whose answers are generated")


@pytest.mark.parametrize(
    "address", ["https://me:secret@host/v1", "https://me@host/v1", "http://host/v1?api-key=secret"]
)
def test_an_address_of_a_judge_is_shown_to_everybody_so_it_holds_no_secret(address: str):
    (fault,) = found({}, **judge(endpoint=address, name="judge"))
    assert fault.startswith("evaluation.judge.endpoint: holds a user name, a password or what stands behind a question")
    assert "secret" not in fault
    assert found({}, **judge(endpoint="http://localhost:8000/v1", name="judge")) == []


def test_only_adapters_that_can_be_scaled_can_be_cured():
    for method in ("lora", "qlora"):
        assert found({"method": "full"}, {"name": "two", "method": method}, cure={}) == []
    searched = {**tpe(over={"method": ["lora", "full"]}), "method": "full"}
    assert found(searched, cure={}) == []
    (fault,) = found({"method": "full"}, PROMPT, cure={})
    assert fault == (
        "cure: given for a fleet of method full, prompt; only lora and qlora can be scaled: leave cure out"
    )


def test_a_scale_is_tried_once():
    assert found({}, cure={"scales": [0.75, 0.5]}) == []
    (fault,) = found({}, cure={"scales": [0.5, 0.25, 0.5, 0.25, 0.1]})
    assert fault == "cure.scales: got 0.25, 0.5 more than once; give each scale once"


def test_a_cure_has_something_to_try():
    assert found({}, cure={"scales": [], "replay": {}}) == []
    (fault,) = found({}, cure={"scales": []})
    assert fault.startswith("cure.scales: got none, and no replay, so nothing would be tried;")


def test_only_a_base_that_was_rounded_can_be_merged_into_as_it_was_rounded():
    rounded = {"what": ["merged"], "merge": {"into": "4-bit"}}
    (only,) = found({"method": "qlora"}, {"name": "two", "method": "lora"}, publish=rounded)
    assert only.startswith("publish.merge.into: got 4-bit, and the base of two (method lora) is not rounded")
    assert found({"method": "qlora"}, publish=rounded) == []
    assert found({"method": "lora"}, publish={**rounded, "what": ["adapter"]}) == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({**ROWS, "format": "preference"}, "preference pairs"),
        ({**ROWS, "format": "text"}, "plain text"),
        ({**ROWS, "text": "{{ q }}"}, "plain text"),
        ({**ROWS, "prompt": "{{ q }}", "completion": "{{ a }}"}, "plain prompts with completions"),
    ],
)
def test_only_chats_can_be_mixed_with_replayed_ones(data: dict[str, Any], kind: str):
    plain = {"name": "plain", "data": data}
    assert found({}, plain, cure={}) == found({}, {**plain, "method": "full"}, cure={"replay": {}}) == []
    (fault,) = found({}, plain, cure={"replay": {}})
    assert fault.startswith(f"adapter 'plain' cure.replay: given, and the rows are {kind}; replayed rows are chats")


def test_no_scale_weakens_dora():
    dora = {"name": "dora", "lora": {"use_dora": True}}
    assert found({}, dora) == found({}, dora, cure={"replay": {}}) == []
    assert found({}, {**dora, "method": "full", "lora": {}}, cure={}) == []
    (fault,) = found({}, dora, cure={})
    assert fault.startswith("adapter 'dora' lora.use_dora: got true with cure.scales; DoRA's learned magnitudes apply")


def test_looks_go_with_tasks_that_have_no_limit_and_clusters_with_suites():
    general = [{"task": "general-offline", "clusters": "task"}, "capitals"]
    assert found({}, gate={"looks": 4}, evaluation={"general": general}) == []


def test_in_a_file_the_recipes_own_keys_have_their_lines(tmp_path: Path):
    lines = [
        "name: fleet",
        "cure: {scales: [0.5, 0.5]}",
        "evaluation:",
        "  judge:",
        "    endpoint: http://a:b@host/v1",
        "    name: judge",
        "adapters: [{name: one, data: {path: rows.csv, format: alpaca}}]",
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(RequestError) as error:
        load_recipe(tmp_path / "recipe.yaml")
    places = [str(fault).removeprefix(f"{tmp_path}/").split(": ")[0] for fault in error.value.faults]
    assert places == ["recipe.yaml:5 evaluation.judge.endpoint", "recipe.yaml:2 cure.scales"]


def test_where_no_adapter_can_be_made_nothing_is_said_of_the_fleet():
    """The adapter's batch is below the fleet's floor, so it cannot be spelled out."""
    recipe = {
        "name": "fleet",
        "cure": {},
        "training": {"min_per_device_train_batch_size": 4},
        "adapters": [{"name": "one", "data": DATA, "training": {"per_device_train_batch_size": 2}}],
    }
    with pytest.raises(RequestError, match="min_per_device_train_batch_size is 4") as error:
        prepared(Recipe.model_validate(recipe))
    assert len(error.value.faults) == 1


FILE = """\
name: fleet
method: lora
training: {eval_steps: 5}
adapters:
  - name: one
    data: {path: rows.csv, format: alpaca}
    lora:
      init_lora_weights: loftq
  - name: two
    num_fewshot: 2
    data: {path: rows.csv, format: alpaca, validation: 1}
"""


def test_in_a_file_each_has_the_line_that_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(FILE)
    with pytest.raises(RequestError) as error:
        load_recipe("recipe.yaml", ["adapters.two.lora={use_dora: true, init_lora_weights: pissa}"])
    assert [str(fault).split(": ")[0] for fault in error.value.faults] == [
        "recipe.yaml:3 adapter 'one' training.eval_steps",
        "recipe.yaml:8 adapter 'one' lora.init_lora_weights",
        "recipe.yaml:10 adapter 'two' num_fewshot",
        "--set adapters.two.lora={use_dora",
    ]
