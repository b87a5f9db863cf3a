"""From a recipe's destinations to what is asked of each place before training."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from infra.errors import TransientError
from tasks.publishing.destinations import check_destinations, sent_of
from tasks.recipe.schema import Adapter, Destination
from tests.publishing.hub_server import HubServer

ROWS = {"rows": [{"text": "a"}], "format": "text", "held_out": 0}


@pytest.mark.parametrize(
    ("method", "what", "sent"),
    [
        ("lora", ("adapter", "gguf"), ("adapter", "gguf")),
        ("full", ("adapter", "report"), ("merged", "report")),
        ("full", ("merged", "adapter", "gguf"), ("merged", "gguf")),
    ],
)
def test_of_a_full_model_the_model_is_sent_once(method: str, what: tuple, sent: tuple):
    assert sent_of(Adapter.model_validate({"name": "one", "method": method, "data": ROWS}), what) == sent


def test_exactly_the_repositories_that_are_sent_to_are_checked(hub: HubServer):
    faults = check_destinations([Destination(hub="a/b/c")], {"small": ("adapter", "gguf"), "whole": ("merged",)})
    assert [fault.message.split("'")[1] for fault in faults] == [
        "a/b/c-small",
        "a/b/c-small-gguf",
        "a/b/c-whole-merged",
    ]


def test_what_is_wrong_is_told_before_a_silent_place_is_asked_again(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    hub.failing["GET /api/whoami"] = 503
    (tmp_path / "file").touch()
    silent, wrong = Destination(hub="tester/fleet"), Destination(folder=str(tmp_path / "file"))
    (fault,) = check_destinations([silent, wrong], {"small": ("adapter",)})
    assert fault.where == "publish.to.1" and "is a file" in fault.message
    with pytest.raises(TransientError, match="busy or failing"):
        check_destinations([silent], {"small": ("adapter",)})
