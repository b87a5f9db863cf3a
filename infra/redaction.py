"""Nothing that is secret gets into a report, whatever a library writes into its errors."""

import os
import re
from collections.abc import Mapping

SECRET_NAMES = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW|AUTH_STRING|API_KEY|ACCESS_KEY|CREDENTIAL|WEBHOOK", re.IGNORECASE
)
_PLACES = re.compile(r"(_PATH|_FILE|_DIR|_HOME)$", re.IGNORECASE)  # variables that say where a secret lies
_USER = re.compile(r"(?<=://)[^/@\s'\"]+@")
_QUERY = re.compile(r"(://[^\s?'\"]+)\?[^\s'\"]+")  # of a signed address
_SHORTEST = 6  # characters; shorter values are words like "false"


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without values of variables whose names speak of secrets, and without users and queries in addresses."""
    secrets = [
        value
        for name, value in environment.items()
        if SECRET_NAMES.search(name) and not _PLACES.search(name) and len(value) >= _SHORTEST
    ]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))
