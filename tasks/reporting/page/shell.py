"""The page around the data: one HTML file with its style, its script, and a policy that lets nothing else in.

The script is plain JavaScript in pieces of one idea each, joined into one ES module. Data stands in the page as JSON
that cannot end its element, or in files that hand JSON over as a string; in both cases it is parsed and never run.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = (
    *("elements.js", "words.js", "tables.js", "figures.js", "charts.js", "data.js", "filters.js"),
    *("view_fleet.js", "view_tradeoff.js", "view_heat.js", "view_flips.js", "view_tasks.js", "view_adapter.js"),
    *("view_history.js", "view_bench.js", "main.js"),
)
HERE = Path(__file__).parent
SCHEMA = 1  # of what the parts hold; in the page for whoever reads its data


def render(
    site: Mapping[str, Any], *, title: str, store: str, warnings: Sequence[str], inlined: Mapping[str, str]
) -> str:
    """The page; `inlined` are the parts of a small fleet, {name: JSON}, empty if they lie beside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = "\n".join((HERE / "script" / name).read_text("utf-8") for name in SCRIPT)
    style = (HERE / "style.css").read_text("utf-8")
    shell = Environment(autoescape=True, loader=FileSystemLoader(HERE), undefined=StrictUndefined)
    return shell.get_template("page.html.j2").render(
        policy=_policy(script, style),
        style=Markup(style),
        script=Markup(script),
        site=Markup(within_element(json.dumps(site, ensure_ascii=False))),
        inlined=[(name, Markup(within_element(text))) for name, text in inlined.items()],
        title=title,
        store=store,
        warnings=list(warnings),
        schema=SCHEMA,
    )


def data_file(name: str, text: str) -> bytes:
    """The file beside the page that hands over one part."""
    script = f"tunefleet({json.dumps(name)},{json.dumps(text, ensure_ascii=False)})\n"
    return script.encode("utf-8", "replace")


def in_page(text: str) -> bytes:
    """One part as it stands in the page."""
    return within_element(text).encode("utf-8", "replace")


def within_element(text: str) -> str:
    """JSON for an element of a page: `<` stands only inside JSON's strings, where it may be written as an escape."""
    return text.replace("<", "\\u003c")


def _policy(script: str, style: str) -> str:
    """Nothing from elsewhere, no code but ours: the page's own text by its hash, and files beside the page."""
    return (
        f"default-src 'none'; script-src 'self' '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
