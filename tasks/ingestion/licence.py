"""The licence of a base model, as its README.md states it, for the cards of what is made from it."""

from pathlib import Path

import yaml

README = "README.md"


def licence_of(folder: Path, hub_id: str | None, revision: str | None = None) -> str | None:
    """The licence id of the model in `folder`, or of the Hub's `hub_id`; None where nothing states one.

    None also where the Hub cannot be asked: a licence that is not known is said to be unknown, and stops nobody.
    """
    from huggingface_hub import HfApi, errors, metadata_load

    try:
        if (folder / README).is_file():
            stated = (metadata_load(folder / README) or {}).get("license")
        elif hub_id:
            card = HfApi().model_info(hub_id, revision=revision, timeout=20).card_data
            stated = card.get("license") if card else None
        else:
            return None
    except (errors.HTTPError, OSError, ValueError, yaml.YAMLError):  # the second also when offline mode is on
        return None
    return stated if isinstance(stated, str) and stated else None
