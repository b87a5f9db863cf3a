"""A folder of lm-eval tasks as a user would write it: one task of each kind, over documents given by the test."""

import json
from pathlib import Path
from typing import Any

HEAD = "custom_dataset: !function rows.{function}\ntest_split: test\n"
KINDS = {
    "multiple_choice": "doc_to_text: '{{q}}'\ndoc_to_choice: choices\ndoc_to_target: answer\n",
    "generate_until": "doc_to_text: '{{q}}'\ndoc_to_target: answer\ngeneration_kwargs:\n  until: ['.']\n"
    "  max_gen_toks: 4\n  do_sample: false\n",
    "loglikelihood": "doc_to_text: '{{q}}'\ndoc_to_target: ' {{answer}}'\n",
    "loglikelihood_rolling": "doc_to_text: ''\ndoc_to_target: '{{q}}'\n",
}


def write_task(
    folder: Path, name: str, kind: str, documents: list[dict[str, Any]], *metrics: dict[str, Any], more: str = ""
) -> Path:
    """NAME.yaml and its documents, in a folder that may hold others; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(documents))
    with (folder / "rows.py").open("a") as code:
        code.write(
            "import json\nfrom pathlib import Path\nfrom datasets import Dataset\n"
            f"def {name}(**_):\n"
            f"    rows = json.loads((Path(__file__).parent / '{name}.json').read_text())\n"
            "    return {'test': Dataset.from_list(rows), 'train': Dataset.from_list(rows)}\n"
        )
    listed = "metric_list: " + json.dumps([{"aggregation": "mean", **one} for one in metrics]) + "\n" if metrics else ""
    head = f"task: {name}\noutput_type: {kind}\n" + HEAD.format(function=name)
    (folder / f"{name}.yaml").write_text(head + KINDS[kind] + listed + more)
    return folder
