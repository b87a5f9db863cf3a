"""What a chat's process is told about each speaker."""

from dataclasses import replace
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.registry.judged import Judged, judged, of_run
from tasks.serving.job import chat_job
from tests.serving.fleet import RUN, Fleet

ANYHOW: dict[str, Any] = {"precision": None, "device": "cpu", "max_new_tokens": 8, "system": None}


def test_each_is_asked_as_it_was_trained(fleet: Fleet) -> None:
    job = chat_job(fleet.store, of_run(fleet.store, RUN), **ANYHOW)
    assert job["base"] == str(fleet.base_folder) and job["quantization"] == "none"
    assert job["adapters"] == {name: str(folder) for name, folder in fleet.adapters.items()} and job["models"] == {}
    assert job["plain"] == ["whispers"] and job["trained_with"] == {"shouts": "Be loud."}
    assert job["about"]["shouts"] == f"{RUN}:shouts; PASS; trained on e.g. 'Shout 0'"
    assert job["about"]["whispers"] == f"{RUN}:whispers; FAIL; trained on e.g. 'Once upon'"


def test_without_its_rows_an_adapter_can_still_be_asked(fleet: Fleet) -> None:
    job = chat_job(fleet.store, [replace(judged(fleet.store, "shouts"), data=None)], **ANYHOW)
    assert job["about"] == {"shouts": "shouts@v1; PASS"} and job["plain"] == [] and job["trained_with"] == {}


def test_the_base_is_loaded_as_it_was_judged(fleet: Fleet) -> None:
    quantized = replace(judged(fleet.store, "shouts"), method="qlora")
    assert chat_job(fleet.store, [quantized], **ANYHOW)["quantization"] == "nf4"
    assert chat_job(fleet.store, [quantized], **ANYHOW | {"precision": "none"})["quantization"] == "none"
    both = [quantized, judged(fleet.store, "dots.v2")]
    with pytest.raises(RequestError, match=r"different precisions \(shouts in nf4, dots.v2 in none\)"):
        chat_job(fleet.store, both, **ANYHOW)
    assert chat_job(fleet.store, both, **ANYHOW | {"precision": "nf4"})["quantization"] == "nf4"


def test_whole_models_stand_apart(fleet: Fleet) -> None:
    job = chat_job(fleet.store, [replace(judged(fleet.store, "shouts"), method="full")], **ANYHOW)
    assert job["adapters"] == {} and list(job["models"]) == ["shouts"] and job["quantization"] == "none"


def test_a_name_that_is_a_command_is_spelled_out(fleet: Fleet) -> None:
    def called(name: str) -> Judged:
        return replace(judged(fleet.store, "shouts"), name=name, label=f"{name}@v1")

    job = chat_job(fleet.store, [called("help"), called("shouts")], **ANYHOW)
    assert list(job["adapters"]) == ["help@v1", "shouts"]
