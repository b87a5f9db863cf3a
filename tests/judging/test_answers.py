"""Answers pair by document and content, or not at all."""

import pytest

from infra.errors import IntegrityError, RequestError
from tasks.judging.answers import pairs_of
from tests.judging.conftest import Write


def test_answers_pair_in_the_bases_order(write: Write):
    pairs = pairs_of(write("base", {"2": "b2", "1": "b1"}), write("own", {"1": " b1\n", "2": "o2"}))
    assert [(pair.doc_id, pair.doc_digest, pair.base, pair.adapter, pair.same) for pair in pairs] == [
        ("2", "digest of 2", "b2", "o2", False),
        ("1", "digest of 1", "b1", " b1\n", True),
    ]


def test_a_document_that_one_side_lacks_is_an_error(write: Write):
    base, own = write("base", dict.fromkeys("12345", "x")), write("own", dict.fromkeys("16", "x"))
    with pytest.raises(IntegrityError) as error:
        pairs_of(base, own)
    assert "without a record of the adapter: 4 (first: 2, 3, 4, ...)" in str(error.value)
    assert "without a record of the base: 1 (first: 6)" in str(error.value)


def test_a_document_that_changed_is_another_one(write: Write):
    with pytest.raises(IntegrityError, match="without a record of the adapter: 1"):
        pairs_of(write("base", {"1": "x"}), write("own", {"1": "x"}, doc_digest="of another"))


def test_no_documents_and_documents_twice(write: Write):
    with pytest.raises(IntegrityError, match="none at all"):
        pairs_of(write("base", {}), write("own", {}))
    twice = {"doc_id": "1", "doc_digest": "same"}
    with pytest.raises(IntegrityError, match="1 that the base has twice; 1 that the adapter has twice"):
        pairs_of(write("base", {"1": "x", "2": "y"}, **twice), write("own", {"1": "x", "2": "y"}, **twice))


def test_likelihoods_are_no_answers(write: Write):
    with pytest.raises(RequestError, match="2 records hold no generated text"):
        pairs_of(write("base", {"1": None, "2": "x"}), write("own", {"1": None, "2": "x"}))
