"""Which members go together, and in which order they are sent."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import quantization_of
from tasks.packs.planner import train_packs
from tasks.recipe.loading import prepared
from tasks.recipe.schema import Recipe

ROWS = {"rows": [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}], "held_out": 1}
MESSAGES = {"user": "{{ question }}", "assistant": "{{ answer }}"}
SWEEP = {"over": {"training.learning_rate": {"low": 1e-4, "high": 1e-3}}, "sampler": "tpe", "n_trials": 3}


def fleet(*methods: str, per_device: int | None = None) -> Recipe:
    """Adapters a0, a1, ... ; "search" is a member that is searched."""
    adapters = [
        {
            "name": f"a{number}",
            "method": "lora" if method == "search" else method,
            "data": {**ROWS, "messages": MESSAGES, **({"validation": 1, "held_out": 0} if method == "search" else {})},
            "target": {"splits": ["train"], "decides": "train"},
            **({"sweep": SWEEP, "training": {"eval_steps": 1}} if method == "search" else {}),
        }
        for number, method in enumerate(methods)
    ]
    return prepared(Recipe.model_validate({"name": "f", "adapters": adapters, "adapters_per_device": per_device}))


def names(packs: list) -> list[list[str]]:
    return [[adapter.name for adapter in pack] for pack in packs]


def test_the_longest_goes_first_and_neighbours_in_length_go_together() -> None:
    recipe = fleet("lora", "lora", "lora", "lora", "lora", per_device=2)
    tokens = {"a0": 5, "a1": 50, "a2": 10, "a3": 40, "a4": 1}
    assert names(train_packs(recipe, tokens)) == [["a1", "a3"], ["a2", "a0"], ["a4"]]


def test_without_a_number_each_adapter_is_a_pack() -> None:
    assert names(train_packs(fleet("lora", "lora"), {"a0": 1, "a1": 2})) == [["a1"], ["a0"]]


def test_a_pack_has_one_precision() -> None:
    recipe = fleet("lora", "qlora", "lora", "full", "qlora", per_device=4)
    packs = train_packs(recipe, dict.fromkeys(("a0", "a1", "a2", "a3", "a4"), 1))
    assert names(packs) == [["a0", "a2", "a3"], ["a1", "a4"]]


def test_prompts_are_not_trained() -> None:
    assert names(train_packs(fleet("prompt", "lora"), {"a1": 3})) == [["a1"]]


def test_a_search_is_alone_and_as_long_as_its_trials() -> None:
    recipe = fleet("lora", "search", "lora", per_device=3)
    assert names(train_packs(recipe, {"a0": 5, "a1": 2, "a2": 4})) == [["a1"], ["a0", "a2"]]


@given(
    st.lists(st.tuples(st.sampled_from(["lora", "qlora"]), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_every_adapter_is_in_exactly_one_pack_of_its_precision(members: list, per_device: int) -> None:
    recipe = fleet(*(method for method, _ in members), per_device=per_device)
    tokens = {f"a{number}": tokens for number, (_, tokens) in enumerate(members)}
    packs = train_packs(recipe, tokens)
    assert sorted(adapter.name for pack in packs for adapter in pack) == sorted(tokens)
    assert all(len(pack) <= per_device for pack in packs)
    assert all(len({quantization_of(recipe, adapter) for adapter in pack}) == 1 for pack in packs)
    firsts = [tokens[pack[0].name] for pack in packs]
    assert firsts == sorted(firsts, reverse=True)
