"""Verbs around a recipe: run it, or look at it before."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.dashboards import build_dashboard
from flows.commands.options import AsJson, Only, Set, StoreOption
from infra.errors import RequestError, TunefleetError

if TYPE_CHECKING:
    from tasks.recipe.schema import Recipe


def run(
    recipe: Path,
    *,
    store: StoreOption = None,
    set_: Set = (),
    run_on: Annotated[Literal["here", "workers"], Parameter(name="--on", help="where GPUs are used")] = "here",
    json_: AsJson = False,
) -> int:
    """Run a recipe from its data to published adapters.

    Example: tunefleet run deployments/recipes/demo.yaml --set adapters.mirror.training.learning_rate=1e-3
    """
    from tasks.recipe.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    quiet_prefect()
    from flows.train_adapters import train_adapters
    from tasks.reporting.summary import exit_code

    summary = train_adapters(loaded, store=store, run_on=run_on)
    if json_:
        print(json.dumps(summary, ensure_ascii=False), flush=True)
    else:
        from rich.console import Console

        from tasks.reporting.table import print_summary

        print_summary(summary, Console(width=None if sys.stdout.isatty() else 160))
        print(f"\nsummary: {summary['store']}/runs/{summary['run_id']}/summary.json", flush=True)
    build_dashboard(summary["store"], json_)
    return exit_code(summary)


def validate(recipe: Path, *, set_: Set = (), json_: AsJson = False) -> int:
    """Check a recipe and its data files without training, and say everything that is wrong.

    Example: tunefleet validate deployments/recipes/demo.yaml
    """
    from tasks.ingestion.check import check_data
    from tasks.recipe.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    reports = check_data(loaded)
    if json_:
        print(json.dumps({"recipe": loaded.model_dump(mode="json"), "data": reports}, ensure_ascii=False))
        return 0
    print(f"{recipe}: valid; {len(loaded.adapters)} adapters on {loaded.base.model}")
    for name, report in reports.items():
        validation = f"{report['validation']} for validation, " if report["validation"] else ""
        print(
            f"  {name}: {report['kind']} rows, {report['train']} to train on, {validation}{report['held_out']} held "
            f"out; {report['duplicates']} duplicates dropped"
        )
    return 0


def preview(
    recipe: Path,
    *,
    set_: Set = (),
    adapter: Only = None,
    rows: Annotated[int, Parameter(help="rows to show of each adapter")] = 3,
    json_: AsJson = False,
) -> int:
    """Show training rows as the model sees them: what is trained, how long they are, what is too long.

    Example: tunefleet preview deployments/recipes/demo.yaml --rows 2
    """
    loaded = _load_for_a_look(recipe, set_, adapter)
    if adapter is not None:
        shown = tuple(one for one in loaded.adapters if one.name == adapter)
        loaded = loaded.model_copy(update={"adapters": shown})
    if rows < 0:
        raise RequestError(f"--rows is {rows}; allowed are 0 and more.")
    from tasks.planning.preview import make_preview

    answer = make_preview(loaded, rows)
    if json_:
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    from rich.console import Console

    from tasks.planning.preview_table import print_preview

    print_preview(answer, Console(highlight=False))
    return 0


def plan(
    recipe: Path,
    *,
    store: StoreOption = None,
    set_: Set = (),
    adapter: Only = None,
    json_: AsJson = False,
) -> int:
    """Say what a run would take: steps, parameters, memory, time, disk. Starts nothing, loads no weights.

    Example: tunefleet plan deployments/recipes/demo.yaml
    """
    loaded = _load_for_a_look(recipe, set_, adapter)
    from infra.settings import default_store
    from tasks.planning.plan import make_plan

    answer = make_plan(loaded, store or default_store(), adapter)
    if json_:
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    from rich.console import Console

    from tasks.planning.plan_table import print_plan

    print_plan(answer, Console(highlight=False))
    return 0


def init(path: Path = Path("recipe.yaml")) -> int:
    """Write a small recipe to start from, its main choices commented. Never overwrites a file.

    Example: tunefleet init my-fleet.yaml
    """
    from tasks.recipe.starter import STARTER

    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(STARTER)
    except FileExistsError:
        raise RequestError(f"{path} exists already; give another name: tunefleet init OTHER.yaml") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}; next: tunefleet validate {path}, then: tunefleet run {path}")
    return 0


def schema() -> int:
    """Print the recipe's JSON schema, for editors that complete and check YAML.

    Example: tunefleet schema > recipe.schema.json
    """
    from tasks.recipe.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0


def _load_for_a_look(path: Path, overrides: tuple[str, ...], only: str | None) -> "Recipe":
    """The recipe, which has the adapter `only`, if one is given; libraries are kept from chatting over the answer."""
    from tasks.recipe.loading import load_recipe

    loaded = load_recipe(path, overrides)
    if only is not None:
        names = [adapter.name for adapter in loaded.adapters]
        if only not in names:
            raise RequestError(f"--adapter {only!r} is not in {path}; its adapters are {', '.join(names)}.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return loaded


class _WithoutTraceback(logging.Filter):
    """Drops the traceback of errors that this project raises on purpose: their message says what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, TunefleetError) or type(error).__name__ == "Pruned":
            record.exc_info, record.msg, record.args = None, f"{type(error).__name__}: {error}", ()
        return True


def quiet_prefect() -> None:
    """For a run by hand: no telemetry, no tracebacks of foreseen errors."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault(
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120"
    )  # 20 are not enough when it is busy
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_WithoutTraceback())
