"""Shares of perplexity as differences of mean losses, in nats."""

import math

import pytest

from tasks.forgetting.task import in_nats


def test_a_gain_is_a_fall_of_perplexity_and_a_margin_a_rise() -> None:
    perplexity = 20.0
    assert math.exp(math.log(perplexity) - in_nats("target", 0.25)) == pytest.approx(15)
    assert math.exp(math.log(perplexity) + in_nats("general", 0.25)) == pytest.approx(25)


def test_no_gain_asks_for_any_fall() -> None:
    assert str(in_nats("target", 0.0)) == "0.0"  # not -0.0, which a report would show
