"""A server to judge, and answers to be judged, as evaluation leaves them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation.records import write_records
from tasks.judging import endpoint
from tests.judging.chat_server import ChatServer, chat_server

Write = Callable[..., Path]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE_SECONDS", 0.01)
    with chat_server() as running:
        yield running


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records of one side: {document: answer}, with what differs from a plain document."""

    def write(side: str, answers: Mapping[str, str | None], **changes: Any) -> Path:
        rows = [
            {
                "doc_id": doc_id,
                "doc_digest": f"digest of {doc_id}",
                "prompt": f"<|im_start|>user\nQuestion {doc_id}?<|im_end|>\n<|im_start|>assistant\n",
                "target": "right",
                "response": answer,
                "score": 1.0,
                "metric": "exact_match",
                **changes,
            }
            for doc_id, answer in answers.items()
        ]
        path = tmp_path / side / "records.parquet"
        path.parent.mkdir(exist_ok=True)
        write_records(rows, path)
        return path

    return write
