"""The assets folder: set, unset, and set to nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.core.errors import LoadError
from sparring.data.assets import VARIABLE, assets_folder, find_asset


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_there_is_no_folder(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert assets_folder() is None
    assert find_asset("data/sms_spam.tsv") is None


def test_an_asset_is_found_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here.txt").touch()
    assert assets_folder() == tmp_path
    assert find_asset("data/here.txt") == tmp_path / "data" / "here.txt"
    assert find_asset("data/gone.txt") is None


def test_a_variable_that_names_no_folder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(LoadError, match=r"SPARRING_ASSETS is .*gone"):
        find_asset("data/here.txt")
