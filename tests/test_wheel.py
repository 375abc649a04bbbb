"""The wheel, installed away from the tree, has every module, manifest and recipe."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
READ_EVERYTHING = """
from importlib.resources import files
import dmlm
from dmlm.pipeline.manifests import load_manifest, load_weights_manifest
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.trainer.config import load_recipe
names = lambda package: sorted(p.name[:-5] for p in files(package).iterdir() if p.name.endswith(".yaml"))
print(dmlm.__file__)
print([load_manifest(name).name for name in SOURCE_NAMES], len(load_weights_manifest().weights))
print([load_recipe(name).name for name in names("dmlm.trainer.recipes")])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From the files git knows, so that a stale build folder cannot hide a missing one.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_wheel_reads_every_manifest_and_recipe_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True
    )
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{READ_EVERYTHING}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    module, manifests, recipes = result.stdout.splitlines()
    assert Path(module).is_relative_to(site)
    assert "['librispeech', 'ami', 'covost', 'coco', 'jsonl', 'hf', 'text', 'units']" in manifests
    assert "'demo'" in recipes
    assert "'paper'" in recipes


def test_wheel_holds_the_package_only(wheel: Path) -> None:
    top_level = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"dmlm"}
