"""Names at the hub, with a stub in the place of its API and of what `datasets` would stream from it.

No hub can be reached here: only the refusal of an offline hub is the real one.
"""

import logging
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from huggingface_hub.errors import RevisionNotFoundError

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Broken, ImageCaption, TextLine
from dmlm.pipeline.sources import SourceOptions, open_source
from dmlm.pipeline.sources.hub import HubName, commit_of, pinned
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.pipeline.tokenizers.choosing import TokenizerChoice

OLD, NEW = "0" * 40, "f" * 40


class Hub:
    """A data set of one text in two states; `newest` is what no revision means."""

    def __init__(self, folder: Path) -> None:
        self.newest = OLD
        self.is_up = True
        self.streamed: list[str | None] = []
        self._folders = {OLD: folder / "old", NEW: folder / "new"}
        for commit, place in self._folders.items():
            place.mkdir()
            pq.write_table(pa.table({"text": [f"text of {commit[0]}"]}), place / "train.parquet")

    def dataset_info(self, repository: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        assert repository == "org/name"
        assert timeout > 0
        if not self.is_up:
            raise ConnectionError("no network")
        if revision not in (None, "v1"):
            request = SimpleNamespace(url="u", method="GET")
            response = SimpleNamespace(headers={}, request=request, status_code=404)
            raise RevisionNotFoundError(f"no revision {revision}", response=response)
        return SimpleNamespace(sha=OLD if revision == "v1" else self.newest)

    def stream(self, repository: str, config: str | None, *, revision: str | None, streaming: bool):
        if not self.is_up:
            raise ConnectionError("no network")
        self.streamed.append(revision)
        return REAL_LOAD(str(self._folders[revision or self.newest]), streaming=streaming)


REAL_LOAD = datasets.load_dataset


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stub = Hub(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", staticmethod(stub.dataset_info))
    monkeypatch.setattr(datasets, "load_dataset", stub.stream)
    return stub


def texts(root: str) -> list[str]:
    items = open_source("hf", Path(root)).iter_items()
    return [item.text for item in items if isinstance(item, TextLine)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hub:a/b", ("a/b", None, None)),
        ("hub:a/b:c", ("a/b", "c", None)),
        ("hub:a/b@v1", ("a/b", None, "v1")),
        ("hub:a/b:c@refs/pr/1", ("a/b", "c", "refs/pr/1")),
    ],
)
def test_names_have_a_config_and_a_revision(text: str, name: tuple[str | None, ...]) -> None:
    found = HubName.of(Path(text))
    assert found is not None
    assert (found.repository, found.config, found.revision) == name
    assert found.path == Path(text)
    assert HubName.of(Path("folder/b@v1")) is None


def test_a_row_at_the_hub_names_no_file_of_this_machine(hub: Hub, tmp_path: Path) -> None:
    private = tmp_path / "private.wav"
    soundfile.write(private, np.zeros(8_000), 16_000)
    hub.newest = NEW
    table = pa.table({"text": ["hello"], "audio": [str(private)]})
    pq.write_table(table, tmp_path / "new" / "train.parquet")
    options = SourceOptions(columns="audio=audio,text=text")
    [item] = open_source("hf", Path("hub:org/name"), options=options).iter_items()
    assert isinstance(item, Broken)
    assert "no file private.wav" in item.reason


def test_a_data_set_that_has_changed_at_the_hub_is_read_anew_and_a_revision_stays(hub: Hub) -> None:
    assert texts("hub:org/name") == ["text of 0"]
    assert texts("hub:org/name") == ["text of 0"]
    hub.newest = NEW
    assert texts("hub:org/name") == ["text of f"]
    assert texts("hub:org/name@v1") == texts(f"hub:org/name@{OLD}") == ["text of 0"]
    assert set(hub.streamed) == {OLD, NEW}


def test_what_was_read_is_found_without_the_hub_and_its_commit_is_named(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    texts("hub:org/name")
    hub.is_up = False
    with caplog.at_level(logging.WARNING):
        assert texts("hub:org/name") == ["text of 0"]
    assert f"the hub cannot be asked (no network); taking what it was at commit {OLD}" in caplog.text
    with pytest.raises(ConfigError, match="org/name@v1 cannot be opened by datasets: no network"):
        texts("hub:org/name@v1")


def test_files_of_the_data_set_are_copied_and_no_other_address_is_reached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_registry, "hf", MemoryFileSystem)
    own = f"hf://datasets/org/name@{OLD}"
    there = [f"{own}/a.jpg", f"hf://datasets/org/other@{OLD}/a.jpg", "memory://a.jpg", f"{own}/../a.jpg"]
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    for address in there:
        MemoryFileSystem().pipe(address, b"an image")
    addresses = [*there, f"{own}/none.jpg"]
    rows = datasets.Dataset.from_dict(
        {"image": addresses}, features=datasets.Features(image=datasets.Image())
    ).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": rows})
    first, *others = open_source("hf", Path("hub:org/name")).iter_items()
    assert isinstance(first, ImageCaption)
    assert first.image_path.read_bytes() == b"an image"
    assert [type(item) for item in others] == [Broken] * 4


def test_several_configurations_are_named_and_how_to_name_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ConfigError, match=r"configs: \['a', 'b'\]; name one: hub:ORG/NAME:CONFIG"):
        open_source("hf", Path("hub:org/name"))


def test_lines_of_a_format_that_names_no_types_are_read(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("text\nhello\n")
    stream = REAL_LOAD("csv", data_files=str(tmp_path / "a.csv"), streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    assert texts("hub:org/name") == ["hello"]


def test_a_revision_that_there_is_not_is_refused(hub: Hub) -> None:
    with pytest.raises(
        ConfigError, match=r"hub:org/name@v2: the hub has no such data set for you: no revision"
    ):
        texts("hub:org/name@v2")


def test_a_hub_that_is_switched_off_is_no_error_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pinned(Path("hub:org/name")) == Path("hub:org/name")
    assert commit_of(pinned(Path(f"hub:org/name@{OLD}"))) == OLD
    assert pinned(tmp_path) == tmp_path


def test_the_commit_is_in_the_settings_of_a_data_set(hub: Hub, tmp_path: Path) -> None:
    config = TokenizeConfig(
        source="hf",
        root=Path("hub:org/name"),
        codebook_dir=None,
        choice=TokenizerChoice(text="bpe:256"),
        out_dir=tmp_path / "out",
    )
    tokenize(config)
    hub.newest = NEW
    with pytest.raises(FingerprintMismatchError, match=rf"settings\.revision is {OLD} there, {NEW} now"):
        tokenize(config)
