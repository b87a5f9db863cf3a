"""Exact resume of a pack: killed again and again, it ends in the same bytes as one that was left alone."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra import stage_process
from infra.errors import DivergedError, PreemptedError
from tasks.training import checkpoints, runaway
from tasks.training.packed import pack, states
from tests.training.jobs import training_job
from tests.training.packed.packs import pack_job, some_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 12
STEPS = 24
SAVING = {"save_steps": 2, "max_steps": STEPS}
# Everything that could go wrong with a resume: dropout, accumulation, schedules, best weights, one that ends before the
# others, and one that ends by growing a thousandfold a step.
MEMBERS: dict[str, dict[str, Any]] = {
    "dropping": {**SAVING, "lora": {"lora_dropout": 0.2}, "per_device_train_batch_size": 2,
                 "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 0.2},
    "best": {**SAVING, "eval_steps": 5, "load_best_model_at_end": True, "lr_scheduler_type": "constant",
             "learning_rate": 3e-2, "lora": {"target_modules": "all-linear"}},
    "early": {**SAVING, "max_steps": 9, "seed": 2, "group_by_length": True},
    "wreck": {**SAVING, "weight_decay": 1e5, "lr_scheduler_type": "constant"},
}  # fmt: skip
SAME = ("curve", "tokens", "computed_tokens", "steps", "loss", "validation_loss", "best_step", "stopped_early")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_data(tmp_path_factory.mktemp("rows") / "data", rows=20)


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start(base: Path, data: Path) -> Start:
    """Starts a pack in a process of its own, forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.training.packed.pack"])

    def start_one(folder: Path, members: dict[str, dict[str, Any]] = MEMBERS, **changes: Any) -> Any:
        folder.mkdir(exist_ok=True)
        jobs = {name: training_job(base, data, folder / name, **{**one, **changes}) for name, one in members.items()}
        stage_process.hand_over(pack_job(jobs), folder)
        process = context.Process(target=_stage, args=(str(folder),))
        process.start()
        return process

    return start_one


def _stage(folder: str) -> None:
    """What `python -m tasks.training.packed job.json` does, with its output in a file."""
    from tasks.training.packed.__main__ import run

    out = os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    stage_process.main(run, [f"{folder}/job.json"])


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""


def killed_at(process: Any, folder: Path, *, step: int, delay: float, number: int = signal.SIGKILL) -> bool:
    """Send the signal `delay` seconds after this process reported `step`; whether it came before the end."""
    mark = len(log(folder))
    while process.is_alive():
        events = [stage_process.split_progress(line)[1] for line in log(folder)[mark:].splitlines()]
        if any(event and event["step"] >= step for event in events):
            time.sleep(delay)
            os.kill(process.pid, number)
            break
        time.sleep(0.002)
    process.join()
    return process.exitcode != 0


def done(process: Any, folder: Path) -> dict[str, Any]:
    process.join()
    assert process.exitcode == 0, log(folder)
    return stage_process._read(folder / "result.json")["members"]


@pytest.fixture(scope="module")
def quiet(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("quiet")
    return folder, done(start(folder), folder)


def assert_same(folder: Path, made: dict[str, Any], quiet: tuple[Path, dict[str, Any]]) -> None:
    for name, facts in quiet[1].items():
        if "error" in facts:
            assert made[name] == facts
            continue
        weights = [(some / name / "adapter_model.safetensors").read_bytes() for some in (folder, quiet[0])]
        assert weights[0] == weights[1], name
        assert {key: made[name][key] for key in SAME} == {key: facts[key] for key in SAME}
        assert [point["step"] for point in made[name]["pace"]] == list(range(1, facts["steps"] + 1))


def test_the_undisturbed_one_is_as_demanding_as_it_was_meant(quiet: tuple[Path, dict[str, Any]]) -> None:
    facts = quiet[1]
    assert "loss is nan at step" in facts["wreck"]["error"]["message"]
    assert facts["early"]["steps"] == 9 and facts["dropping"]["steps"] == STEPS
    assert 0 < facts["best"]["best_step"] < STEPS


def test_killed_at_random_and_yet_the_same_bytes(
    start: Start, tmp_path: Path, quiet: tuple[Path, dict[str, Any]]
) -> None:
    draw, kills = random.Random(7), 0
    while kills < KILLS:
        reached = checkpoints.newest_whole(tmp_path / "best-checkpoints")
        step = min((checkpoints.step_of(reached) if reached else 0) + draw.randint(1, 4), STEPS - 2)
        if not killed_at(start(tmp_path), tmp_path, step=step, delay=draw.uniform(0, 0.05)):
            break  # done before the signal came
        kills += 1
    assert kills == KILLS, "the rest is one more start"
    assert_same(tmp_path, done(start(tmp_path), tmp_path), quiet)
    assert log(tmp_path).count("best: going on after step") > KILLS / 2


def test_a_damaged_checkpoint_of_one_sends_all_back(
    start: Start, tmp_path: Path, quiet: tuple[Path, dict[str, Any]]
) -> None:
    killed_at(start(tmp_path), tmp_path, step=15, delay=0)
    newest, before = sorted((tmp_path / "best-checkpoints").glob("checkpoint-*"), key=checkpoints.step_of)[::-1]
    content = bytearray((newest / states.STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / states.STATE).write_bytes(content)
    mark, step = len(log(tmp_path)), checkpoints.step_of(before)
    assert_same(tmp_path, done(start(tmp_path), tmp_path), quiet)
    for name in ("best", "dropping"):
        assert f"{name}: going on after step {step}, from" in log(tmp_path)[mark:]
    assert "early: going on after step 9, from" in log(tmp_path)[mark:], "it had ended before"


def test_sigterm_saves_first_and_company_may_change(
    start: Start, tmp_path: Path, quiet: tuple[Path, dict[str, Any]]
) -> None:
    stopped = start(tmp_path, save_steps=None)
    assert killed_at(stopped, tmp_path, step=7, delay=0, number=signal.SIGTERM)
    assert stopped.exitcode == stage_process.EXIT_PREEMPTED
    with pytest.raises(PreemptedError, match=r"checkpoints are saved, dropping at step (\d+), best at step \1"):
        stage_process.outcome(stopped.exitcode, stage="training", folder=tmp_path, log=[], rerun="")
    step = states.whole(tmp_path / "best-checkpoints")[-1].step
    assert 7 <= step < STEPS

    more = {"new": {**SAVING, "max_steps": 12, "seed": 5}, **MEMBERS}
    made = done(start(tmp_path, more, save_steps=None), tmp_path)
    assert f"best: going on after step {step}, from" in log(tmp_path) and "new: going" not in log(tmp_path)
    assert made["new"]["steps"] == 12
    for name in ("dropping", "best", "early"):  # from there on products may add up in another order: test_isolation.py
        points, expected = ([one for one in facts[name]["curve"] if one["step"] <= step] for facts in (made, quiet[1]))
        assert points == expected
        tensors = [load_file(some / name / "adapter_model.safetensors") for some in (tmp_path, quiet[0])]
        ours, its = (torch.cat([one[key].flatten() for key in sorted(one)]) for one in tensors)
        assert float((ours - its).norm() / its.norm()) < 0.06
    assert made["wreck"]["error"]["kind"] == "diverged"


def saved(folder: Path, step: int, *, pack: str = "p", ended: str | None = None) -> None:
    fields = {"global_step": step, "round": step, "pack": pack, "ended": ended, "best_global_step": None}
    states.save(folder, {"weights": torch.full((2,), float(step))}, fields, {"seconds": 0.0, "pace": []})


def chosen(*folders: Path) -> list[int | None]:
    return [one.step if one else None for one in states.to_go_on_from(folders, "p")]


def test_where_a_pack_goes_on_from(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    assert chosen(a, b) == [None, None]
    saved(a, 2)
    assert chosen(a, b) == [None, None], "killed while it wrote its first ones"
    for folder, step in ((a, 2), (b, 2), (a, 4)):
        saved(folder, step)
    assert chosen(a, b) == [2, 2], "killed before the other had saved"
    for folder, step in ((a, 3), (b, 3), (a, 5)):  # saved at other steps than before, as by the clock
        saved(folder, step)
    assert chosen(a, b) == [3, 3], "what it did not go on from had taken no place"
    saved(a, 6)
    saved(b, 4, ended="done")
    assert chosen(a, b) == [6, 4], "who had ended is in its last state"
    saved(c, 5, pack="another")
    assert chosen(a, b, c) == [6, 4, 5], "in other company each goes on from its own last one"


def test_what_has_no_round_in_common_is_not_lost(tmp_path: Path) -> None:
    """As when a machine dies with its disk, and the store has what each had sent last."""
    a, b = tmp_path / "a", tmp_path / "b"
    saved(a, 8)
    saved(b, 6)
    assert chosen(a, b) == [8, 6]


def test_who_diverged_is_tried_again(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint says how it ended; that is for the same run alone."""

    def lost(log: list[Any], *_: Any) -> None:
        if len(log) > 2:
            raise DivergedError("it ran away")

    settings = {"max_steps": 6, "save_steps": 1}
    jobs = {name: training_job(base, data, tmp_path / name, **settings) for name in ("one", "two")}
    with monkeypatch.context() as patch:
        patch.setattr(runaway, "check", lost)
        first = pack.train(pack_job(jobs))["members"]
    assert {one["error"]["message"] for one in first.values()} == {"it ran away"}
    again = pack.train(pack_job(jobs))["members"]
    assert {one["steps"] for one in again.values()} == {6} and "going on after step 3" in capsys.readouterr().out
