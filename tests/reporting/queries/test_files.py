"""Files that are no results, are damaged, of another version, or lie below odd names."""

from pathlib import Path

import pyarrow as pa

from infra.storage import Store
from tasks.reporting.queries_files import result_files
from tasks.reporting.queries_tables import tables
from tasks.reporting.results import append_results, parquet, results_path
from tests.reporting.finished_store import FIRST, SECOND, finish, member, target
from tests.reporting.queries.asking import THIRD, Summaries, another, ask, details_of, reworked, spoil, warned, written


def test_files_that_are_none_of_ours_are_left_out_by_name(store: Store, summaries: Summaries, tmp_path: Path) -> None:
    whole = parquet([another()])
    written(store, "half", whole[: len(whole) // 2])
    written(store, "empty", b"")
    folder = Path(store.root) / "results"
    reworked(whole, folder / "foreign.parquet", lambda table: table, None)
    reworked(whole, folder / "later.parquet", lambda table: table, "2")
    numbered = pa.field("name", pa.int64())
    reworked(
        whole,
        folder / "types.parquet",
        lambda of: of.set_column(of.schema.get_field_index("name"), numbered, [[1]]),
        "1",
    )
    reworked(whole, folder / "nameless.parquet", lambda table: table.drop_columns(["name"]), "1")
    (folder / ".writing-1.parquet").write_bytes(b"unfinished")
    (folder / "notes.txt").write_text("mine")
    names, warnings = warned(store)
    assert len(names) == 4
    told = {warning.partition(" is left out: ")[0]: warning.partition(" is left out: ")[2] for warning in warnings}
    assert set(told) == {
        f"results/{name}.parquet" for name in ("half", "empty", "foreign", "later", "types", "nameless")
    }
    assert "schema version 2; this Tunefleet reads version 1" in told["results/later.parquet"]
    assert "Show it with the Tunefleet that wrote it" in told["results/later.parquet"]
    assert all("delete it" in told[f"results/{name}.parquet"] for name in ("half", "empty", "types", "later"))
    assert told["results/half.parquet"].startswith("no whole Parquet file")
    assert "column name has other types" in told["results/types.parquet"]
    assert "no column name" in told["results/nameless.parquet"]


def test_a_file_that_is_damaged_inside_is_found_among_many(store: Store, summaries: Summaries) -> None:
    for number in range(5):
        written(store, f"2026112{number + 4}-000000-dddd", parquet([another(f"2026112{number + 4}-000000-dddd")]))
    spoil(Path(store.root) / "results" / "20261126-000000-dddd.parquet", "verdict")
    names, warnings = warned(store)
    assert names.count("another") == 4 and len(names) == 8
    assert len(warnings) == 1 and "20261126-000000-dddd.parquet is left out: it is damaged" in warnings[0]


def test_columns_that_came_later_are_null_in_files_from_before(store: Store, summaries: Summaries) -> None:
    (Path(store.root) / "results").mkdir(exist_ok=True)
    dropped = ["tasks", "pool", "published", "peak_memory_bytes", "cure", "started"]
    reworked(parquet([another()]), Path(store.root) / results_path(THIRD), lambda of: of.drop_columns(dropped), "1")
    rows = ask(store, lambda of: of.fleet())
    assert rows[0]["name"] == "another" and rows[0]["peak_memory_bytes"] is rows[0]["target"] is None
    one = details_of(store, "another")
    assert one["tasks"] is one["cure"] is one["started"] is None
    ask(store, lambda of: [of.tradeoff(), of.heat_map(), of.bench()])


def test_columns_that_are_not_known_yet_are_passed_over(store: Store, summaries: Summaries) -> None:
    later = pa.field("from_the_future", pa.list_(pa.int64()))
    whole = parquet([another(error="of a later Tunefleet")])
    reworked(whole, Path(store.root) / results_path(THIRD), lambda of: of.append_column(later, [[[1, 2]]]), "1")
    assert ask(store, lambda of: of.fleet())[0]["error"] == "of a later Tunefleet"
    assert "from_the_future" not in details_of(store, "another")


def test_a_file_that_was_copied_counts_once(store: Store, summaries: Summaries) -> None:
    folder = Path(store.root) / "results"
    (folder / "copy.parquet").write_bytes((Path(store.root) / results_path(SECOND)).read_bytes())
    rows = ask(store, lambda of: of.fleet())
    assert len(rows) == 4
    assert len(details_of(store, "tuned")["tasks"]) == 3
    assert len(ask(store, lambda of: [text for _, _, text in of.details()])) == 4
    assert len(ask(store, lambda of: of.heat_map())["cells"]["a"]) == 3


def test_folders_named_like_columns_are_no_columns(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "name=folders" / "verdict=FAIL" / "position=9"))
    append_results(store, finish(store, FIRST, member(store, FIRST, "tuned", target("tuned", 60))))
    (row,) = ask(store, lambda of: of.fleet())
    assert (row["name"], row["verdict"]) == ("tuned", "INCONCLUSIVE")
    assert details_of(store, "tuned")["verdict"] == "INCONCLUSIVE"


def test_what_is_not_the_files_fault_is_not_laid_on_it(store: Store, summaries: Summaries) -> None:
    """A file that went away, or a system that would not open it: whoever deletes it loses what is whole."""
    looped = Path(store.root) / "results" / "looped.parquet"
    looped.symlink_to(looped)
    files, warnings = result_files(store)
    assert len(files) == 2 and warnings[0].startswith("results/looped.parquet is left out: it cannot be opened")
    Path(store.root, results_path(SECOND)).unlink()
    told: list[str] = []
    with tables(files, told) as connection:
        assert connection.execute("SELECT count(*) FROM adapter").fetchone() == (1,)
    assert len(told) == 1 and told[0].startswith(f"{results_path(SECOND)} is left out: it could not be read this time")
    assert not any("delete it" in each for each in (*warnings, *told))


def test_who_deletes_a_damaged_file_is_told_what_a_new_one_may_lack(store: Store, summaries: Summaries) -> None:
    spoil(Path(store.root) / results_path(SECOND), "verdict")
    (warning,) = warned(store)[1]
    assert "it is damaged" in warning and "delete it" in warning and "`tunefleet gc`" in warning
