"""From a release back to its rows; what is gone is said to be gone."""

import json
import shutil
from pathlib import Path

from infra.hashing import digest_file, digest_json
from infra.storage import Store
from tasks.registry.channels import move
from tasks.registry.lineage import lineage
from tests.registry.fleet import RUN, TARGET, make, make_member, record_of


def test_everything_is_traced_to_its_origin(store: Store) -> None:
    member = make_member(store, "mirror")
    make_member(store, "other")  # another's
    record = record_of(store, member)
    move(store, record, "stable", expected=None)
    found = json.loads(json.dumps(lineage(store, record)))
    assert found["adapter"]["spec"] == {"method": "lora", "seed": 0} and found["adapter"]["facts"]["loss"] == 0.5
    assert found["adapter"]["versions"]["peft"] and found["adapter"]["run_id"] == RUN
    assert found["base"]["model"] == "acme/tiny" and found["base"]["digest"] == member["base"].ref.digest
    assert found["data"]["digest"] == member["data"].ref.digest
    assert found["data"]["upstream"] == {"file": digest_json("mirror")}
    assert found["data"]["files"]["train.jsonl"] == digest_file(Path(member["data"].ref.uri) / "train.jsonl")
    assert found["channels"] == ["stable"] and found["recipe"]["name"] == "tiny"
    (verdict,) = found["verdicts"]
    assert verdict["said"]["tasks"] == [TARGET] and verdict["digest"] == member["verdict"].ref.digest
    assert {role: one["digest"] for role, one in verdict["scores"].items()} == {
        "base mirror.held_out 0": member["scores of base"].ref.digest,
        "own mirror.held_out 0": member["scores of own"].ref.digest,
    }
    mine = {one.ref.digest for role, one in member.items() if role != "merged"}
    assert set(found["artifacts"]) == mine and not any("gone" in one for one in found["artifacts"].values())


def test_every_verdict_on_the_adapter_is_told(store: Store) -> None:
    member = make_member(store, "mirror")
    upstream = {"adapter": member["adapter"].ref.digest, "own": member["compared"].ref.digest}
    again = make(store, "judge", "verdicts", "mirror", {"verdict.json": '{"verdict": "FAIL"}'}, upstream, run="later")
    verdicts = lineage(store, record_of(store, member))["verdicts"]
    assert [one["digest"] for one in verdicts] == [member["verdict"].ref.digest, again.ref.digest]
    assert verdicts[1]["said"] == {"verdict": "FAIL"}


def test_a_weakened_adapter_leads_on_to_the_one_it_was_made_from(store: Store) -> None:
    member = make_member(store, "mirror")
    weaker = make(
        *(store, "scale", "adapters", "mirror", {"adapter_config.json": '{"r": 4}'}),
        {"adapter": member["adapter"].ref.digest},
    )
    found = lineage(store, record_of(store, {**member, "adapter": weaker}))
    assert {weaker.ref.digest, *(member[role].ref.digest for role in ("adapter", "data", "base"))} <= set(
        found["artifacts"]
    )


def test_what_is_gone_is_said_to_be_gone(store: Store, tmp_path: Path) -> None:
    member = make_member(store, "mirror")
    record = record_of(store, member)
    shutil.rmtree(member["data"].ref.uri)
    shutil.rmtree(member["scores of own"].ref.uri)
    manifest = Path(member["base"].ref.uri) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"loss": 0.5', '"loss": 0.1'))
    (Path(member["verdict"].ref.uri) / "verdict.json").unlink()
    found = lineage(store, record)
    assert found["data"] == {"digest": record.data.digest, "gone": "not in the store any more", "files": {}}
    assert "was altered" in found["base"]["gone"] and "facts" not in found["base"]
    (verdict,) = found["verdicts"]
    assert "verdict.json is no longer in" in verdict["said"]["gone"]
    assert (
        "gone" in verdict["scores"]["own mirror.held_out 0"]
        and "gone" not in verdict["scores"]["base mirror.held_out 0"]
    )
    assert "gone" not in found["adapter"]


def test_a_store_that_was_moved_still_tells(store: Store, tmp_path: Path) -> None:
    record = record_of(store, make_member(store, "mirror"))
    Path(store.root).rename(tmp_path / "moved")
    found = lineage(Store(str(tmp_path / "moved")), record)
    assert not any("gone" in one for one in found["artifacts"].values())
    assert found["adapter"]["uri"].startswith(str(tmp_path / "moved"))


def test_of_equal_bytes_the_release_s_own_are_told(store: Store) -> None:
    """Two adapters with the same rows have one data set under two names; each came from its own file."""
    rows = {"train.jsonl": "the same"}
    sets = {name: make(store, "ingest", "datasets", name, rows, {"file": digest_json(name)}) for name in ("a", "z")}
    assert sets["a"].ref.digest == sets["z"].ref.digest
    for seed, (name, data) in enumerate(sets.items()):
        member = make_member(store, name, seed=seed)
        found = lineage(store, record_of(store, {**member, "data": data}))
        for one in (found["data"], found["artifacts"][data.ref.digest]):
            assert one["upstream"] == {"file": digest_json(name)}
