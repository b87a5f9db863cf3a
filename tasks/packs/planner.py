"""Which members go together, and which pack is sent first.

A search is a pack of its own. Any other pack holds `adapters_per_device` adapters, one if the recipe names no number,
all in the same precision: one process start and one fetch of the base for all of them. Packs
are cut along the order of their durations, so that members of one pack end together. The longest goes first, and the
pool's queue gives each next one to whichever worker is free: list scheduling by longest processing time, whose end is
at most a third later than the best one's (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969). It needs no
count of workers, which come and go.
"""

from collections.abc import Mapping, Sequence

from tasks.artifacts import quantization_of
from tasks.recipe.schema import Adapter, Recipe


def train_packs(recipe: Recipe, tokens: Mapping[str, float]) -> list[tuple[Adapter, ...]]:
    """The adapters of `recipe` that are trained, in packs, the longest first.

    `tokens` to train on, by name; a search is as many trainings as it has trials, one after the other.
    """

    def cost(adapter: Adapter) -> float:
        return tokens[adapter.name] * (adapter.sweep.n_trials if adapter.sweep else 1)

    learners = [adapter for adapter in recipe.adapters if adapter.method != "prompt"]
    longest_first = sorted(learners, key=cost, reverse=True)  # stable: equal ones stay in the recipe's order
    packs: list[tuple[Adapter, ...]] = [(adapter,) for adapter in longest_first if adapter.sweep]
    by_precision: dict[str, list[Adapter]] = {}
    for adapter in longest_first:
        if not adapter.sweep:
            by_precision.setdefault(quantization_of(recipe, adapter), []).append(adapter)
    for some in by_precision.values():
        packs += _cut(some, recipe.adapters_per_device or 1)
    return sorted(packs, key=lambda pack: cost(pack[0]), reverse=True)


def _cut(adapters: Sequence[Adapter], size: int) -> list[tuple[Adapter, ...]]:
    return [tuple(adapters[start : start + size]) for start in range(0, len(adapters), size)]
