"""Local data sets in the layout of `datasets`, with real FLAC bytes inside; the network is never needed."""

import io
import json
import socket

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, ImageCaption, TextLine, Utterance
from dmlm.pipeline.sources import SourceOptions, open_source

STRING = {"dtype": "string", "_type": "Value"}
AUDIO = {"sampling_rate": 16_000, "_type": "Audio"}


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """A cache of its own, and no network at all."""

    def refuse(*_):
        raise AssertionError("a local data set asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def flac(level):
    file = io.BytesIO()
    soundfile.write(file, np.full(1_600, level, np.float32), 16_000, format="FLAC")
    return {"bytes": file.getvalue(), "path": "some/where.flac"}


def make_table(columns, features):
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def speech_table(levels, **columns):
    return make_table(
        {"audio": [flac(level) for level in levels], **columns},
        {"audio": AUDIO, **dict.fromkeys(columns, STRING)},
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    train = speech_table([0.25, 0.5], sentence=["Uno.", "Due."], locale=["it", "it"])
    pq.write_table(train, tmp_path / "mine" / "train.parquet")
    test = speech_table([0.75], sentence=["Tre."], locale=["it"])
    pq.write_table(test, tmp_path / "mine" / "test.parquet")
    return tmp_path / "mine"


def read(folder, splits=None, **options):
    return list(open_source("hf", folder, splits, SourceOptions(**options)).iter_items())


def test_rows_of_parquet_are_read_without_decoding_by_datasets(folder):
    assert open_source("hf", folder).splits == ("test", "train")
    first, second = read(folder, ["train"])
    assert isinstance(first, Utterance)
    assert (first.key, first.source, first.split) == ("train-00000001", "hf", "train")
    assert (first.text, first.language) == ("Uno.", "it")
    assert first.audio_path.suffix == ".flac"
    assert load_waveform(second.audio_path) == pytest.approx(np.full(1_600, 0.5), abs=1e-3)


def test_second_reading_comes_from_the_cache_and_gives_the_same(folder, monkeypatch):
    first = read(folder)
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert read(folder) == first
    assert len(first) == 3


def test_reading_that_was_cut_short_leaves_no_list(folder):
    items = open_source("hf", folder, ["train"]).iter_items()
    next(items)
    items.close()
    assert len(read(folder, ["train"])) == 2


def test_data_set_that_has_changed_is_read_anew(folder):
    assert len(read(folder, ["test"])) == 1
    pq.write_table(speech_table([0.1, 0.2], sentence=["a", "b"]), folder / "test.parquet")
    assert [item.text for item in read(folder, ["test"])] == ["a", "b"]


def test_folder_of_save_to_disk_is_read(tmp_path):
    table = speech_table([0.25], text=["Hello."])
    datasets.DatasetDict(dev=datasets.Dataset(table)).save_to_disk(str(tmp_path / "saved"))
    (item,) = read(tmp_path / "saved", language="en")
    assert (item.split, item.text, item.language) == ("dev", "Hello.", "en")


def test_images_and_plain_texts_are_read(tmp_path):
    image = {"bytes": b"\xff\xd8 not looked at here", "path": "1.jpg"}
    pictures = make_table(
        {"image": [image], "caption": ["A bus."]}, {"image": {"_type": "Image"}, "caption": STRING}
    )
    (tmp_path / "a").mkdir()
    pq.write_table(pictures, tmp_path / "a" / "train.parquet")
    (item,) = read(tmp_path / "a")
    assert isinstance(item, ImageCaption)
    assert (item.image_path.read_bytes(), item.image_id) == (image["bytes"], "train-00000001")
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"text": ["one", None]}), tmp_path / "b" / "train.parquet")
    text, nothing = read(tmp_path / "b")
    assert isinstance(text, TextLine)
    assert isinstance(nothing, Broken)
    assert "train.jsonl:2: needs audio, image or text" in nothing.reason


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_texts_of_every_arrow_type_are_read(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["one"]).cast(kind)}), tmp_path / "train.parquet")
    (text,) = read(tmp_path)
    assert text.text == "one"


def test_columns_may_be_named(tmp_path):
    pq.write_table(speech_table([0.1], id=["k-1"], words=["yes"]), tmp_path / "test.parquet")
    (item,) = read(tmp_path, columns="key=id,text=words")
    assert (item.key, item.text) == ("k-1", "yes")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("txt=sentence", "no field 'txt'; did you mean 'text'"),
        ("text=words", "no column 'words'; there are audio, sentence, locale"),
    ],
)
def test_wrong_columns_are_named(folder, columns, message):
    with pytest.raises(ConfigError, match=message):
        read(folder, columns=columns)


def test_data_set_without_anything_to_use_is_refused(tmp_path):
    pq.write_table(pa.table({"number": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match="no audio, image or text among the columns number"):
        read(tmp_path)


def test_damaged_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="cannot be opened by datasets"):
        read(tmp_path)
