"""What a fleet will need where it is published, known before training."""

import pytest

from infra.errors import RequestError
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.publishing.task import check_space, space_needed
from tasks.recipe.schema import Recipe
from tasks.runs import Run


def recipe(**publish: object) -> Recipe:
    adapter = {"data": {"rows": [{"text": "a"}], "format": "text", "held_out": 0}}
    adapters = [
        {"name": "one", **adapter},
        {"name": "two", **adapter},
        {"name": "asked", "method": "prompt", **adapter},
    ]
    return Recipe.model_validate({"name": "fleet", "adapters": [one | adapter for one in adapters], "publish": publish})


@pytest.mark.parametrize(
    ("publish", "models"),
    [
        ({"what": ["adapter", "report"]}, 0),
        ({"what": ["adapter", "merged"]}, 2),
        ({"what": ["merged", "gguf"]}, 4),
        ({"what": ["gguf"], "gguf": {"type": "f32"}}, 4),
    ],
)
def test_whole_models_count_and_prompts_do_not(publish: dict, models: int) -> None:
    assert space_needed(recipe(**publish), 1000) == models * 1000


def test_a_folder_that_has_room_is_no_fault(tmp_path: object) -> None:
    store = Store(f"{tmp_path}/store")
    run = Run("run", store.root)

    def make(work: object, output: object) -> dict:
        (output / "weights").write_bytes(b"0" * 1000)  # type: ignore[operator]
        return {}

    base: StageResult = run.once(Work("import-base", 1, "bases", "base", {}, {}), make)
    check_space.fn(run, recipe(what=["merged"], to=[{"folder": f"{tmp_path}/there"}]), base)
    with pytest.raises(RequestError, match=r"publish\.to\.0: cannot publish to /proc/none"):
        check_space.fn(run, recipe(what=["merged"], to=[{"folder": "/proc/none"}]), base)
