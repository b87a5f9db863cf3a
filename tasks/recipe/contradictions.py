"""What a recipe asks for that cannot go together, all of it at once, before anything starts.

The schema checks each key, and keys that stand side by side. These rules span an adapter's method, its data and what
it shares with the fleet, so they need a resolved recipe. What depends on the rows or on the base is checked later.
"""

import difflib
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from urllib.parse import urlsplit

from infra.errors import Fault
from tasks.recipe.schema import Adapter, Data, Lora, Recipe
from tasks.recipe.sweeps import LONGEST, trial_name, tried
from tasks.recipe.wording import Place, nowhere, of_adapters

Findings = Iterator[tuple[str, str]]  # (dotted key of the adapter, or of the recipe, what is wrong)

MODULES = {
    "trackio": ["trackio"],
    "mlflow": ["mlflow"],
    "wandb": ["wandb"],
    "tensorboard": ["tensorboard", "tensorboardX"],
}
RESERVED = "self-test-"  # what the names of the bench's own adapters begin with (tasks/forgetting/self_test.py)
ASKED = ("decides", "limit", "max_new_tokens", "metric")  # keys of two targets that are compared document by document
COMPARABLE = ("method", "lora", "training", "accelerate")  # what tpe may change: the validation rows stay the same


def contradictions(recipe: Recipe, place: Place = nowhere) -> list[Fault]:
    """Every contradiction in a resolved recipe; one that adapters have in common, from one place, is said once."""
    faults: list[Fault] = []
    found: dict[tuple[str | None, str, str], list[str]] = {}
    everyone: list[Adapter] = []
    for number, adapter in enumerate(recipe.adapters):
        cases = [adapter]
        if adapter.sweep:
            cases, wrong = tried(adapter, partial(place, number))
            faults += wrong
            cases = cases or [adapter]
        everyone += cases
        findings = [*_of_search(adapter, recipe), *(finding for case in cases for finding in _of(case, recipe))]
        for key, message in dict.fromkeys(findings):
            found.setdefault((place(number, tuple(key.split("."))), key, message), []).append(adapter.name)
    faults += [Fault(message, of_adapters(names, key, at)) for (at, key, message), names in found.items()]
    for key, message in _of_fleet(everyone, recipe):
        at = place(0, tuple(key.split(".")))  # adapters have no such keys, so any leads to the recipe's
        faults.append(Fault(message, " ".join(filter(None, [at, key]))))
    return faults


def _of(adapter: Adapter, recipe: Recipe) -> Findings:
    if adapter.name.startswith(RESERVED):
        yield (
            "name",
            f"begins with {RESERVED}, as the adapters do that try the general tasks (evaluation.self_tests) and train "
            "beside the fleet; give it another name",
        )
    yield from _of_target(adapter, recipe)
    if adapter.method == "prompt":
        yield from _of_asking(adapter)
    else:
        if adapter.num_fewshot:
            yield (
                "num_fewshot",
                f"got {adapter.num_fewshot} with method {adapter.method}, which is asked as it was trained, without "
                "examples; leave it out, or set method: prompt",
            )
        yield from _of_validation(adapter)
        yield from _of_processes(adapter)
        yield from _of_trackers(adapter)
    if adapter.method in ("lora", "qlora"):
        yield from _of_lora(adapter)
        yield from _of_cure(adapter, recipe)
    else:
        yield from _of_no_lora(adapter, recipe.lora)


def _of_target(adapter: Adapter, recipe: Recipe) -> Findings:
    metric, over = adapter.target.metric, adapter.target.over
    if metric != "exact_match" and (kind := _scored_without_answers(adapter)):
        yield (
            "target.metric",
            f"got {metric} for {kind}, where no answer is generated that it could score; leave it out",
        )
    if over == "base" or adapter.method == "prompt":  # a prompt is compared and has no gate
        return
    by_name = {other.name: other for other in recipe.adapters}
    prompts = [name for name, other in by_name.items() if other.method == "prompt"]
    allowed = f"allowed are base and adapters with method prompt, here {', '.join(prompts) or 'none'}"
    if over not in by_name:
        near = difflib.get_close_matches(over, prompts, n=1)
        hint = f"did you mean {near[0]}?" if near else allowed
        yield "target.over", f"got {over!r}, which is the name of no adapter of this recipe; {hint}"
        return
    other = by_name[over]
    if other.method != "prompt":
        yield "target.over", f"got {over!r}, which has method {other.method}; {allowed}"
        return
    differing = [f"data.{key}" for key in Data.model_fields if getattr(adapter.data, key) != getattr(other.data, key)]
    differing += [f"target.{key}" for key in ASKED if getattr(adapter.target, key) != getattr(other.target, key)]
    if differing:
        yield (
            "target.over",
            f"got {over!r}, which was given another {', '.join(differing)}; the two are compared document by document, "
            "so both must be asked the same: make these alike",
        )


def _scored_without_answers(adapter: Adapter) -> str | None:
    """The kind of rows, as far as the recipe says it, whose target is a likelihood."""
    if adapter.data.text is not None or adapter.data.format == "text":
        return "plain text"
    return "preference pairs" if adapter.data.format == "preference" else None


def _of_fleet(adapters: list[Adapter], recipe: Recipe) -> Findings:
    """Keys of the recipe itself that need something of its adapters, or of each other."""
    judge, cure = recipe.evaluation.judge, recipe.cure
    if not adapters:  # none could be made of its sweep, which is said elsewhere
        return
    if judge and all(map(_scored_without_answers, adapters)):
        yield (
            "evaluation.judge",
            "given, and no adapter has rows whose answers are generated (plain text and preference pairs are scored by "
            "their likelihood); leave it out",
        )
    if judge and judge.endpoint:
        address = urlsplit(judge.endpoint)
        if address.username or address.password or address.query:
            yield (  # recipes, manifests and Prefect's database show it to everybody
                "evaluation.judge.endpoint",
                "holds a user name, a password or what stands behind a question mark; give the address alone, and a "
                "key in the environment variable that api_key names",
            )
    if cure and not any(adapter.method in ("lora", "qlora") for adapter in adapters):
        methods = ", ".join(sorted({str(adapter.method) for adapter in adapters}))
        yield "cure", f"given for a fleet of method {methods}; only lora and qlora can be scaled: leave cure out"
    if cure and not cure.scales and not cure.replay:
        yield (
            "cure.scales",
            "got none, and no replay, so nothing would be tried; give scales or replay, or leave cure out",
        )
    if cure and (twice := sorted({scale for scale in cure.scales if cure.scales.count(scale) > 1})):
        yield "cure.scales", f"got {', '.join(map(str, twice))} more than once; give each scale once"
    merges = bool({"merged", "gguf"} & set(recipe.publish.what))
    plain = sorted(adapter.name for adapter in adapters if adapter.method == "lora")
    if recipe.publish.merge.into == "4-bit" and merges and plain:
        yield (
            "publish.merge.into",
            f"got 4-bit, and the base of {', '.join(plain)} (method lora) is not rounded to 4 bits; set closest or "
            "16-bit",
        )


def _of_asking(adapter: Adapter) -> Findings:
    if adapter.num_fewshot and (adapter.data.text is not None or adapter.data.format == "text"):
        yield (
            "num_fewshot",
            "got examples for rows of plain text, which have no question; leave it out, or map the rows",
        )


def _of_no_lora(adapter: Adapter, shared: Lora) -> Findings:
    assert adapter.lora, "the recipe was not resolved"
    own = [key for key in Lora.model_fields if getattr(adapter.lora, key) != getattr(shared, key)]
    if own:  # what the whole fleet shares may be meant for its other adapters
        yield (
            f"lora.{own[0]}",
            f"given for method {adapter.method}, which has no LoRA; leave it out, or set method: lora",
        )


def _of_lora(adapter: Adapter) -> Findings:
    """What PEFT 0.21 refuses, or takes and does something else with."""
    assert adapter.lora, "the recipe was not resolved"
    lora, start = adapter.lora, adapter.lora.init_lora_weights
    changes_base = isinstance(start, str) and start.startswith(("pissa", "olora"))
    ranks = {"r": lora.r, **lora.rank_pattern}
    if start == "loftq" and adapter.method == "lora":
        yield (
            "lora.init_lora_weights",
            "got loftq with method lora; it makes good what 4-bit storage took away: set method: qlora, or take pissa, "
            "which is meant for a 16-bit base",
        )
    if changes_base and adapter.method == "qlora":
        # PiSSA: TypeError on uint8 storage, and on bfloat16 storage the packed bits are decomposed as if they were
        # weights. OLoRA: the rest is quantised anew, so that the adapter fits no base but this one.
        yield (
            "lora.init_lora_weights",
            f"got {start} with method qlora; it moves a part of the base's weights into the adapter, and 4-bit storage "
            "cannot hold the rest; set method: lora, or take loftq",
        )
    if changes_base and adapter.accelerate and adapter.accelerate.config != "ddp":
        yield (
            "lora.init_lora_weights",
            f"got {start} with accelerate.config {adapter.accelerate.config}; the part of the base that it moves "
            "could not be moved back from weights that are spread over devices: take ddp, or another start",
        )
    if start == "orthogonal" and adapter.method == "qlora":
        yield (  # PEFT casts A and B to the type of the stored weight: whole numbers, with 4-bit storage on a CPU
            "lora.init_lora_weights",
            "got orthogonal with method qlora; PEFT gives A and B the type of the packed 4-bit weights, which "
            "need not be trainable; set method: lora, or take gaussian",
        )
    if start == "orthogonal" and (odd := [f"{name}: {rank}" for name, rank in ranks.items() if rank % 2]):
        yield "lora.init_lora_weights", f"got orthogonal with {', '.join(odd)}; it needs even ranks"
    if wrong := [f"{name}: {rank}" for name, rank in lora.rank_pattern.items() if rank < 1]:
        yield "lora.rank_pattern", f"got {', '.join(wrong)}; a rank is at least 1: exclude_modules leaves modules out"
    if lora.use_dora and (changes_base or start == "loftq"):
        yield (  # LoftQ sets A and B after DoRA took its magnitudes; moving PiSSA's part back drops them
            "lora.use_dora",
            f"got true with init_lora_weights: {start}; DoRA's magnitudes would belong to other weights than the "
            "adapter's: leave one of them out",
        )
    if lora.use_rslora and changes_base and (lora.rank_pattern or lora.alpha_pattern):
        yield (  # PEFT refuses to convert such an adapter to one for the unchanged base
            "lora.use_rslora",
            f"got true with init_lora_weights: {start} and a rank_pattern or alpha_pattern; the adapter could not be "
            "made one for the unchanged base: leave one of the three out",
        )
    if lora.layers_to_transform and lora.target_modules == "all-linear":
        yield "lora.layers_to_transform", "needs target_modules as a list of names (or null), not 'all-linear'"


def _of_cure(adapter: Adapter, recipe: Recipe) -> Findings:
    """What the cure could not do with this adapter, though it is asked to."""
    assert adapter.lora, "the recipe was not resolved"
    cure, data = recipe.cure, adapter.data
    plain = _scored_without_answers(adapter) or ("plain prompts with completions" if data.prompt is not None else None)
    if cure and cure.replay and plain:
        yield (
            "cure.replay",
            f"given, and the rows are {plain}; replayed rows are chats, and the rows of a data set are of one kind: "
            "map them to chats (data.messages), or leave replay out",
        )
    if cure and cure.scales and not cure.replay and adapter.lora.use_dora:
        yield (
            "lora.use_dora",
            "got true with cure.scales; DoRA's learned magnitudes apply whatever lora_alpha is, so no scale weakens "
            "it: give cure.replay, leave cure out, or set use_dora: false",
        )


def _of_validation(adapter: Adapter) -> Findings:
    assert adapter.training, "the recipe was not resolved"
    if not adapter.data.validation:
        for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
            if getattr(adapter.training, key):
                yield f"training.{key}", "needs rows for a validation loss; set data.validation, e.g. 0.1"


def _of_processes(adapter: Adapter) -> Findings:
    assert adapter.accelerate, "the recipe was not resolved"
    config, processes = adapter.accelerate.config, adapter.accelerate.num_processes
    if config != "ddp" and processes == 1:
        yield (
            "accelerate.config",
            f"got {config} with num_processes 1, and it spreads weights over several; raise it, or leave config out",
        )
    if config == "deepspeed" and not find_spec("deepspeed"):
        yield "accelerate.config", "deepspeed is not installed; pip install deepspeed, or take fsdp"


def _of_trackers(adapter: Adapter) -> Findings:
    assert adapter.training, "the recipe was not resolved"
    for tracker in adapter.training.report_to:
        if not any(map(find_spec, MODULES[tracker])):
            yield "training.report_to", f"{tracker} is not installed; pip install {tracker}, or leave it out"


def _of_search(adapter: Adapter, recipe: Recipe) -> Findings:
    """Rules of tpe, which compares trials by their validation loss."""
    sweep = adapter.sweep
    if sweep is None or sweep.sampler != "tpe":
        return
    methods = sweep.over.get("method", (adapter.method,))
    if isinstance(methods, tuple) and "prompt" in methods:
        yield "sweep", "method prompt trains nothing that tpe could compare; a grid over num_fewshot is possible"
    if not adapter.data.validation:
        yield "data.validation", "tpe compares trials by their validation loss; set rows for it apart, e.g. 0.1"
    for key in sweep.over:
        if key.split(".")[0] not in COMPARABLE or key == "training.beta":
            yield (
                "sweep.over",
                f"{key} leaves no validation losses that tpe could compare (it changes them by itself, or not at all); "
                "set sampler: grid",
            )
    if sweep.keep > sweep.n_trials:
        yield "sweep.keep", f"got {sweep.keep} of {sweep.n_trials} trials; keep at most n_trials"
    longest = trial_name(adapter.name, sweep.n_trials - 1)
    if len(longest) > LONGEST:
        yield "name", f"its trials' names, as {longest}, are longer than {LONGEST} characters; give a shorter one"
    trials = {trial_name(adapter.name, number) for number in range(sweep.n_trials)}
    if taken := sorted(trials & {other.name for other in recipe.adapters}):
        yield "name", f"its trials are called as other adapters are: {', '.join(taken)}; rename one of them"
