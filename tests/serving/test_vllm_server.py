"""The command for vLLM, and what keeps it from being printed."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.registry.judged import Judged, judged, newest, of_run
from tasks.serving.vllm_server import server, write
from tests.serving.fleet import RUN, Fleet, put, put_base, save_adapter


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def adapter_of(fleet: Fleet, folder: Path, name: str, **lora: Any) -> Judged:
    """A further adapter of the fleet's store, as if it were released."""
    saved = save_adapter(fleet.base_folder, folder / name, **lora)

    def fill(output: Path) -> None:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (output / file).write_bytes((saved / file).read_bytes())

    ref = put(fleet.store, "adapters", name, fill, spec=[name, str(folder)])
    return replace(judged(fleet.store, "shouts"), name=name, label=f"{name}@v1", adapter=ref)


def test_adapters_of_one_base(fleet: Fleet) -> None:
    plan = server(fleet.store, newest(fleet.store), port=8001)
    assert plan.argv[:3] == ["vllm", "serve", fleet.base.uri]
    assert option(plan.argv, "--max-lora-rank") == "16" and option(plan.argv, "--max-loras") == "2"
    assert option(plan.argv, "--port") == "8001" and "--enable-lora" in plan.argv
    assert plan.lora_modules == [
        {"name": name, "path": str(fleet.adapters[name]), "base_model_name": "tiny"} for name in ("dots.v2", "shouts")
    ]
    assert option(plan.argv, "--served-model-name") == "tiny"  # what base_model_name refers to
    given = plan.argv[plan.argv.index("--lora-modules") + 1 :]
    assert [json.loads(one) for one in given] == plan.lora_modules
    assert shlex.split(plan.command.replace("\\\n", "")) == plan.argv
    assert "--chat-template" not in plan.argv and plan.notes == []


def test_the_files_start_the_same_server(fleet: Fleet, tmp_path: Path) -> None:
    plan = server(fleet.store, newest(fleet.store), port=8000)
    written = write(plan, tmp_path / "out")
    assert sorted(Path(path).name for path in written) == ["lora_modules.json", "serve.sh"]
    assert json.loads((tmp_path / "out" / "lora_modules.json").read_text()) == plan.lora_modules
    start = tmp_path / "out" / "serve.sh"
    assert start.read_text() == f"#!/bin/sh\nexec {plan.command}\n" and start.stat().st_mode & 0o100
    assert write(plan, tmp_path / "out") == written  # the same again is no harm
    start.write_text("#!/bin/sh\n# mine\n")
    other = server(fleet.store, newest(fleet.store)[:1], port=8000)
    with pytest.raises(RequestError) as refused:
        write(other, tmp_path / "out")
    assert len(refused.value.faults) == 2 and f"{start} exists already" in str(refused.value)
    assert json.loads((tmp_path / "out" / "lora_modules.json").read_text()) == plan.lora_modules
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        write(plan, tmp_path / "file" / "out")


def test_an_adapter_named_like_the_base_is_served_by_another_name(fleet: Fleet, tmp_path: Path) -> None:
    plan = server(fleet.store, [adapter_of(fleet, tmp_path, "tiny"), judged(fleet.store, "shouts")], port=8000)
    assert option(plan.argv, "--served-model-name") == "tiny"
    assert [one["name"] for one in plan.lora_modules] == ["tiny@v1", "shouts"]


def test_what_did_not_pass_is_said(fleet: Fleet) -> None:
    plan = server(fleet.store, of_run(fleet.store, "latest"), port=8000)
    assert [one["name"] for one in plan.lora_modules] == ["shouts", "dots.v2", "whispers"]
    assert plan.notes == [f"{RUN}:whispers: FAIL"]


def test_a_four_bit_adapter_is_served_on_another_base_than_it_was_judged_on(fleet: Fleet) -> None:
    plan = server(fleet.store, [replace(judged(fleet.store, "shouts"), method="qlora")], port=8000)
    assert "shouts@v1: judged on the base in 4 bits" in plan.notes[0]


def test_everything_that_vllm_would_reject_at_once(fleet: Fleet, tmp_path: Path) -> None:
    bad = [adapter_of(fleet, tmp_path, "dora", use_dora=True, r=600), adapter_of(fleet, tmp_path, "bias", bias="all")]
    with pytest.raises(RequestError) as error:
        server(fleet.store, [*newest(fleet.store), *bad], port=8000)
    assert [fault.where for fault in error.value.faults] == ["dora@v1", "dora@v1", "bias@v1"]


def test_several_bases_are_listed(fleet: Fleet) -> None:
    other = put_base(fleet.store, seed=5, name="other")
    members = [judged(fleet.store, "shouts"), replace(judged(fleet.store, "dots.v2"), base=other)]
    with pytest.raises(RequestError) as error:
        server(fleet.store, members, port=8000)
    said = str(error.value)
    assert f"On tiny-{fleet.base.digest[:12]}: shouts@v1" in said and "On other-" in said and "dots.v2@v1" in said


def test_a_whole_model_is_served_alone(fleet: Fleet) -> None:
    whole = replace(judged(fleet.store, "shouts"), method="full")
    plan = server(fleet.store, [whole], port=8000)
    assert plan.argv[2] == whole.adapter.uri and "--enable-lora" not in plan.argv
    with pytest.raises(RequestError, match="is a whole model, and is served alone: tunefleet vllm shouts"):
        server(fleet.store, [whole, judged(fleet.store, "dots.v2")], port=8000)


def test_two_versions_of_one_name_keep_theirs(fleet: Fleet, tmp_path: Path) -> None:
    second = replace(adapter_of(fleet, tmp_path, "shouts", seed=9), label="shouts@v2")
    plan = server(fleet.store, [judged(fleet.store, "shouts"), second, judged(fleet.store, "shouts")], port=8000)
    assert [one["name"] for one in plan.lora_modules] == ["shouts@v1", "shouts@v2"]


@pytest.mark.parametrize("given", [True, False])
def test_a_changed_chat_template_goes_with_the_base(given: bool, fleet: Fleet) -> None:
    base = put_base(fleet.store, seed=6 + given, name="own", **({"chat_template": "digest"} if given else {}))
    plan = server(fleet.store, [replace(judged(fleet.store, "shouts"), base=base)], port=8000)
    template = f"{base.uri}/chat_template.jinja"
    assert Path(template).is_file()
    assert (
        (plan.argv[plan.argv.index("--chat-template") + 1] == template) if given else "--chat-template" not in plan.argv
    )
