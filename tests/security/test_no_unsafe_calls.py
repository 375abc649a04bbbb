"""Data can never run: what could make it is not even named in the sources, converters apart."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = [
    REPOSITORY / "cli.py",
    *sorted(
        path
        for folder in ("pipeline", "trainer", "data_manifests")
        for path in (REPOSITORY / folder).rglob("*.py")
    ),
]

RUNNERS = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "os.exec",
    "os.spawn",
    "subprocess",
    "pty",
)
UNPICKLERS = (
    *("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "numpy.load", "pandas"),
    *(
        "torch.load",
        "torch.hub",
        "torch.jit",
        "torch.package",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
    ),
)
NETWORK = (
    "socket",
    "urllib",
    "http",
    "ftplib",
    "requests",
    "aiohttp",
    "httpx",
    "httpx2",
    "webdataset",
    "huggingface_hub",
    "fsspec",
    "s3fs",
    "botocore",
)
UNPACKERS = ("tarfile.open", "shutil.unpack_archive", "gzip", "bz2", "lzma", "zlib")
FORBIDDEN = (*RUNNERS, *UNPICKLERS, *NETWORK, *UNPACKERS)
FORBIDDEN_ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code"}
CONVERTERS_MAY = ("pickle", "torch.load")
REMOTE_FOLDER = REPOSITORY / "pipeline" / "remote" / "folder.py"
"""The one file that reaches addresses, and only those of an option, see test_urls.py."""
REMOTE_FOLDER_MAY = ("fsspec", "s3fs", "botocore", "huggingface_hub.errors")

HUB = REPOSITORY / "pipeline" / "sources" / "hub.py"
"""Asks the hub for the commit of a data set that `--root hub:` names, and fetches nothing."""
HUB_MAY = ("huggingface_hub.HfApi", "huggingface_hub.errors")

METEOR = REPOSITORY / "trainer" / "scoring" / "meteor.py"
"""The one file that starts another program: Java, by a list of arguments that no data is in."""
METEOR_MAY = ("subprocess in", "subprocess.Popen", "subprocess.PIPE")


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module, and every name as it would be written without `as` and `from`."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                yield module + alias.name, node.lineno
                if module or alias.asname:
                    aliases[alias.asname or alias.name] = module + alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            yield aliases.get(first, first) + dot + rest, node.lineno


def unsafe_in(source: str) -> list[str]:
    tree = ast.parse(source)
    named = [f"{name} in line {line}" for name, line in names_in(tree) if is_forbidden(name)]
    arguments = [
        f"{keyword.arg}= in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in FORBIDDEN_ARGUMENTS and ast.unparse(keyword.value) != "False"
    ]
    return named + arguments


def is_forbidden(name: str) -> bool:
    return any(name == unsafe or name.startswith(f"{unsafe}.") for unsafe in FORBIDDEN)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_that_runs_unpickles_or_fetches_is_named(path: Path) -> None:
    found = unsafe_in(path.read_text())
    if path.parent.name == "converters":
        found = [entry for entry in found if not entry.startswith(CONVERTERS_MAY)]
    if path == REMOTE_FOLDER:
        found = [entry for entry in found if not entry.startswith(REMOTE_FOLDER_MAY)]
    if path == HUB:
        found = [entry for entry in found if not entry.startswith(HUB_MAY)]
    if path == METEOR:
        found = [entry for entry in found if not entry.startswith(METEOR_MAY)]
    assert not found


def test_every_torch_load_of_the_converters_is_restricted() -> None:
    calls = [
        ast.unparse(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert all("weights_only=True" in call for call in calls)


def test_everything_of_a_folder_is_asked_for_without_its_code() -> None:
    calls = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_\w+", ast.unparse(node.func))
    ]
    assert calls
    for call in calls:
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert arguments.get("trust_remote_code") == "False", ast.unparse(call)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p\np.loads(b'')",
        "from torch import load\nload('x')",
        "import torch as t\nt.load('x')",
        "import numpy as np\nnp.load('x')",
        "from numpy import load as read\nread('x')",
        "import numpy as np\nnp.lib.format.read_array(file, allow_pickle=True)",
        "import os\nrun = os.system",
        "from os import popen as run",
        "import subprocess",
        "getattr(x, 'y')(eval)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import urllib.request",
        "import tarfile\ntarfile.open('x')",
        "from webdataset import gopen",
        "open_model(name, trust_remote_code=True)",
        "from fsspec import filesystem as files",
    ],
)
def test_this_test_sees_through_other_names(source: str) -> None:
    assert unsafe_in(source)
