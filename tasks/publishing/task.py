"""Publishing as Prefect tasks: the check before training, and the release after a PASS."""

from typing import Any, Literal

from prefect import get_run_logger, task

from infra.errors import RequestError
from tasks.artifacts import Lineage, StageResult
from tasks.publishing.card import render_card
from tasks.publishing.destinations import check_destinations, publish_to
from tasks.publishing.release import Release, require_pass
from tasks.recipe.schema import Adapter, Destination, Recipe
from tasks.retrying import STAGE
from tasks.runs import Run


@task(name="check-destinations", **STAGE)
def check(recipe: Recipe) -> None:
    """RequestError with everything that would keep the fleet from being published."""
    names = [adapter.name for adapter in recipe.adapters if adapter.method != "prompt"]
    if faults := check_destinations(recipe.publish.to, names):
        raise RequestError(faults)


@task(name="publish", task_run_name="publish {adapter.name} as {what}", **STAGE)
def publish(
    run: Run,
    recipe: Recipe,
    adapter: Adapter,
    what: Literal["adapter", "merged"],
    place: Destination,
    artifact: StageResult,
    lineage: Lineage,
) -> dict[str, Any]:
    """Release one artifact to one place; only with a PASS for the adapter that it is or was made from."""
    trained, base, data, verdict = lineage.trained, lineage.base, lineage.data, lineage.verdict
    require_pass(verdict, trained.ref.digest)
    store = run.store
    trained_manifest = store.manifest(trained.ref)
    manifest = {
        "name": adapter.name,
        "what": what,
        "digest": artifact.ref.digest,
        "recipe": recipe.name,
        "base": {"model": base.facts["model"], "revision": base.facts["revision"], "digest": base.ref.digest},
        "data": {"digest": data.ref.digest, **data.facts},
        "training": {"spec": trained_manifest["spec"], "adapter_digest": trained.ref.digest},
        "versions": trained_manifest["versions"],
        "git_commit": trained_manifest["git_commit"],
        "merge": artifact.facts if artifact.ref.kind == "merged" else None,
        "verdict": verdict,
    }
    card = render_card(
        name=adapter.name,
        what=what,
        base_model=base.facts["model"],
        base_revision=base.facts["revision"],
        base_digest=base.ref.digest,
        base_license=None,
        method=adapter.method or "",
        data_digest=data.ref.digest,
        recipe=recipe.name,
        training={key: trained.facts[key] for key in ("steps", "tokens", "loss", "trainable_params", "seed")}
        | {"rows": data.facts["train"]},
        tasks=verdict["tasks"],
        verdict=verdict["verdict"],
        reasons=verdict["reasons"],
    )
    release = Release(
        name=adapter.name,
        what=what,
        digest=artifact.ref.digest,
        folder=store.fetch(artifact.ref),
        card=card,
        manifest=manifest,
    )
    published = publish_to(place, release)
    get_run_logger().info("%s: published as %s to %s", adapter.name, what, published.uri)
    return {"what": what, **published.model_dump()}
