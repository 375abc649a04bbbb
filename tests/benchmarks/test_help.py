"""What stands behind `python` in the docstring of a script is what its `--help` shows."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "def main(" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_shows_its_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    module = pytest.importorskip(script, reason="its peer is not installed")
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main(["--help"])
    named = re.findall(r"--[a-z-]+", (module.__doc__ or "").partition(f"python benchmarks/{script}.py")[2])
    assert {"--help", *named} <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
