"""What a fleet will need where it is published, known before training."""

from pathlib import Path

import pytest

from infra.errors import RequestError
from infra.storage import Store, _digest_manifest
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.publishing.task import check_space, space_needed
from tasks.recipe.schema import Recipe
from tasks.runs import Run


def recipe(method: str = "lora", **publish: object) -> Recipe:
    adapter = {"data": {"rows": [{"text": "a"}], "format": "text", "held_out": 0}}
    adapters = [
        {"name": "one", **adapter},
        {"name": "two", **adapter},
        {"name": "asked", "method": "prompt", **adapter},
    ]
    fleet = {"name": "fleet", "method": method, "adapters": adapters, "publish": publish}
    return Recipe.model_validate(fleet).resolved()


@pytest.mark.parametrize(
    ("publish", "models"),
    [
        ({"what": ["adapter", "report"]}, 0),
        ({"what": ["adapter", "merged"]}, 2),
        ({"what": ["merged", "gguf"]}, 4),
        ({"what": ["gguf"], "gguf": {"type": "f32"}}, 4),
        ({"what": ["adapter"], "method": "full"}, 2),
        ({"what": ["adapter", "merged"], "method": "full"}, 2),
    ],
)
def test_whole_models_count_and_prompts_do_not(publish: dict, models: int) -> None:
    assert space_needed(recipe(**publish), 1000) == models * 1000


def test_a_folder_without_room_is_a_fault_before_training(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/store")
    run = Run("run", store.root)

    def make(work: Path, output: Path) -> dict:
        (output / "weights").write_bytes(b"0" * 1000)
        return {}

    base: StageResult = run.once(Work("import-base", 1, "bases", "base", {}, {}), make)
    check_space.fn(run, recipe(what=["merged"], to=[{"folder": f"{tmp_path}/there"}]), base)
    path = f"{store.relative(base.ref.uri)}/manifest.json"
    manifest = store.read_json(path)
    manifest["files"][0]["size"] = 10**18
    store.write_json(path, manifest | {"manifest_sha256": _digest_manifest(manifest)})
    with pytest.raises(RequestError, match=r"publish\.to\.0: .* it takes 2,0+,[0,]+ bytes"):
        check_space.fn(run, recipe(what=["merged"], to=[{"folder": f"{tmp_path}/there"}]), base)
    check_space.fn(run, recipe(what=["adapter"], to=[{"folder": f"{tmp_path}/there"}]), base)
    with pytest.raises(RequestError, match=r"publish\.to\.0: cannot publish to /proc/none"):
        check_space.fn(run, recipe(what=["merged"], to=[{"folder": "/proc/none"}]), base)
