"""What a recipe needs beside rows: the Hub, a judge, its destinations, memory and disk on this machine.

Each in a process of its own, which reads the recipe again: what is slow or silent is then known by its name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import RequestError, TransientError
from tasks.operations.doctor.apart import first_line
from tasks.operations.doctor.finding import GIB, Finding, absent, fault, ok, warning

if TYPE_CHECKING:
    from tasks.recipe.schema import Recipe

_HUB_SECONDS = 10.0
_LATER = "try again; if it stays so, ask whoever runs it"


def _load(path: str) -> "Recipe":
    from tasks.recipe.loading import load_recipe

    return load_recipe(Path(path))


# --- the Hugging Face Hub


def wants_hub(recipe: "Recipe") -> list[str]:
    """What of the recipe lies on the Hub, in words."""
    from tasks.recipe.schema import SUITES

    models = {"base": recipe.base.model, "judge": recipe.evaluation.judge and recipe.evaluation.judge.model}
    wants = [f"{what} {model}" for what, model in models.items() if model and _is_hub_id(model)]
    wants += [f"data {one}" for one in dict.fromkeys(adapter.data.hub for adapter in recipe.adapters) if one]
    if recipe.evaluation.include_path is None:  # with a folder of tasks it cannot be told from outside
        tasks = (one.task for one in recipe.evaluation.general)
        wants += [f"task {task}" for task in tasks if task not in SUITES["general-offline"]]
    return wants


def _is_hub_id(model: str) -> bool:
    return "://" not in model and not Path(model).is_absolute()


def hub(path: str) -> Iterator[Finding]:
    """Whether the Hub answers, and lets this machine read the recipe's base and data sets."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    recipe = _load(path)
    wants = wants_hub(recipe)
    readable = [("model", recipe.base.model)] if _is_hub_id(recipe.base.model) else []
    readable += [("dataset", one) for one in dict.fromkeys(adapter.data.hub for adapter in recipe.adapters) if one]
    where, api = constants.ENDPOINT, HfApi()
    try:
        for kind, name in readable:
            try:
                read = api.model_info if kind == "model" else api.dataset_info
                read(name, timeout=_HUB_SECONDS)
                api.auth_check(name, repo_type=kind)
            except (GatedRepoError, RepositoryNotFoundError) as error:
                gated = isinstance(error, GatedRepoError)
                found = f"{kind} {name} is {'gated' if gated else 'not there, or private'}, for the token in use"
                page = f"{where}/{'datasets/' if kind == 'dataset' else ''}{name}"
                advice = f"ask for access at {page}" if gated else f"correct the name, or look at {page}"
                yield fault("Hub", found, f"{advice}; then set HF_TOKEN, or run: hf auth login")
            else:
                yield ok("Hub", f"{kind} {name} can be read")
        if not readable:
            yield _reachable(where, wants)
    except OfflineModeIsEnabled:
        found = f"HF_HUB_OFFLINE is set, and the recipe wants {', '.join(wants)}"
        yield warning("Hub", found, "only what is in this machine's cache can be used; unset it for the rest")
    except (HTTPError, OSError) as error:
        found = f"{where} cannot be reached, and the recipe wants {', '.join(wants)}: {first_line(error)}"
        yield fault("Hub", found, "look at the network or proxy, or set HF_ENDPOINT to a mirror")


def _reachable(where: str, wants: list[str]) -> Finding:
    from huggingface_hub.utils import get_session

    get_session().head(where, timeout=_HUB_SECONDS)
    return ok("Hub", f"{where} answers; the recipe wants {', '.join(wants)}")


# --- destinations and judge


def destination(path: str, number: str) -> Iterator[Finding]:
    """Credentials, permissions, place: what a run asks too, before it trains."""
    from tasks.publishing.destinations import check_destinations, sent_of

    recipe, check = _load(path), f"publish.to.{number}"
    place = recipe.publish.to[int(number)]
    where = place.folder or place.s3 or place.hub
    sends = {one.name: sent_of(one, recipe.publish.what) for one in recipe.adapters if one.method != "prompt"}
    try:
        faults = check_destinations([place], sends)
    except TransientError as error:
        yield fault(check, f"{where}: {first_line(error).removeprefix('TransientError: ')}", _LATER)
        return
    for one in faults:
        yield fault(check, one.message, "without it nothing can be published there; no training starts")
    if not faults:
        yield ok(check, f"{where} takes releases")


def judge(path: str) -> Iterator[Finding]:
    import os

    from tasks.judging.check import judge_faults

    judge = _load(path).evaluation.judge
    assert judge, "asked only of recipes with a judge"
    if judge.endpoint and not os.environ.get(judge.api_key):
        yield absent("judge's key", f"{judge.api_key} is not set, so none is sent to {judge.endpoint}")
    try:
        faults = judge_faults(judge)
    except TransientError as error:
        yield fault("judge", first_line(error).removeprefix("TransientError: "), _LATER)
        return
    for one in faults:
        yield fault("judge", one.message, f"correct {one.where or 'evaluation.judge'}")
    if not faults:
        yield ok("judge", f"{judge.name} at {judge.endpoint} answers" if judge.endpoint else f"{judge.model} is there")


# --- memory and disk


def plan(path: str, store: str) -> Iterator[Finding]:
    """Base, rows, memory and disk, as `tunefleet plan` counts them."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from tasks.planning.plan import make_plan

    try:
        planned = make_plan(_load(path), store)
    except RequestError as error:
        for one in error.faults:
            yield fault("plan", str(one), f"correct {path}; tunefleet validate says the same")
        return
    except TransientError as error:
        yield fault("plan", first_line(error).removeprefix("TransientError: "), _LATER)
        return
    from prefect.settings import PREFECT_API_URL

    yield from fits(planned, may_run_elsewhere=bool(PREFECT_API_URL.value()))


def fits(planned: dict, *, may_run_elsewhere: bool) -> Iterator[Finding]:
    """`planned` is what make_plan returns, which counts this machine and knows no other.

    What may run elsewhere is only warned of: with a server the workers' machines may do it, and an adapter that wants
    more processes than there are devices here is meant for others.
    """
    trained = [one for one in planned["adapters"] if one["memory"]]
    for one in trained:
        if one["does_not_fit"]:
            found = f"{one['name']}, on this machine: {one['does_not_fit']}"
            if may_run_elsewhere or one["processes"] > len(planned["devices"]):
                yield warning("memory", found, "see that the machines of the workers are larger")
            else:
                yield fault("memory", found, "on a larger machine it may fit")
    if trained and not any(one["does_not_fit"] for one in trained):
        most = max(one["memory"]["total"] for one in trained)
        yield ok("memory", f"the largest training takes {most / GIB:.1f} GiB, and fits")
    need, free = planned["disk"]["total"], planned["disk"]["free"]
    if free is not None and need > free:
        found = f"a run leaves {need / GIB:.1f} GiB in {planned['store']}, and {free / GIB:.1f} are free"
        wrong = warning if may_run_elsewhere else fault
        yield wrong("disk", f"{found} on this machine", "make room, or take another --store")
    else:
        yield ok("disk", f"a run leaves {need / GIB:.1f} GiB in the store")
    if hints := [f"{one['name']}: {hint}" for one in planned["adapters"] for hint in one["warnings"]]:
        found = hints[0] + (f"; and {len(hints) - 1} more" if len(hints) > 1 else "")
        yield warning("plan", found, "tunefleet plan says more")
