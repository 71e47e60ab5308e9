"""The assets folder: public models and data that are too large to ship, found through SPARRING_ASSETS."""

from __future__ import annotations

import os
from pathlib import Path

from sparring.core.errors import LoadError

VARIABLE = "SPARRING_ASSETS"


def assets_folder() -> Path | None:
    """The folder that the variable SPARRING_ASSETS names.

    Returns:
        The folder, or None where the variable is unset or empty: the assets are optional.

    Raises:
        LoadError: the variable is set and names no folder, which is a slip and not a choice.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise LoadError(
            f"{VARIABLE} is {named!r}, which is not a folder. Set it to the folder that holds data/ and models/, "
            "or unset it to go without the assets."
        )
    return folder


def find_asset(name: str) -> Path | None:
    """One file or folder of the assets folder.

    Args:
        name: its path inside the assets folder, such as "data/sms_spam.tsv".

    Returns:
        Its path, or None where the assets folder is unset or lacks it.

    Raises:
        LoadError: SPARRING_ASSETS is set and names no folder.
    """
    folder = assets_folder()
    if folder is None:
        return None
    path = folder / name
    return path if path.exists() else None
