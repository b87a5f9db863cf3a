"""The columns of a run's results, as docs/RESULTS.md tells them, and how plain values are fitted to them.

A kind is a name of Arrow's (`string`), a list of one kind, or a mapping of fields to kinds.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = "1"  # columns may be added within a version
VERSION_KEY = "tunefleet.results"  # in the file's metadata

Kind = Any
TEXT, INT, FLOAT, BOOL, TIME = "string", "int64", "double", "bool", "time"


def _all(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


TASK: dict[str, Kind] = {
    **_all(TEXT, "task", "role", "metric", "kind", "verdict", "reason", "tier", "note", "too_few", "over"),
    **_all(BOOL, "higher_is_better", "decides", "vote"),
    **_all(INT, "n", "lost", "gained", "needed", "clusters"),
    **_all(FLOAT, "base", "adapter", "delta", "ci_low", "ci_high", "margin"),
    **_all(FLOAT, "p_value", "p_breach", "p_value_adjusted", "p_breach_adjusted", "design_effect", "sd", "kl"),
    **_all(FLOAT, "seconds"),
}
FLIP: dict[str, Kind] = {
    **_all(TEXT, "task", "doc_id", "kind", "prompt", "target", "base_text", "adapter_text"),
    **_all(INT, "right_choice", "base_choice", "adapter_choice"),
    **_all(FLOAT, "moved", "base_score", "adapter_score"),
    **_all(BOOL, "cut"),
}
CANDIDATE: dict[str, Kind] = {
    **_all(TEXT, "name", "kind", "digest", "verdict"),
    **_all(FLOAT, "scale", "share", "alpha", "target_delta", "target_ci_low", "target_ci_high"),
    **_all(FLOAT, "pool_drop", "pool_ci_low", "pool_ci_high"),
    "general": [{"task": TEXT, "delta": FLOAT, "verdict": TEXT}],
}
RUN: dict[str, Kind] = {
    "store": TEXT,
    "warnings": [TEXT],
    "timings": [{"stage": TEXT, "seconds": FLOAT}],
    "cache": [{"kind": TEXT, "hits": INT, "misses": INT}],
    "gate": {"alpha": FLOAT, "margin": FLOAT, "pool_margin": FLOAT, "looks": INT},
    "self_tests": [
        {
            **_all(TEXT, "precision", "kind", "expected", "verdict", "said"),
            **{"ok": BOOL, "noticed_by": [TEXT], "largest_difference": FLOAT, "flips": INT},
        }
    ],
    "probes": [{"question": TEXT, "answers": [{"side": TEXT, "text": TEXT}]}],
}
COLUMNS: dict[str, Kind] = {
    # what it is
    **{"run_id": TEXT, "started": TIME, "position": INT},
    **_all(TEXT, "recipe", "name", "status", "method"),
    "num_fewshot": INT,
    **_all(TEXT, "precision", "base_model", "base_revision", "base_digest", "data_source", "data_kind"),
    **_all(INT, "rows_train", "rows_validation", "rows_held_out", "duplicates", "malformed", "near_copies"),
    **_all(TEXT, "settings_json", "verdict"),
    **_all([TEXT], "reasons", "warnings"),
    **_all(TEXT, "error", "digest", "release"),
    "published": [_all(TEXT, "what", "to", "uri", "revision", "digest")],
    **_all(TEXT, "adapter_place", "merged_place", "gguf_place", "verdict_place", "data_place", "base_place"),
    **{"created": TIME, "git_commit": TEXT, "versions_json": TEXT},
    # what it cost
    **_all(INT, "trainable_params", "total_params", "adapter_bytes", "merged_bytes", "gguf_bytes"),
    **_all(INT, "steps", "planned_steps", "best_step"),
    "stopped_early": BOOL,
    "tokens": INT,
    **_all(FLOAT, "train_seconds", "tokens_per_second", "train_loss", "validation_loss"),
    **_all(INT, "seed", "world_size", "per_device_train_batch_size", "gradient_accumulation_steps"),
    **{"device": TEXT, "gradient_checkpointing": BOOL, "peak_memory_bytes": INT, "out_of_memory_at": [INT]},
    **{"engine": TEXT, "pack": [TEXT], "computed_tokens": INT},
    **_all(FLOAT, "train_device_seconds", "score_device_seconds", "device_seconds"),
    # what was said of it
    **{"alpha": FLOAT, "adjust": TEXT, "p_value": FLOAT, "p_adjusted": FLOAT},
    "pool": {"n_tasks": INT, **_all(FLOAT, "drop", "ci_low", "ci_high", "margin", "z", "p_value")},
    "tasks": [TASK],
    "flips": [FLIP],
    "cure": {"kept": {"kind": TEXT, "scale": FLOAT, "share": FLOAT}, "said": TEXT, "curve": [CANDIDATE]},
    "win_rate": {
        **_all(INT, "n", "wins", "losses", "ties", "same", "swayed", "unreadable"),
        **_all(FLOAT, "win_rate", "ci_low", "ci_high"),
        **{"judge": TEXT, "judges_itself": BOOL},
    },
    "comparisons": [
        {
            **_all(TEXT, "over", "task", "metric", "answer", "adapter_precision", "over_precision"),
            **{"n": INT, **_all(FLOAT, "adapter_score", "over_score", "delta", "ci_low", "ci_high", "p_value")},
        }
    ],
    "trials": [
        {
            **_all(TEXT, "name", "settings_json", "state", "error"),
            **{"number": INT, "loss": FLOAT, "step": INT, "kept": BOOL},
        }
    ],
    "curve": [
        {
            **{"step": INT, **_all(FLOAT, "loss", "validation_loss", "learning_rate", "grad_norm")},
            **{"tokens": INT, "tokens_per_second": FLOAT, "memory_bytes": INT},
        }
    ],
    "rows_sample": [{"id": TEXT, "parts": [{"role": TEXT, "text": TEXT, "trained": BOOL}]}],
    "lineage": [
        {
            **_all(TEXT, "role", "kind", "name", "digest", "place", "stage", "created"),
            **{"seconds": FLOAT, "run_id": TEXT, "git_commit": TEXT},
        }
    ],
    "run": RUN,
}


def shaped(kind: Kind, value: Any) -> Any:
    """`value` as its column takes it: unknown fields left out, missing ones null; NaN and infinity are no numbers.

    TypeError or ValueError if it is of another kind.
    """
    if value is None:
        return None
    if isinstance(kind, dict):
        return {name: shaped(inner, value.get(name)) for name, inner in kind.items()}
    if isinstance(kind, list):
        return [shaped(kind[0], one) for one in value]
    if kind == FLOAT:
        return float(value) if math.isfinite(value) else None
    if kind == INT:
        return int(value) if math.isfinite(value) else None
    if kind == BOOL:
        return bool(value)
    # A model may write half a character, which is no Unicode text.
    return str(value).encode("utf-8", "replace").decode() if kind == TEXT else value


@lru_cache
def arrow_schema() -> "pa.Schema":
    import pyarrow as pa

    def arrow(kind: Kind) -> "pa.DataType":
        if isinstance(kind, dict):
            return pa.struct([pa.field(name, arrow(inner)) for name, inner in kind.items()])
        if isinstance(kind, list):
            return pa.list_(arrow(kind[0]))
        return pa.timestamp("ms", tz="UTC") if kind == TIME else pa.type_for_alias(kind)

    return pa.schema([pa.field(name, arrow(kind)) for name, kind in COLUMNS.items()])
