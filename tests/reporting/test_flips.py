"""Flips of a finished run: found by run, adapter and task, shown without trusting what a model wrote."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.errors import IntegrityError, RequestError
from infra.storage import Store
from tasks.caching import Work, run_stage_once
from tasks.forgetting.flips import flips_of, write_flips
from tasks.reporting.flips import find_flips, print_flips
from tests.flows.test_cli import tunefleet

ANY = ("lost", "worse", "gained", "better")
WRITTEN = "\n[red]never[/red]\x1b[2J" + "blah " * 100


def record(number: int, score: float, response: str) -> dict[str, Any]:
    return {
        **{"doc_id": str(number), "doc_digest": str(number), "prompt": f"Question {number}?", "target": "Paris"},
        **{"response": response, "choices": None, "loglikelihoods": None, "score": score, "metric": "contains"},
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs of two adapters, of which one flips; the verdicts are artifacts of the store."""
    opened = Store(str(tmp_path / "store"))
    base = [record(number, number % 2, "Paris" if number % 2 else "no") for number in range(30)]
    adapters = {"steady": base, "mirror": [record(n, 1 - n % 2, WRITTEN) for n in range(30)]}
    judged = {}
    for name, records in adapters.items():

        def make(_: Path, output: Path, records: list[dict[str, Any]] = records) -> dict[str, Any]:
            for task in ("capitals_open", "other"):
                write_flips(output / "flips" / f"{task}.jsonl", flips_of(base, records, higher_is_better=True))
            (output / "verdict.json").write_text(json.dumps({"records": records}))
            return {}

        judged[name] = run_stage_once(
            opened, Work("judge", 2, "verdicts", name, {"name": name}, {}), make, run_id="r"
        ).ref.uri
    asked = {"name": "asked", "verdict_uri": None}
    for run in ("20261122-100000-aaaa", "20261122-110000-bbbb"):
        fleet = [{"name": name, "verdict_uri": uri} for name, uri in judged.items()]
        opened.write_json(f"runs/{run}/summary.json", {"run_id": run, "adapters": [*fleet, asked]})
    for file in ("logs/summary.json", "events.json"):  # of a run that goes on, or did not get far
        opened.write_json(f"runs/20261122-120000-cccc/{file}", {})
    return opened


def find(store: Store, run: str = "latest", **asked: Any) -> dict[str, Any]:
    return find_flips(store, run, **{"adapter": None, "task": None, "kinds": ANY, "most": 10, **asked})


def test_all_of_a_run_or_what_is_asked_for(store: Store) -> None:
    everything = find(store)
    assert everything["run_id"] == "20261122-110000-bbbb"
    assert [(one["adapter"], one["task"], one["of"], len(one["flips"])) for one in everything["found"]] == [
        ("steady", "capitals_open", 0, 0),
        ("steady", "other", 0, 0),
        ("mirror", "capitals_open", 30, 10),
        ("mirror", "other", 30, 10),
    ]
    (one,) = find(store, "20261122-100000-aaaa", adapter="mirror", task="other", kinds=("lost",), most=99)["found"]
    assert one["of"] == len(one["flips"]) == 15 and {flip["kind"] for flip in one["flips"]} == {"lost"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"run": "20261122-100000-aaab"}, "near ones: 20261122-100000-aaaa"),
        ({"run": "x"}, "the last ones: 20261122-100000-aaaa, 20261122-110000-bbbb; or take 'latest'"),
        ({"run": "../verdicts"}, "no finished run '../verdicts'"),
        ({"run": "20261122-120000-cccc"}, "no finished run '20261122-120000-cccc'"),
        ({"adapter": "mirrer"}, "has no adapter with a verdict 'mirrer'; it has steady, mirror"),
        ({"adapter": "asked"}, "has no adapter with a verdict 'asked'"),
        ({"task": "capitals"}, "has no task 'capitals'; it has capitals_open, other"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(store: Store, asked: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError) as error:
        find(store, **asked)
    assert said in str(error.value)


def test_a_store_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no finished run"):
        find(Store(str(tmp_path)))


def test_flips_that_were_altered_are_not_shown(store: Store) -> None:
    (file,) = Path(store.root).glob("verdicts/mirror-*/flips/other.jsonl")
    file.write_text(file.read_text().replace("Paris", "Rome"))
    with pytest.raises(IntegrityError):
        find(store)


def test_a_store_that_was_moved_still_has_them(store: Store, tmp_path: Path) -> None:
    Path(store.root).rename(tmp_path / "moved")
    assert find(Store(str(tmp_path / "moved")))["found"][2]["of"] == 30


def test_what_a_model_wrote_is_data(store: Store) -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    print_flips(find(store, adapter="mirror", task="other", kinds=("lost",), most=2), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\\n[red]never[/red]" in text and "\\x1b[2J" in text and "\x1b[2J" not in text
    assert "…" in text and WRITTEN[-200:] not in text
    assert "Question 1?" in text and "Paris" in text and "-1.000" in text
    assert "mirror on other: 2 of 15" in text


def test_the_command(store: Store, tmp_path: Path) -> None:
    done = tunefleet("flips", "latest", "mirror", "--gained", "-n", "3", "--json", "--store", store.root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["found"]
    assert [len(one["flips"]) for one in found] == [3, 3] and found[0]["flips"][0]["kind"] == "gained"
    assert found[0]["flips"][0]["adapter"]["text"] == WRITTEN
    shown = tunefleet("flips", "latest", "--store", store.root, cwd=tmp_path)
    assert shown.returncode == 0 and "steady on other: no flips of this kind" in shown.stdout
    for words, said in ((("nothing",), "no finished run 'nothing'"), (("latest", "-n", "0"), "-n is 0")):
        wrong = tunefleet("flips", *words, "--store", store.root, cwd=tmp_path)
        assert wrong.returncode == 2 and said in wrong.stderr and "Traceback" not in wrong.stderr
