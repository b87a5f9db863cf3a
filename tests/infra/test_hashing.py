"""Digests: the same content has one, whatever its order; other content has another."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.hashing import canonical_json, digest_file, digest_json, digest_stream, digest_tree

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcü "), inner, max_size=4),
    max_leaves=12,
)


def turned_round(value: Any) -> Any:
    """The same JSON value with the keys of every object in the other order."""
    if isinstance(value, dict):
        return {key: turned_round(value[key]) for key in reversed(value)}
    return [turned_round(item) for item in value] if isinstance(value, list) else value


def test_the_spelling_is_fixed():
    text = '{"a":[true,null,"ü"],"b":1.5}'
    assert canonical_json({"b": 1.5, "a": (True, None, "ü")}) == text
    assert digest_json({"b": 1.5, "a": [True, None, "ü"]}) == hashlib.sha256(text.encode()).hexdigest()


@given(JSON)
def test_order_of_keys_does_not_count(value: Any):
    assert digest_json(turned_round(value)) == digest_json(value)
    assert json.loads(canonical_json(value)) == value


@given(JSON, JSON)
def test_other_values_have_other_digests(one: Any, other: Any):
    assert (digest_json(one) == digest_json(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": float("-inf")}]])
def test_what_is_no_json_number_is_refused(value: Any):
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json(value)


@given(st.binary(max_size=300))
def test_a_stream(data: bytes):
    assert digest_stream(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()


def test_a_file_of_several_blocks(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "weights").write_bytes(data)
    assert digest_file(tmp_path / "weights") == hashlib.sha256(data).hexdigest()


def test_a_tree_is_its_paths_and_contents():
    trees = [{}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "1"}, {"d/a": "1"}]
    assert len({digest_tree(tree) for tree in trees}) == len(trees)
    assert digest_tree({"b": "2", "a": "1"}) == digest_tree({"a": "1", "b": "2"})
