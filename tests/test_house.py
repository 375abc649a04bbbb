"""The shape of the house: who may import whom, and what must never be called."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FOLDERS = ("pipeline", "trainer", "data_manifests")
SOURCES = [
    REPOSITORY / "cli.py",
    *sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")),
]
OUTER_HALF = (
    *("commands", "generation_commands", "scoring_commands", "export_commands"),
    *("demo", "demo_pictures", "demo_results"),
    *("export", "model_card", "pretrained", "gguf"),
)
"""Modules of the trainer that are about files and people, not about training."""
TRAINING_HALF = sorted(
    path
    for pattern in ("*.py", "data/*.py", "models/*.py", "watching/*.py")
    for path in (REPOSITORY / "trainer").glob(pattern)
    if path.stem not in OUTER_HALF
)
OPEN_TO_TRAINING = {
    f"dmlm.pipeline.{module}"
    for module in (
        *("samples", "source_names", "errors", "vocabulary"),
        *("storage", "randomness", "progress", "strict_config", "devices"),
        *("shards", "shards.card", "shards.format", "shards.token_table"),
        *("tokenizers", "tokenizers.text"),  # fingerprints, and the text tokenizer of validation
    )
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_inside_are_absolute_under_dmlm(path: Path) -> None:
    for module in imported_modules(path):
        assert module.split(".")[0] not in {"pipeline", "trainer", "cli", "data_manifests"}


def test_pipeline_never_imports_trainer() -> None:
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        assert not [module for module in imported_modules(path) if module.startswith("dmlm.trainer")]


def test_readers_of_foreign_checkpoints_import_nothing_that_uses_them() -> None:
    users = ("dmlm.pipeline.codebooks", "dmlm.pipeline.tokenizers")
    for path in (REPOSITORY / "pipeline" / "converters").glob("*.py"):
        assert not [module for module in imported_modules(path) if module.startswith(users)]


@pytest.mark.parametrize("path", TRAINING_HALF, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_training_half_imports_only_the_data_types_and_shards(path: Path) -> None:
    for module in imported_modules(path):
        assert not module.startswith("dmlm.pipeline") or module in OPEN_TO_TRAINING, module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


def test_the_map_in_the_readme_names_every_package() -> None:
    house = (REPOSITORY / "README.md").read_text().partition("## The house")[2]
    named = set(re.findall(r" (\w+)/", house.partition("`make test`")[0]))
    assert named >= {
        path.parent.name for name in FOLDERS for path in (REPOSITORY / name).glob("*/__init__.py")
    }


def test_no_module_is_loaded_twice_from_the_root() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); import dmlm.cli, dmlm.pipeline.commands, dmlm.trainer.commands;"
        "print([m for m in sys.modules if m.split('.')[0] in ('pipeline', 'trainer', 'cli')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = (
        "import sys; from dmlm.cli import COMMANDS, run\n"
        "for name in COMMANDS: run([name, '--help'])\n"
        "heavy = {'torch', 'transformers', 'faiss', 'whisper', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
