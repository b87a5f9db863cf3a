"""Several adapters side by side: on one base, each with a name of its own."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from infra.errors import Fault, RequestError
from infra.hashing import SHORT
from tasks.registry.judged import Judged


def names_of(members: Sequence[Judged], reserved: Collection[str] = ()) -> dict[str, Judged]:
    """{name: adapter}: the plain name, or with its version or run where two share it or where it means something else.

    What is named twice is there once.
    """
    distinct = {one.label: one for one in members}
    counts = Counter(one.name for one in distinct.values())
    plain = {label: counts[one.name] == 1 and one.name not in reserved for label, one in distinct.items()}
    return {one.name if plain[label] else label: one for label, one in distinct.items()}


def refuse_several_bases(members: Sequence[Judged]) -> None:
    """RequestError that lists the bases, if there is more than one."""
    bases: dict[str, list[Judged]] = defaultdict(list)
    for one in members:
        bases[one.base.digest].append(one)
    if len(bases) > 1:
        raise RequestError(
            [
                Fault(
                    f"these adapters stand on {len(bases)} bases, and only one can be loaded: name those of one base. "
                    f"On {some[0].base.name}-{digest[:SHORT]}: {', '.join(one.label for one in some)}"
                )
                for digest, some in bases.items()
            ]
        )
