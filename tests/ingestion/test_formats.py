"""Formats that are recognised by their columns: what a row becomes, and the words for one that cannot be meant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import RequestError
from tasks.ingestion.columns import WRITTEN_FOR_MISSING
from tasks.ingestion.dataset import build_dataset, read_jsonl
from tasks.ingestion.formats import SHAPES, made_by_shape
from tasks.ingestion.rows import Malformed, Row
from tasks.recipe.schema import Data, Format

Values = dict[str, Any]
Build = Callable[..., list[Values]]


def system(text: Any) -> Values:
    return {"role": "system", "content": text}


def user(text: Any) -> Values:
    return {"role": "user", "content": text}


def assistant(text: Any) -> Values:
    return {"role": "assistant", "content": text}


def made(values: Values, format: str | None = None) -> Values:
    """What becomes of one row, alone."""
    data = Data.model_validate({"rows": [values], "format": format})
    return made_by_shape(data, [Row("rows[0]", values)])(values)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """The training rows of a data set without held-out rows."""

    def building(rows: list[Values] | None, **changes: Any) -> list[Values]:
        data = Data.model_validate({"rows": rows, "held_out": 0, **changes})
        report = build_dataset(data, tmp_path, needs_held_out=False)
        train = read_jsonl(tmp_path / "train.jsonl")
        assert report["train"] == len(train)
        return train

    return building


TURNS = [system("Be brief."), user("Hi"), assistant("Hello"), user("1 + 1?"), assistant("2")]


@pytest.mark.parametrize(
    ("values", "kind", "row"),
    [
        (
            {"instruction": "Add.", "input": "1 and 1", "output": "2"},
            "chat",
            {"prompt": [user("Add.\n\n1 and 1")], "completion": [assistant("2")]},
        ),
        (
            {"instruction": "Say hi.", "input": "", "output": "Hi"},
            "chat",
            {"prompt": [user("Say hi.")], "completion": [assistant("Hi")]},
        ),
        (
            {"instruction": "Say hi.", "output": "Hi", "id": 7},
            "chat",
            {"prompt": [user("Say hi.")], "completion": [assistant("Hi")]},
        ),
        (
            {"messages": [{**user("Hi"), "name": None}, {**assistant("Hello"), "tool_calls": None}]},
            "chat",
            {"prompt": [user("Hi")], "completion": [assistant("Hello")]},
        ),
        ({"messages": TURNS}, "chat", {"prompt": TURNS[:-1], "completion": TURNS[-1:]}),
        (
            {
                "conversations": [
                    {"from": who, "value": message["content"]}
                    for who, message in zip(("system", "human", "gpt", "user", "assistant"), TURNS, strict=True)
                ]
            },
            "chat",
            {"prompt": TURNS[:-1], "completion": TURNS[-1:]},
        ),
        ({"prompt": "Q: 1\nA:", "completion": " one"}, "plain", {"prompt": "Q: 1\nA:", "completion": " one"}),
        (
            {"prompt": TURNS[:2], "completion": TURNS[2:]},
            "chat",
            {"prompt": TURNS[:-1], "completion": TURNS[-1:]},
        ),
        ({"text": " As it stands.\n"}, "text", {"text": " As it stands.\n"}),
        (
            {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 0.5},
            "preference",
            {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        ),
        (
            {"prompt": [user("1 + 1?")], "chosen": [assistant("2")], "rejected": [assistant("3")]},
            "preference",
            {"prompt": [user("1 + 1?")], "chosen": [assistant("2")], "rejected": [assistant("3")]},
        ),
        (
            {"chosen": TURNS, "rejected": [*TURNS[:-1], assistant("3")]},
            "preference",
            {"prompt": TURNS[:-1], "chosen": [assistant("2")], "rejected": [assistant("3")]},
        ),
        (  # as in UltraFeedback: the prompt as text, and again in front of each answer
            {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("What?")]},
            "preference",
            {"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("What?")]},
        ),
    ],
)
def test_a_row_of_each_format(build: Build, tmp_path: Path, values: Values, kind: str, row: Values):
    (written,) = build([values])
    assert len(written.pop("id")) == 16
    assert written == row
    assert json.loads((tmp_path / "report.json").read_text())["kind"] == kind


def test_every_format_of_the_recipe_has_a_shape():
    assert set(SHAPES) == set(get_args(Format))


def test_messages_come_out_of_parquet_as_out_of_json(build: Build, tmp_path: Path):
    rows = [{"messages": TURNS}, {"messages": TURNS[1:3]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    inline = build(rows)
    assert build(None, path=str(tmp_path / "rows.parquet")) == inline == build(None, path=str(tmp_path / "rows.json"))


@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=2, max_size=9), st.booleans())
def test_every_chat_that_ends_with_an_answer_is_kept_whole(said: list[str], with_system: bool):
    turns = [system("S")] * with_system + [(user, assistant)[index % 2](text) for index, text in enumerate(said)]
    meant = not any(text.strip() in WRITTEN_FOR_MISSING for text in said[1::2])
    if len(said) % 2 or not meant:
        with pytest.raises(Malformed):
            made({"messages": turns})
        return
    row = made({"messages": turns})
    assert row["prompt"] + row["completion"] == turns and len(row["completion"]) == 1


# --- rows that are malformed

ROLES = "after a system message, if any, user and assistant take turns"
MISSING = "it looks like a missing value that was written as text; if it is meant, give templates"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"messages": [user("a"), user("b"), assistant("c")]}, "column 'messages': message 2 is of role 'user', not "),
        (
            {"messages": [assistant("a"), user("b")]},
            f"column 'messages': message 1 is of role 'assistant', not 'user'; {ROLES}",
        ),
        (
            {"messages": [user("a"), system("b"), assistant("c")]},
            "column 'messages': message 2 is of role 'system', not",
        ),
        (
            {"messages": [system("a"), assistant("b")]},
            "column 'messages': message 2 is of role 'assistant', not 'user'",
        ),
        (
            {"messages": [user("a")]},
            "column 'messages' ends with a message of the user, not with the assistant's answer",
        ),
        ({"messages": [*TURNS, user("b")]}, "column 'messages' ends with a message of the user, not with"),
        ({"messages": [system("a")]}, "column 'messages' ends with a message of the system, not with"),
        ({"messages": []}, "column 'messages' is an empty list, not a list of messages"),
        ({"messages": None}, "column 'messages' is null, not a list of messages"),
        ({"messages": "[]"}, "column 'messages' is a str, not a list of messages"),
        ({"messages": [user("a"), assistant(" \n")]}, "column 'messages': message 2: 'content' is empty"),
        ({"messages": [user(None), assistant("b")]}, "column 'messages': message 1: 'content' is null, not text"),
        ({"messages": [user(["a"]), assistant("b")]}, "column 'messages': message 1: 'content' is a list, not text"),
        ({"messages": [user("a"), assistant("nan")]}, f"column 'messages': message 2 is 'nan': {MISSING}"),
        ({"messages": [user("a"), "b"]}, "column 'messages': message 2 is a str; it must be"),
        (
            {"messages": [{"from": "human", "value": "a"}]},
            "column 'messages': message 1 has the keys from, value; it must be {'role': ..., 'content': ...}",
        ),
        (
            {"messages": [user("a"), {"role": "tool", "content": "b"}]},
            "column 'messages': message 2 is of role 'tool'; allowed are system, user, assistant",
        ),
        (
            {"messages": [user("a"), {**assistant("b"), "tool_calls": [{"id": 1}]}]},
            "column 'messages': message 2 has 'tool_calls', which would be lost: only what is said is trained on",
        ),
        (
            {"conversations": [{"from": "bing", "value": "a"}]},
            "column 'conversations': message 1 is of role 'bing'; allowed are system, user, assistant, human, gpt",
        ),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "column 'conversations': message 1 is of role ['gpt']"),
        ({"instruction": "a", "output": None}, "column 'output' is null, not text"),
        ({"instruction": "a", "output": 4}, "column 'output' is an int, not text"),
        ({"instruction": "a", "output": True}, "column 'output' is a bool, not text"),
        ({"instruction": " ", "output": "b"}, "column 'instruction' is empty"),
        ({"instruction": "a", "input": 1.5, "output": "b"}, "column 'input' is a float, not text"),
        ({"instruction": "a", "input": "nan", "output": "b"}, f"column 'input' is 'nan': {MISSING}"),
        ({"instruction": "half: \ud83d", "output": "b"}, "column 'instruction': 'utf-8' codec can't encode character"),
        ({"prompt": "a", "completion": None}, "column 'completion' is null, not text"),
        ({"prompt": None, "completion": "b"}, "column 'prompt' is null, not text"),
        ({"prompt": [user("a")], "completion": "b"}, "column 'prompt' is a list, not text"),
        ({"prompt": "a", "completion": [assistant("b")]}, "column 'completion' is a list, not text"),
        (
            {"prompt": [user("a")], "completion": [user("b")]},
            "columns 'prompt' and 'completion': message 2 is of role 'user', not 'assistant'",
        ),
        ({"text": ""}, "column 'text' is empty"),
        ({"text": "nan"}, f"column 'text' is 'nan': {MISSING}"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "'chosen' and 'rejected' are the same answer; nothing can be",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "column 'rejected' is null, not text"),
        ({"prompt": "a", "chosen": "None", "rejected": "b"}, f"column 'chosen' is 'None': {MISSING}"),
        ({"chosen": "b", "rejected": "c"}, "has no column 'prompt'; its columns are chosen, rejected"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
            "'chosen' and 'rejected' differ before their last message; only the answer may differ",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": "c"},
            "column 'rejected' is a str, not a list of messages",
        ),
        (
            {"prompt": "other", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            "column 'chosen': message 2 is of role 'user', not 'assistant'",
        ),
    ],
)
def test_a_malformed_row_says_what_is_wrong(values: Values, says: str):
    with pytest.raises(Malformed) as error:
        made(values)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize("word", sorted(WRITTEN_FOR_MISSING))
def test_missing_values_written_as_text(build: Build, word: str):
    for row in ({"instruction": "a", "output": f" {word}"}, {"prompt": "a", "completion": f"{word}\n"}):
        with pytest.raises(Malformed, match=MISSING):
            made(row)
    assert made({"instruction": word, "output": f"{word}s"})["prompt"] == [user(word)]  # a question about it
    messages = {"user": "{{ instruction }}", "assistant": "{{ output }}"}
    assert build([{"instruction": "a", "output": word}], messages=messages)[0]["completion"] == [assistant(word)]


def test_all_malformed_rows_are_named_and_as_many_dropped_as_allowed(build: Build, tmp_path: Path):
    good = {"instruction": "a", "output": "b"}
    path = tmp_path / "rows.jsonl"
    lines = [good, {"instruction": "c"}, {**good, "output": None}, {**good, "instruction": "d"}, {}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RequestError) as error:
        build(None, path=str(path), max_bad_rows=2)
    assert [str(fault).removeprefix(str(path)) for fault in error.value.faults] == [
        ":2: has no column 'output'; its columns are instruction",
        ":3: column 'output' is null, not text",
        ":5: has no column 'instruction'; its columns are none",
        ": 3 of 5 rows are malformed and max_bad_rows is 2: mend them, or raise max_bad_rows to drop so many.",
    ]
    assert len(build(None, path=str(path), max_bad_rows=3)) == 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": [user("a")], "completion": [assistant("b")]}],
            "rows[1]: is a chat, and rows[0] is plain text; the rows of a data set are of one kind",
        ),
        (
            [
                {"chosen": TURNS, "rejected": [*TURNS[:-1], assistant("3")]},
                {"prompt": "a", "chosen": "b", "rejected": "c"},
            ],
            "rows[1]: is a preference pair of plain text, and rows[0] is a preference pair of chats; the rows of a ",
        ),
    ],
)
def test_a_data_set_is_of_one_kind(build: Build, rows: list[Values], says: str):
    with pytest.raises(RequestError) as error:
        build(rows)
    assert str(error.value.faults[0]).startswith(says)
    assert len(build(rows, max_bad_rows=1)) == 1


# --- which format it is

TEMPLATES = "or give templates: data.messages (user, assistant), data.prompt with data.completion, or data.text."


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"question": "a", "answer": "b"},
            "rows: its columns are question, answer, and are of no known format (alpaca: instruction, output, [input]; "
            "chat: messages; sharegpt: conversations; prompt-completion: prompt, completion; text: text; preference: "
            f"chosen, rejected, [prompt]). Rename the columns, {TEMPLATES}",
        ),
        (
            {"instruction": "a", "output": "b", "text": "c"},
            "rows: its columns are instruction, output, text, and could be of 2 formats (alpaca: instruction, output, "
            f"[input]; text: text). Say which, e.g. data.format: alpaca, {TEMPLATES}",
        ),
        (
            {"prompt": "a", "chosen": [], "rejected": [], "messages": []},
            "rows: its columns are prompt, chosen, rejected, messages, and could be of 2 formats (chat: messages; "
            f"preference: chosen, rejected, [prompt]). Say which, e.g. data.format: chat, {TEMPLATES}",
        ),
    ],
)
def test_columns_of_no_format_or_of_several(build: Build, values: Values, says: str):
    with pytest.raises(RequestError) as error:
        build([values])
    assert str(error.value) == says


def test_a_named_format_decides(build: Build):
    both = {"instruction": "a", "output": "b", "text": "c"}
    assert build([both], format="text")[0]["text"] == "c"
    assert build([both], format="alpaca")[0]["completion"] == [assistant("b")]
    with pytest.raises(RequestError) as error:
        build([both], format="prompt-completion")
    assert str(error.value) == (
        "rows: data.format prompt-completion needs 'prompt' and 'completion'; its columns are instruction, output, "
        f"text. Its columns would be: prompt, completion. Name another format, {TEMPLATES}"
    )


def test_rows_of_different_shapes_are_ambiguous(build: Build):
    with pytest.raises(RequestError, match="could be of 2 formats"):
        build([{"text": "a"}, {"messages": TURNS}])


def test_a_file_of_which_nothing_can_be_read(build: Build, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("a\nb\n")
    with pytest.raises(RequestError) as error:
        build(None, path=str(tmp_path / "rows.jsonl"), max_bad_rows=9)
    places = [fault.where for fault in error.value.faults]
    assert places == [f"{tmp_path}/rows.jsonl:1", f"{tmp_path}/rows.jsonl:2", f"{tmp_path}/rows.jsonl"]


def test_texts_are_split_by_text_and_pairs_by_prompt(tmp_path: Path):
    pairs = [{"prompt": str(number % 5), "chosen": "a", "rejected": f"b{number}"} for number in range(10)]
    texts = [{"text": f"{mark}text {number}"} for number in range(5) for mark in ("", "?")]
    for rows, key in ((pairs, "prompt"), (texts, "text")):
        report = build_dataset(Data.model_validate({"rows": rows, "validation": 2}), tmp_path, needs_held_out=True)
        sides = ("train", "validation", "held_out")
        assert [report[side] for side in sides] == [4, 4, 2]
        found = [{row[key].lstrip("?") for row in read_jsonl(tmp_path / f"{side}.jsonl")} for side in sides]
        assert [len(side) for side in found] == [2, 2, 1] and len(set.union(*found)) == 5
