"""What is written for the page, without a browser: its policy, its pieces, its places, the server that renews it."""

import base64
import hashlib
import http.client
import json
import re
import threading
from pathlib import Path

import pytest

from flows.commands.dashboards import dashboard
from infra.errors import RequestError
from infra.files import Files
from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard, rebuild
from tasks.reporting.page import content
from tasks.reporting.page.serving import server
from tasks.reporting.page.shell import HERE, data_file, within_element
from tests.publishing.s3_server import BUCKET, S3Server
from tests.reporting.page_store import HOSTILE, adapter, hostile, run_id, write_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    write_run(store, run_id(18), [adapter("dates", run_id(18)), hostile(run_id(18))])
    return store


def test_the_policy_lets_in_the_pages_own_script_and_nothing_else(store: Store) -> None:
    page = Path(build_dashboard(store).page).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    allowed = policy[1].replace("&#39;", "'")
    assert allowed.startswith("default-src 'none'; script-src 'self' 'sha256-") and "unsafe" not in allowed
    for element in ('script type="module"', "style"):
        text = page.split(f"<{element}>")[1].split(f"</{element.split()[0]}>")[0]
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in allowed
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_no_text_ends_its_element(store: Store) -> None:
    page = Path(build_dashboard(store).page).read_text()
    assert page.count("<script") == page.count("</script>") and HOSTILE not in page
    assert json.loads(within_element(json.dumps(HOSTILE))) == HOSTILE
    file = data_file("part", json.dumps({"__proto__": HOSTILE})).decode()
    name, text = json.loads("[" + file[len("tunefleet(") : file.rindex(")")] + "]")
    assert name == "part" and json.loads(text)["__proto__"] == HOSTILE


def test_a_line_of_the_page_can_be_read() -> None:
    """No longer than the project's other lines."""
    files = [file for file in HERE.rglob("*") if file.suffix in (".js", ".css", ".j2")]
    assert len(files) > 15
    long = {file.name: [line for line in file.read_text().splitlines() if len(line) > 120] for file in files}
    assert {name: lines for name, lines in long.items() if lines} == {}


def test_of_many_warnings_most_are_folded(store: Store) -> None:
    for minute in range(30):
        (Path(store.root) / "results" / f"20261119-09{minute:02d}00-bad0.parquet").write_bytes(b"PAR1 half of it")
    built = build_dashboard(store)
    foot = Path(built.page).read_text().split("<footer>")[1].split("</footer>")[0]
    shown, folded = foot.split("<details")
    assert shown.count("-bad0.parquet") == 20 and "10 more warnings" in folded
    assert folded.split("</details>")[0].count("-bad0.parquet") == 10 == len(built.warnings) - 20


def test_columns_say_repeated_words_once() -> None:
    rows = [{"base": "a", "n": 1.23456789}, {"base": "a", "n": None}, {"base": None, "n": 3}]
    assert content.packed(rows) == {
        "length": 3,
        "columns": {"base": {"values": [0, 0, None], "words": ["a"]}, "n": {"values": [1.23457, None, 3]}},
    }
    assert content.packed([]) == {"length": 0, "columns": {}}


def test_an_empty_store_and_half_a_file_make_a_page(tmp_path: Path) -> None:
    empty = Store(str(tmp_path / "empty"))
    assert build_dashboard(empty).adapters == 0
    write_run(empty, run_id(18), [adapter("dates", run_id(18))])
    whole = write_run(empty, run_id(19), [adapter("dates", run_id(19))])
    whole.write_bytes(whole.read_bytes()[:5000])
    built = build_dashboard(empty)
    assert built.adapters == 1 and whole.name in built.warnings[0]
    assert whole.name in Path(built.page).read_text()


def test_the_server_builds_anew_when_results_change(store: Store, tmp_path: Path) -> None:
    with server(store, str(tmp_path / "served")) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()

        def ask(path: str, host: str = "127.0.0.1") -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", serving.server_address[1], timeout=60)
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            return answer.status, answer.read().decode()

        first = ask("/")
        written = (tmp_path / "served" / "index.html").stat().st_mtime_ns
        assert first[0] == 200 and '"mirror"' not in first[1]
        ask("/")
        assert (tmp_path / "served" / "index.html").stat().st_mtime_ns == written  # nothing changed, nothing built
        write_run(store, run_id(19), [adapter("mirror", run_id(19))])
        assert '"mirror"' in ask("/")[1]
        assert ask("/", host="evil.example")[0] == 421 and ask("/data/")[0] == 404
        serving.shutdown()


def test_the_verb_prints_where_the_page_is(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard(store=store.root, output=str(tmp_path / "page.html")) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "page.html") and "2 adapters" in printed.err
    with pytest.raises(RequestError, match="--port is 70000"):
        dashboard(store=store.root, port=70000)
    with pytest.raises(RequestError, match="local folder"):
        dashboard(store=store.root, output="s3://somewhere/x", serve=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError):
        dashboard(store=store.root, output=str(tmp_path / "file" / "x"))


@pytest.mark.slow
def test_a_bucket_tells_browsers_what_it_is(store: Store, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    built = build_dashboard(store, f"s3://{BUCKET}/dashboard", single_file=False)
    files = Files(f"s3://{BUCKET}/dashboard")
    assert built.page == f"s3://{BUCKET}/dashboard/index.html"
    assert files.fs.info(f"s3://{BUCKET}/dashboard/index.html")["ContentType"].startswith("text/html")
    names = files.list_names("data")
    assert len(names) == built.files
    assert files.fs.info(f"s3://{BUCKET}/dashboard/data/{names[0]}")["ContentType"].startswith("text/javascript")


def test_whose_base_or_data_is_unknown_has_no_rivals() -> None:
    made_from = [("b", "d"), (None, "d"), ("b", None), ("b", "d"), (None, None), (None, "d")]
    groups = content.rivals([{"base_digest": base, "data_digest": data} for base, data in made_from])
    assert groups[0] == groups[3] and len(set(groups)) == 5


def test_what_could_not_be_read_anew_is_named_at_the_foot_without_secrets(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "no mapping")
    store.write(f"runs/{run_id(20)}/summary.json", b"{half")
    store.write_json(f"runs/{run_id(21)}/summary.json", {"adapters": [{"name": "a"}], "cache": {"train": "no mapping"}})
    (Path(store.root) / "results" / "no mapping.parquet").write_bytes(b"PAR1")
    built = rebuild(store, None)
    half, odd, foreign = built.warnings
    assert half == f"runs/{run_id(20)}/summary.json is damaged; the run is not shown"
    assert odd.startswith(f"the results of run {run_id(21)} were not written: ")
    assert foreign.startswith("results/***.parquet is left out")
    page = Path(built.page).read_text()
    assert half in page and odd.partition(": ")[0] in page and "no mapping" not in page
