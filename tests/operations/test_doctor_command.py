"""`tunefleet doctor` as its user meets it: the table, the JSON, the exit code, and no secret in either."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands.operations import doctor
from infra.gpus import devices
from tasks.operations.doctor.apart import apart
from tasks.operations.doctor.finding import Finding, absent, fault, ok, warning
from tasks.operations.doctor.libraries import four_bit
from tasks.operations.doctor.table import conclusion, print_report
from tests.flows.recipes import write_tiny_recipe
from tests.publishing.s3_server import BUCKET, S3Server
from tests.tiny import save_tiny_base

FINE, SMALL = ok("Python", "3.11"), absent("GPU", "none", "buy one")
ODD, BAD = warning("database", "SQLite " * 20, "take PostgreSQL"), fault("pool a", "no worker", "start one")


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([FINE, SMALL], "Nothing is wrong."),
        ([FINE, ODD], "Nothing keeps a run from working; one warning."),
        ([ODD, ODD], "Nothing keeps a run from working; 2 warnings."),
        ([ODD, BAD], "One thing keeps a run from working. First, Area, pool a: no worker -> start one"),
        ([BAD, fault("b", "c", "d")], "2 things keep a run from working. First, Area, pool a: no worker -> start one"),
    ],
)
def test_the_last_line_says_what_is_wrong_and_what_to_do_first(findings: list[Finding], said: str) -> None:
    assert conclusion({"Area": findings}) == said


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_table_is_aligned_and_reads_without_colour(width: int) -> None:
    stream = StringIO()
    print_report({"One": [FINE, ODD], "Two": [BAD, SMALL]}, Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "One" and "Two" in lines
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == [
        *("ok", "warning", "FAULT", "absent"),
    ]
    assert len({line.index(text) for line in lines for text in ("3.11", "no worker", "none", "->") if text in line}
               - {lines[-1].index("no worker"), lines[-1].index("->")}) == 1  # fmt: skip
    assert all(line == line.rstrip() for line in lines)
    if width >= 80:
        assert all(len(line) <= width for line in lines[:-1])


@pytest.mark.slow
def test_bitsandbytes_is_tried_and_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that cannot be imported is a fault, and no crash of the doctor."""
    (tmp_path / "bitsandbytes.py").write_text("raise RuntimeError('no such library: libcudart')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with apart("bitsandbytes", four_bit, seconds=120, advice="") as running:
        (finding,) = running.findings()
    assert finding.status == "fault" and "RuntimeError: no such library: libcudart" in finding.found


@pytest.mark.slow
def test_this_machine_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("TUNEFLEET_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code = doctor(json_=True)
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["areas"]) == ["This machine", "Libraries", "Store", "Prefect"]
    found = {one["check"]: one for findings in answer["areas"].values() for one in findings}
    for check in ("Python", "torch", f"torch on {devices()[0]}", "bitsandbytes", "access", "claims"):
        assert found[check]["status"] == "ok", found[check]
    assert found["server"]["status"] == "absent"
    assert "NF4" in found["bitsandbytes"]["found"]
    faults = [one for one in found.values() if one["status"] == "fault"]
    assert code == (2 if faults else 0) and answer["ok"] == (not faults)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_recipe_with_faults(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", "http://somebody:pass-word@127.0.0.1:1/api")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    (tmp_path / "file").touch()
    recipe = write_tiny_recipe(
        tmp_path,
        save_tiny_base(tmp_path / "base"),
        training={"per_device_train_batch_size": 10_000_000},
        publish={"to": [{"folder": str(tmp_path / "file")}, {"folder": str(tmp_path / "good")}]},
    )
    assert doctor(recipe, store=f"s3://{BUCKET}/doctor-store") == 2
    out = capsys.readouterr().out
    lines = " ".join(out.split())
    assert "FAULT server nobody answers at http://***@127.0.0.1:1/api" in lines
    assert f"s3://{BUCKET}/doctor-store can be written" in lines
    assert "warning memory learns, on this machine: does not fit" in lines, "workers of that server may be larger"
    assert "FAULT publish.to.0" in lines and "ok publish.to.1" in lines
    for secret in (s3.secret_key, "hf_very_secret", "pass-word"):
        assert secret not in out


@pytest.mark.slow
def test_a_recipe_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("adapterz: []\n")
    assert doctor(tmp_path / "recipe.yaml", store=str(tmp_path / "store"), json_=True) == 2
    recipe = json.loads(capsys.readouterr().out)["areas"]["Recipe"]
    assert {one["status"] for one in recipe} == {"fault"} and any("adapterz" in one["found"] for one in recipe)
