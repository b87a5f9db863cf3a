"""Random rows of one optimizer step, as hypothesis draws them."""

from hypothesis import strategies as st

from tasks.training.features import Features
from tasks.training.rendering import IGNORED


@st.composite
def rows(draw: st.DrawFn, most: int = 10) -> list[Features]:
    """Up to `most` rows that begin alike as often as not: some grow out of another, and some are the same twice."""
    tokens = st.integers(0, 3)
    made: list[list[int]] = []
    for _ in range(draw(st.integers(1, most))):
        start: list[int] = []
        if made and draw(st.booleans()):
            other = draw(st.sampled_from(made))
            start = other[: draw(st.integers(0, len(other)))]
        rest = draw(st.lists(tokens, min_size=0 if start else 1, max_size=12))
        made.append(start + rest)
    return [{"input_ids": ids, "labels": [token if draw(st.booleans()) else IGNORED for token in ids]} for ids in made]
