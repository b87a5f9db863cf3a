"""The whole examination, by area. Whatever has to wait for somebody starts at once, in processes of their own."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import RequestError
from infra.redaction import without_secrets
from infra.settings import cache_folder, scratch_folder
from infra.storage import Store
from tasks.operations.doctor import wanted
from tasks.operations.doctor.apart import Apart, apart
from tasks.operations.doctor.credentials import look_at_credentials
from tasks.operations.doctor.finding import Finding, fault, ok
from tasks.operations.doctor.libraries import four_bit, look_at_versions, torch_build
from tasks.operations.doctor.machine import look_at_machine
from tasks.operations.doctor.server import look_at_server
from tasks.operations.doctor.store import look_at_store

if TYPE_CHECKING:
    from tasks.recipe.schema import Recipe

Report = dict[str, list[Finding]]  # by area, in the order in which to put things right

_NETWORK_SECONDS = 30.0
_DEVICE_SECONDS = 180.0  # the first import from a slow disk, and a GPU's first context
_LOOK_CLOSER = "something between this machine and there may drop what is sent: look at network, proxy and address"


def examine(recipe: Path | None, store: str) -> Report:
    """Everything that a run on this machine rests on, and with a recipe what that one needs beside it."""
    if "://" not in store:
        store = str(Path(store).expanduser().absolute())
    of_recipe: list[Finding] = []
    loaded: Recipe | None = None
    if recipe:
        loaded, of_recipe = _loaded(recipe)
    with ExitStack() as running:

        def start(check: str, function: Callable[..., Iterable[Finding]], *arguments: str, seconds: float) -> Apart:
            advice = _LOOK_CLOSER if seconds == _NETWORK_SECONDS else "try again when the machine is less busy"
            return running.enter_context(apart(check, function, *arguments, seconds=seconds, advice=advice))

        torch = start("torch", torch_build, seconds=_DEVICE_SECONDS)
        bitsandbytes = start("bitsandbytes", four_bit, seconds=_DEVICE_SECONDS)
        credentials = start("credentials", look_at_credentials, seconds=_NETWORK_SECONDS)
        stored = start("access", look_at_store, store, seconds=_NETWORK_SECONDS)
        server = start("server", look_at_server, seconds=_NETWORK_SECONDS)
        needs: list[Apart] = []
        if recipe and loaded:
            path = str(recipe.absolute())
            needs.append(start("plan", wanted.plan, path, store, seconds=_DEVICE_SECONDS))
            if wanted.wants_hub(loaded):
                needs.append(start("Hub", wanted.hub, path, seconds=_NETWORK_SECONDS))
            for number in map(str, range(len(loaded.publish.to))):
                check = f"publish.to.{number}"
                needs.append(start(check, wanted.destination, path, number, seconds=_NETWORK_SECONDS))
            if loaded.evaluation.judge:
                needs.append(start("judge", wanted.judge, path, seconds=_NETWORK_SECONDS))
        report = {
            "This machine": [*look_at_machine(_scratch(store)), *credentials.findings()],
            "Libraries": [*look_at_versions(), *torch.findings(), *bitsandbytes.findings()],
            "Store": stored.findings(),
            "Prefect": server.findings(),
        }
        if recipe:
            report["Recipe"] = [*of_recipe, *(finding for need in needs for finding in need.findings())]
    return {area: [_clean(finding) for finding in findings] for area, findings in report.items()}


def _scratch(store: str) -> Path:
    try:
        return scratch_folder(Store(store))
    except RequestError:  # the store's own check says what is wrong with it
        return cache_folder()


def _loaded(path: Path) -> tuple["Recipe | None", list[Finding]]:
    from tasks.recipe.loading import load_recipe

    try:
        recipe = load_recipe(path)
    except RequestError as error:
        return None, [
            fault("recipe", str(one), f"correct {path}; tunefleet validate says the same") for one in error.faults
        ]
    return recipe, [ok("recipe", f"{path}: {len(recipe.adapters)} adapters on {recipe.base.model}")]


def _clean(finding: Finding) -> Finding:
    return replace(finding, found=without_secrets(finding.found), advice=without_secrets(finding.advice))
