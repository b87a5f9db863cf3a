"""Options that several verbs share."""

from typing import Annotated

from cyclopts import Parameter

Set = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative=(), help="KEY=VALUE over the recipe, e.g. training.learning_rate=1e-4"),
]
StoreOption = Annotated[
    str | None, Parameter(help="folder or s3://bucket/prefix; default $TUNEFLEET_STORE or .tunefleet")
]
Only = Annotated[str | None, Parameter(help="only the adapter of this name")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="print JSON, for machines")]
