"""From rows to chats: templates, malformed rows, duplicates, the split, and the words for what is wrong."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RequestError
from infra.hashing import digest_json
from tasks.ingestion.dataset import Made, build_dataset, read_jsonl
from tasks.ingestion.splitting import near_copies, split_by_prompt
from tasks.recipe.schema import Data
from tests.publishing import files_under

MESSAGES = {"user": "{{ q }}", "assistant": "{{ a }}"}
ROWS = [{"q": f"question {number}", "a": f"answer {number}"} for number in range(10)]


def data_of(**changes: Any) -> Data:
    source = {} if {"path", "generate"} & changes.keys() else {"rows": ROWS}
    return Data.model_validate({"messages": MESSAGES, **source, **changes})


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Build into the folder `output` of tmp_path."""

    def building(*, needs_held_out: bool = False, **changes: Any) -> dict[str, Any]:
        (tmp_path / "output").mkdir(exist_ok=True)
        return build_dataset(data_of(**changes), tmp_path / "output", needs_held_out=needs_held_out)

    return building


@pytest.fixture
def faults(build: Callable[..., dict[str, Any]]) -> Callable[..., list[str]]:
    def failing(**changes: Any) -> list[str]:
        with pytest.raises(RequestError) as error:
            build(**changes)
        return [str(fault) for fault in error.value.faults]

    return failing


def figures(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("validation", "held_out", "duplicates", "malformed", "near_copies"), 0)
    return {"kind": "chat", **nothing, **changes}


def texts(chats: list[Made]) -> list[tuple[str, str]]:
    return [(chat["prompt"][-1]["content"], chat["completion"][0]["content"]) for chat in chats]


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


# --- chats


def test_templates_make_a_chat(build: Callable[..., dict[str, Any]], tmp_path: Path):
    messages = {"system": "Add.", "user": "{{ a }} + {{ b | int }}", "assistant": "{% if b %}{{ a + 1 }}{% endif %}"}
    build(rows=[{"a": 1, "b": "1", "unread": None}], messages=messages, held_out=0)
    (chat,) = read_jsonl(tmp_path / "output" / "train.jsonl")
    assert chat["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}]
    assert chat["completion"] == [{"role": "assistant", "content": "2"}]
    assert len(chat["id"]) == 16


@pytest.mark.parametrize(
    ("templates", "made"),
    [
        ({"prompt": "Q: {{ q }}\nA:", "completion": " {{ a }}"}, {"prompt": "Q: 1\nA:", "completion": " None"}),
        ({"text": "{{ q }} is {{ a }}"}, {"text": "1 is None"}),
    ],
)
def test_templates_make_plain_text(tmp_path: Path, templates: dict[str, str], made: dict[str, str]):
    # An answer that looks like a missing value is one here: the template says what the column means.
    data = Data.model_validate({"rows": [{"q": 1, "a": "None"}], "held_out": 0, **templates})
    kind = "text" if "text" in made else "plain"
    assert build_dataset(data, tmp_path, needs_held_out=False) == figures(kind=kind, read=1, train=1)
    (row,) = read_jsonl(tmp_path / "train.jsonl")
    assert row == {"id": digest_json(made)[:16], **made}


@pytest.mark.parametrize(
    ("templates", "says"),
    [
        ({"prompt": "{{ x }}", "completion": "{{ a }}"}, "prompt: column 'x' is not in rows; its columns are q, a"),
        ({"text": "{{ q"}, "text: '{{ q' is not a Jinja template: unexpected end of template"),
        ({"prompt": "{{ q }}", "completion": "{{ a[99] }}"}, "rows[0]: completion: str object has no element 99"),
        ({"text": " {{ '' if a else q }}"}, "rows[0]: text comes out empty"),
    ],
)
def test_templates_of_plain_text_that_are_wrong(tmp_path: Path, templates: dict[str, str], says: str):
    with pytest.raises(RequestError) as error:
        build_dataset(Data.model_validate({"rows": ROWS, **templates}), tmp_path, needs_held_out=False)
    assert str(error.value.faults[0]).startswith(says)


def test_no_system_message_unless_there_is_one(build: Callable[..., dict[str, Any]], tmp_path: Path):
    build(held_out=0)
    assert {len(chat["prompt"]) for chat in read_jsonl(tmp_path / "output" / "train.jsonl")} == {1}


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8), st.integers(0, 5))
@settings(max_examples=50)
def test_any_text_goes_through_unchanged_and_every_row_is_counted(pairs: list[tuple[str, str]], seed: int):
    rows = [{"q": q, "a": a} for q, a in pairs]
    whole = {pair for pair in pairs if pair[0].strip() and pair[1].strip()}
    data = data_of(rows=rows, held_out=0.3, seed=seed, max_bad_rows=len(rows))
    with tempfile.TemporaryDirectory() as folder:
        if not whole:
            with pytest.raises(RequestError, match="leaves none to train on"):
                build_dataset(data, Path(folder), needs_held_out=False)
            return
        try:
            report = build_dataset(data, Path(folder), needs_held_out=False)
        except RequestError as error:
            assert "leaves none to train on" in str(error) and len({alike(q) for q, _ in whole}) == 1
            return
        train, held_out = (read_jsonl(Path(folder) / f"{split}.jsonl") for split in ("train", "held_out"))
    assert sorted(texts(train) + texts(held_out)) == sorted(whole)
    assert (report["train"], report["held_out"]) == (len(train), len(held_out))
    assert report["read"] == len(rows) == sum(report[part] for part in ("train", "held_out", "duplicates", "malformed"))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_format_makes_the_same_data_set(build: Callable[..., dict[str, Any]], tmp_path: Path, suffix: str):
    build(held_out=3)
    inline = files_under(tmp_path / "output")
    path = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        path.write_text("q,a\n" + "".join(f"{row['q']},{row['a']}\n" for row in ROWS))
    elif suffix == ".jsonl":
        jsonl(path, *ROWS)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    build(held_out=3, path=str(path))
    assert files_under(tmp_path / "output") == inline


def test_generated_rows(build: Callable[..., dict[str, Any]]):
    messages = {"user": "{{ written }}", "assistant": "{{ iso }}"}
    report = build(generate="iso-dates", limit=50, messages=messages, held_out=20, needs_held_out=True)
    assert report == figures(read=50, train=30, held_out=20)


# --- the split

PROMPTS = [f"{letter}{mark}" for letter in "abcdefgHIJ" for mark in ("", "?", " ")]
CHATS = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.sampled_from("xyz")).map(
        lambda pair: {"prompt": [{"role": "user", "content": pair[0]}], "completion": pair[1]}
    ),
    max_size=25,
)
TEXTS = st.lists(st.sampled_from(PROMPTS).map(lambda text: {"text": text}), max_size=25)
PAIRS = st.lists(
    st.sampled_from(PROMPTS).map(lambda text: {"prompt": text, "chosen": "x", "rejected": "y"}), max_size=25
)
SHARES = st.floats(0, 0.99) | st.integers(1, 12).map(float)


def asked(row: Made) -> str:
    prompt = row.get("text") or row["prompt"]
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def alike(text: str) -> str:
    return " ".join(re.sub(r"[.,;:!?¡¿…。、！？\"'“”‘’„«»()\[\]{}`]", " ", text.casefold()).split()) or text


@given(CHATS | TEXTS | PAIRS, SHARES, SHARES, st.integers(0, 99), st.randoms())
def test_the_split_is_by_prompt(rows: list[Made], held_out: float, validation: float, seed: int, random: Any):
    split = split_by_prompt(rows, held_out=held_out, validation=validation, seed=seed)
    train, validating, kept = ({alike(asked(row)) for row in side} for side in split)
    every = {alike(asked(row)) for row in rows}
    assert not train & validating and not train & kept and not validating & kept
    assert near_copies(split.train, split.validation + split.held_out) == 0
    assert all([row for row in rows if row in side] == side for side in split)
    assert sum(map(len, split)) == len(rows)
    held_out_wanted, validation_wanted = (
        round(share * len(every)) if share < 1 else int(share) for share in (held_out, validation)
    )
    assert len(kept) == min(held_out_wanted, len(every))
    assert len(validating) == min(validation_wanted, len(every) - len(kept))
    mixed = list(rows)
    random.shuffle(mixed)
    again = split_by_prompt(mixed, held_out=held_out, validation=validation, seed=seed)
    assert {alike(asked(row)) for row in again.held_out} == kept  # the order of the rows does not decide
    without = split_by_prompt(rows, held_out=held_out, validation=0, seed=seed)
    assert without.held_out == split.held_out  # nor does what is taken for validation


@given(
    st.lists(st.integers(0, 40), unique=True, max_size=25), st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 9)
)
def test_held_out_rows_are_those_that_versions_before_chose(
    numbers: list[int], held_out: float, validation: float, seed: int
):
    rows = [{"prompt": [{"role": "user", "content": f"question {number}"}], "completion": []} for number in numbers]
    prompts = sorted(digest_json(row["prompt"]) for row in rows)
    Random(seed).shuffle(prompts)
    kept = prompts[: round(held_out * len(prompts))]
    split = split_by_prompt(rows, held_out=held_out, validation=validation, seed=seed)
    assert sorted(digest_json(row["prompt"]) for row in split.held_out) == sorted(kept)


def test_validation_rows_are_written_apart(build: Callable[..., dict[str, Any]], tmp_path: Path):
    assert build(held_out=3, validation=0.2) == figures(read=10, train=5, validation=2, held_out=3)
    sides = [read_jsonl(tmp_path / "output" / f"{side}.jsonl") for side in ("train", "validation", "held_out")]
    assert [len(side) for side in sides] == [5, 2, 3]
    assert len({q for side in sides for q, _ in texts(side)}) == 10
    build(held_out=3)
    assert (tmp_path / "output" / "validation.jsonl").read_text() == ""
    assert read_jsonl(tmp_path / "output" / "held_out.jsonl") == sides[2]


def test_validation_that_leaves_nothing(faults: Callable[..., list[str]]):
    assert faults(held_out=4, validation=6) == [
        "rows: 10 rows, of which held_out=4 and validation=6 leave none to train on."
    ]
    assert faults(validation=0.04) == [
        "rows: validation=0.04 of 10 rows leaves none for the validation loss. Raise it, or set it to 0 to train "
        "without."
    ]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("What is it?", "what  is it", True),
        ('"What" (is) it!', "What is it", True),
        ("Die Straße", "DIE STRASSE", True),
        ("3 - 4", "3 * 4", False),
        ("C++", "C", False),
        ("1.5", "15", False),
        ("?", "!", False),
    ],
)
def test_prompts_that_are_alike_stay_together(one: str, other: str, together: bool):
    rows = [{"prompt": prompt, "completion": "x"} for prompt in (one, other)]
    sizes = {len(split_by_prompt(rows, held_out=1, validation=0, seed=seed).held_out) for seed in range(4)}
    assert sizes == {2 if together else 1}


def test_a_prompt_that_an_earlier_turn_answers_is_a_near_copy():
    said = [{"role": role, "content": text} for role, text in [("user", "Who?"), ("assistant", "I."), ("user", "Why?")]]
    answer = [{"role": "assistant", "content": "So."}]
    long, short = {"prompt": said, "completion": answer}, {"prompt": [{"role": "user", "content": "who"}]}
    other = {"prompt": [{"role": "user", "content": "why"}]}
    assert near_copies([long], [short, other]) == 1
    assert near_copies([short, other], [long]) == 0


def test_the_split_follows_the_seed_and_stays_what_it_is(build: Callable[..., dict[str, Any]], tmp_path: Path):
    def held_out(seed: int) -> list[str]:
        build(held_out=3, seed=seed)
        return [q for q, _ in texts(read_jsonl(tmp_path / "output" / "held_out.jsonl"))]

    assert held_out(0) == held_out(0) == ["question 2", "question 3", "question 9"]
    assert len({tuple(held_out(seed)) for seed in range(5)}) > 1


def test_answers_to_one_question_stay_together(build: Callable[..., dict[str, Any]], tmp_path: Path):
    rows = [{"q": number % 4, "a": number} for number in range(12)]
    assert build(rows=rows, held_out=0.5)["held_out"] == 6
    held_out = texts(read_jsonl(tmp_path / "output" / "held_out.jsonl"))
    assert len({q for q, _ in held_out}) == 2


@pytest.mark.parametrize(
    ("held_out", "sizes"), [(0, (10, 0)), (0.2, (8, 2)), (0.04, (10, 0)), (0.94, (1, 9)), (1, (9, 1)), (9, (1, 9))]
)
def test_held_out_is_a_fraction_or_a_number(
    build: Callable[..., dict[str, Any]], held_out: float, sizes: tuple[int, int]
):
    report = build(held_out=held_out)
    assert (report["train"], report["held_out"]) == sizes


@pytest.mark.parametrize(
    ("held_out", "rows"), [(10, ROWS), (99, ROWS), (0.96, ROWS), (1, [{"q": 1, "a": 2}, {"q": 1, "a": 3}])]
)
def test_nothing_left_to_train_on(faults: Callable[..., list[str]], held_out: float, rows: list[dict[str, Any]]):
    assert faults(held_out=held_out, rows=rows) == [
        f"rows: {len(rows)} rows, of which held_out={held_out} leaves none to train on."
    ]


@pytest.mark.parametrize("held_out", [0, 0.04])
def test_nothing_held_out_for_a_target_that_scores_it(
    build: Callable[..., dict[str, Any]], faults: Callable[..., list[str]], held_out: float
):
    assert faults(held_out=held_out, needs_held_out=True) == [
        f"rows: the target scores held-out rows, but held_out={held_out} of 10 rows leaves none. "
        "Raise held_out, or set target.splits and target.decides to train."
    ]
    assert build(held_out=held_out, needs_held_out=False)["train"] == 10


def test_exact_duplicates_are_dropped_and_counted(build: Callable[..., dict[str, Any]], tmp_path: Path):
    rows = [*ROWS, {"q": "question 1", "a": "answer 1"}, {"q": "question 1", "a": "another"}, ROWS[0]]
    assert build(rows=rows, held_out=0)["duplicates"] == 2
    train = texts(read_jsonl(tmp_path / "output" / "train.jsonl"))
    assert train == [(row["q"], row["a"]) for row in ROWS] + [("question 1", "another")]


def test_the_same_rows_are_the_same_bytes_wherever_the_file_lies(tmp_path: Path):
    built = []
    for place in ("here", "some/where/else"):
        (tmp_path / place).mkdir(parents=True)
        path = jsonl(tmp_path / place / "rows.jsonl", *ROWS, "not JSON", {"q": 1})
        output = tmp_path / place / "output"
        output.mkdir()
        build_dataset(data_of(path=path, max_bad_rows=2), output, needs_held_out=True)
        built.append(files_under(output))
    assert built[0] == built[1]
    assert json.loads(built[0]["report.json"])["dropped"] == [
        {"where": "rows.jsonl:11", "why": "not valid JSON: Expecting value"},
        {"where": "rows.jsonl:12", "why": "messages.assistant: 'a' is undefined"},
    ]


# --- rows that are malformed


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"q": "a question", "a": None}, "messages.assistant comes out empty"),
        ({"q": "a question", "a": ""}, "messages.assistant comes out empty"),
        ({"q": " \n\t", "a": "an answer"}, "messages.user comes out empty"),
        ({"q": "a question"}, "messages.assistant: 'a' is undefined"),
        ({}, "messages.user: 'q' is undefined"),
        ({"q": "a question", "a": ["an answer"]}, "messages.assistant: prints a value of type list, not text"),
        ({"q": {"text": "a"}, "a": "an answer"}, "messages.user: prints a value of type dict, not text"),
        ('{"q": "a question", "a": NaN}', "not valid JSON: NaN is not a JSON number"),
        ('{"q": "a question", "a": 1e999}', "column 'a' is inf"),
        (r'{"q": "half a character: \ud83d", "a": 1}', "messages.user: 'utf-8' codec can't encode character"),
        ('{"q": "a question", "a": ', "not valid JSON: Expecting value"),
        ("[]", "holds a list, not an object with columns"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    build: Callable[..., dict[str, Any]], faults: Callable[..., list[str]], tmp_path: Path, row: Any, says: str
):
    path = jsonl(tmp_path / "rows.jsonl", ROWS[0], row, ROWS[1])
    fault, advice = faults(path=path, held_out=0)
    assert fault.startswith(f"{path}:2: {says}")
    assert advice == (
        f"{path}: 1 of 3 rows are malformed and max_bad_rows is 0: mend them, or raise max_bad_rows to drop so many."
    )
    report = build(path=path, held_out=0, max_bad_rows=1)
    assert (report["train"], report["malformed"]) == (2, 1)


def test_wrong_types_in_an_expression_are_faults_of_the_row(faults: Callable[..., list[str]], tmp_path: Path):
    path = jsonl(tmp_path / "rows.jsonl", {"n": 2}, {"n": "two"}, {"n": 0}, {"n": None}, {"n": [1]})
    found = faults(path=path, messages={"user": "{{ 4 / n }}", "assistant": "{{ n.bit_length() }}"}, held_out=0)
    assert [fault.removeprefix(path) for fault in found[:-1]] == [
        ":2: messages.user: unsupported operand type(s) for /: 'int' and 'str'",
        ":3: messages.user: division by zero",
        ":4: messages.user: unsupported operand type(s) for /: 'int' and 'NoneType'",
        ":5: messages.user: unsupported operand type(s) for /: 'int' and 'list'",
    ]


def test_columns_that_no_template_reads_may_hold_anything(build: Callable[..., dict[str, Any]], tmp_path: Path):
    table = {
        "q": ["a", "b"],
        "a": ["x", "y"],
        "score": [float("nan"), 1.0],
        "raw": [b"\xff", None],
        "tags": [["t"], []],
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    assert build(path=str(tmp_path / "rows.parquet"), held_out=0)["train"] == 2


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([float("nan"), 1.0], ":row 0: column 'a' is nan"),
        ([float("-inf"), 1.0], ":row 0: column 'a' is -inf"),
        ([b"bytes", b"bytes"], ":row 0: messages.assistant: prints a value of type bytes, not text"),
        ([["a"], ["b"]], ":row 0: messages.assistant: prints a value of type list, not text"),
        ([{"text": "a"}, {"text": "b"}], ":row 0: messages.assistant: prints a value of type dict, not text"),
    ],
)
def test_what_a_template_reads_must_be_text_or_a_number(
    faults: Callable[..., list[str]], tmp_path: Path, column: list[Any], says: str
):
    pq.write_table(pa.table({"q": ["a", "b"], "a": column}), tmp_path / "rows.parquet")
    assert faults(path=str(tmp_path / "rows.parquet"), held_out=0)[0].startswith(f"{tmp_path}/rows.parquet{says}")


def test_a_part_of_a_structure_can_be_printed(build: Callable[..., dict[str, Any]], tmp_path: Path):
    path = jsonl(tmp_path / "rows.jsonl", {"q": {"text": ["why?"]}, "a": ["x", "y"]})
    build(path=path, messages={"user": "{{ q.text[0] }}", "assistant": "{{ a | tojson }}"}, held_out=0)
    assert texts(read_jsonl(tmp_path / "output" / "train.jsonl")) == [("why?", '["x", "y"]')]


def test_max_bad_rows_is_exact_and_what_was_dropped_is_kept(
    build: Callable[..., dict[str, Any]], faults: Callable[..., list[str]], tmp_path: Path
):
    path = jsonl(tmp_path / "rows.jsonl", *ROWS, *["not JSON"] * 150)
    report = build(path=path, held_out=0, max_bad_rows=150)
    assert report == figures(read=160, train=10, malformed=150)
    kept = json.loads((tmp_path / "output" / "report.json").read_text())
    assert len(kept.pop("dropped")) == 100 and kept == report
    found = faults(path=path, held_out=0, max_bad_rows=149)
    assert len(found) == 101  # the first hundred, and what to do
    assert found[-1].startswith(f"{path}: 150 of 160 rows are malformed and max_bad_rows is 149")


# --- columns and templates


def test_a_missing_column_lists_those_there_are(faults: Callable[..., list[str]], tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("question;answer\n1;2\n")
    assert faults(path=str(path)) == [
        f"messages.user: column 'q' is not in {path}; its columns are question;answer",
        f"messages.assistant: column 'a' is not in {path}; its columns are question;answer",
    ]


def test_all_missing_columns_of_all_templates(faults: Callable[..., list[str]]):
    messages = {"system": "{{ topic }}", "user": "{{ q }} {{ hint }} {{ more }}", "assistant": "{{ a }}"}
    assert faults(messages=messages) == [
        "messages.system: column 'topic' is not in rows; its columns are q, a",
        "messages.user: column 'hint' is not in rows; its columns are q, a",
        "messages.user: column 'more' is not in rows; its columns are q, a",
    ]


def test_a_first_row_that_lacks_a_column_is_one_bad_row(build: Callable[..., dict[str, Any]], tmp_path: Path):
    path = jsonl(tmp_path / "rows.jsonl", "not JSON", {"q": 1}, {"q": 1, "a": 2})
    assert build(path=path, held_out=0, max_bad_rows=2)["train"] == 1


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ({"user": "{{ q"}, ["messages.user: '{{ q' is not a Jinja template: unexpected end of template"]),
        (
            {"user": "{{ q | shout }}"},
            ["messages.user: '{{ q | shout }}' is not a Jinja template: No filter named 'shout'"],
        ),
        (
            {"system": "{% for %}", "assistant": "{% if a %}"},
            [
                "messages.system: '{% for %}' is not a Jinja",
                "messages.assistant: '{% if a %}' is not a Jinja template: ",
            ],
        ),
    ],
)
def test_a_template_with_a_wrong_syntax(faults: Callable[..., list[str]], messages: dict[str, str], says: list[str]):
    found = faults(messages={**MESSAGES, **messages})
    assert len(found) == len(says)
    assert all(fault.startswith(start) for fault, start in zip(found, says, strict=True))


@pytest.mark.parametrize(
    "text",
    ["{{ q.__class__.__mro__ }}", "{% include 'file' %}", "{{ range(1000000) | join }}", "{{ q.format.__globals__ }}"],
)
def test_a_template_reaches_nothing_but_its_row(faults: Callable[..., list[str]], text: str):
    assert len(faults(messages={**MESSAGES, "user": text}, held_out=0)) == len(ROWS) + 1


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("a.csv", "q,a\n"), ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.parquet", None)]
)
def test_no_rows_at_all(faults: Callable[..., list[str]], tmp_path: Path, name: str, content: str | None):
    if content is None:
        pq.write_table(pa.table({"q": pa.array([], pa.string()), "a": pa.array([], pa.string())}), tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    assert faults(path=str(tmp_path / name)) == [f"{tmp_path}/{name} has no rows; there is nothing to train on."]


def test_no_rows_inline(faults: Callable[..., list[str]]):
    assert faults(rows=[]) == ["rows has no rows; there is nothing to train on."]
