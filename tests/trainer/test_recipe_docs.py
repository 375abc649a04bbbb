"""The table of docs/recipes.md is made of the docstrings below the fields of the recipe."""

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from dmlm.trainer import config
from dmlm.trainer.config import MixEntry, Recipe, recipe_from_json
from dmlm.trainer.settings import may_change

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
HEAD = "| key | default | resume | what |\n|---|---|---|---|\n"


def docstrings() -> dict[tuple[str, str], str]:
    """By class and field."""
    found = {}
    for node in ast.parse(inspect.getsource(config)).body:
        for field, text in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=doc)):
                    found[node.name, name] = " ".join(str(doc).split())
    return found


def rows(kind: type[Any], docs: dict[tuple[str, str], str], prefix: str = "") -> Iterator[str]:
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            yield from rows(types[field.name], docs, f"{key}.")
        elif key != "name":  # the name of its file
            default = "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"
            resume = "yes" if may_change(f"recipe.{key}") else "no"
            yield f"| `{key}` | {default} | {resume} | {docs[kind.__name__, field.name]} |\n"
        if key == "mix":
            yield from rows(MixEntry, docs, "mix[].")


def test_every_key_stands_in_the_page_as_the_code_has_it() -> None:
    table = HEAD + "".join(rows(Recipe, docstrings()))
    assert PAGE.read_text().endswith(table), f"docs/recipes.md must end with:\n{table}"


def test_every_example_of_the_page_is_a_recipe() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        recipe_from_json({"name": "example", **yaml.safe_load(example)})
