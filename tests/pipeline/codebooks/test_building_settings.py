"""A codebook is taken for the one wanted only where every setting is the same."""

from dataclasses import fields
from pathlib import Path

import pytest

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, _check_same_settings
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.tokenizers.registry import write_card


@pytest.mark.parametrize("name", [field.name for field in fields(BuildCodebookConfig)])
def test_folder_of_any_other_setting_is_refused(name: str, tmp_path: Path) -> None:
    write_card(tmp_path, {name: "this"})
    _check_same_settings(tmp_path, {name: "this"})
    with pytest.raises(ConfigError, match=f"codebook of {name} this, not that"):
        _check_same_settings(tmp_path, {name: "that"})
