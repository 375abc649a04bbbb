"""Local data sets in the layout of `datasets`, with real FLAC bytes inside; the network is never needed."""

import io
import json
import os
import shutil
import socket
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, TextLine, Utterance
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
    pq.write_table(speech_table([0.25, 0.5], id=["a/b.mp3", "b"]), folder / "train.parquet")
    (folder / "test.parquet").unlink()
    first = read(folder, columns="key=id")
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert read(folder, columns="key=id") == first
    assert [type(item) for item in first] == [Broken, Utterance]


def test_reading_that_was_cut_short_leaves_no_list(folder):
    items = open_source("hf", folder, ["train"]).iter_items()
    next(items)
    items.close()
    assert len(read(folder, ["train"])) == 2


def test_data_set_that_has_changed_is_read_anew(folder):
    assert len(read(folder, ["test"])) == 1
    pq.write_table(speech_table([0.1, 0.2], sentence=["a", "b"]), folder / "test.parquet")
    assert [item.text for item in read(folder, ["test"])] == ["a", "b"]


def test_data_set_that_has_changed_without_another_size_is_read_anew(tmp_path: Path) -> None:
    path, found = tmp_path / "train.parquet", []
    for number, text in enumerate("ab", start=1):
        pq.write_table(pa.table({"text": [text]}), path)
        os.utime(path, ns=(0, number * 10**9))
        found += [(path.stat().st_size, item.text) for item in read(tmp_path)]
    size = path.stat().st_size
    assert found == [(size, "a"), (size, "b")]


def test_language_is_the_one_asked_for_whatever_was_read_before(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "train.parquet")
    assert [item.language for name in ("en", "de") for item in read(tmp_path, language=name)] == ["en", "de"]


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
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "b" / "train.parquet")
    (text,) = read(tmp_path / "b")
    assert isinstance(text, TextLine)


def test_rows_without_text_are_skipped_and_the_others_keep_their_numbers(tmp_path):
    pq.write_table(pa.table({"text": ["one", None, "", " \n", "two"]}), tmp_path / "train.parquet")
    for items in (read(tmp_path), read(tmp_path)):  # as it is copied, and from the cache
        assert [type(item) for item in items] == [TextLine, *[Skipped] * 3, TextLine]
        assert {item.reason for item in items[1:4]} == {"no audio, image or text"}
        assert items[4].key == "train-00000005"


def test_row_that_is_wrong_is_named_by_its_number_and_split(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"], "key": ["a", "b/c"]}), tmp_path / "train.parquet")
    for items in (read(tmp_path, columns="key=key"), read(tmp_path, columns="key=key")):
        assert items[1].reason.startswith("row 2 of train: key 'b/c' must be")


@pytest.fixture
def recordings(tmp_path):
    """A folder of two recordings and their list."""
    (tmp_path / "recordings" / "train").mkdir(parents=True)
    for name, level in (("a", 0.25), ("b", 0.5)):
        (tmp_path / "recordings" / "train" / f"{name}.flac").write_bytes(flac(level)["bytes"])
    list_path = tmp_path / "recordings" / "train" / "metadata.csv"
    list_path.write_text("file_name,text\na.flac,Uno.\nb.flac,\n")
    return tmp_path / "recordings"


def test_folder_of_recordings_with_a_list_is_read(recordings):
    first, second = read(recordings, language="it")
    assert (first.text, first.audio_path) == ("Uno.", recordings / "train" / "a.flac")
    assert second.text is None
    assert load_waveform(second.audio_path) == pytest.approx(np.full(1_600, 0.5), abs=1e-3)


def test_folder_of_images_with_a_list_is_read(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.jpg").write_bytes(b"\xff\xd8 not looked at here")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "A bus."}\n')
    (item,) = read(tmp_path)
    assert (item.text, item.image_path) == ("A bus.", tmp_path / "train" / "1.jpg")


def test_recordings_in_a_zip_of_the_data_set_are_copied_and_no_others(recordings, tmp_path):
    (tmp_path / "mine").mkdir()
    for place in ("mine/clips", "other"):
        shutil.make_archive(str(tmp_path / place), "zip", recordings / "train")
    names = ["a.flac::mine/clips", "none.flac::mine/clips", "a.flac::other", "a.flac::mine/../other"]
    media = [{"bytes": None, "path": f"zip://{name.replace('::', f'::{tmp_path}/')}.zip"} for name in names]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = make_table({"audio": pa.array(media, kind)}, {"audio": AUDIO})
    pq.write_table(table, tmp_path / "mine" / "train.parquet")
    first, *others = read(tmp_path / "mine")
    assert load_waveform(first.audio_path) == pytest.approx(np.full(1_600, 0.25), abs=1e-3)
    assert [type(other) for other in others] == [Broken] * 3


def test_relative_paths_are_those_of_the_folder_and_none_leads_out_of_it(recordings, tmp_path):
    folder = shutil.copytree(recordings / "train", tmp_path / "mine" / "clips").parent
    shutil.copy(folder / "clips" / "a.flac", tmp_path / "other.flac")
    shutil.copy(folder / "clips" / "b.flac", folder / "other.flac")
    names = ["clips/a.flac", "clips/none.flac", "../other.flac", str(folder / "clips" / "b.flac")]
    names.append("clips/../clips/b.flac")
    (folder / "clips" / "metadata.csv").unlink()
    pq.write_table(pa.table({"sound": names}), folder / "train.parquet")
    for items in (read(folder, columns="audio=sound"), read(folder, columns="audio=sound")):
        inside, missing, outside, absolute, roundabout = items
        assert inside.audio_path == folder / "clips" / "a.flac"
        assert missing.reason == "row 2 of train: no file clips/none.flac"
        assert outside.reason == "row 3 of train: no file outside:../other.flac"
        assert absolute.audio_path == folder / "clips" / "b.flac"
        assert roundabout.audio_path.resolve() == absolute.audio_path.resolve()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_texts_of_every_arrow_type_are_read(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["one"]).cast(kind)}), tmp_path / "train.parquet")
    (text,) = read(tmp_path)
    assert text.text == "one"


def test_columns_may_be_named(tmp_path):
    pq.write_table(speech_table([0.1], id=["k-1"], words=["yes"]), tmp_path / "test.parquet")
    (item,) = read(tmp_path, columns="key=id,text=words")
    assert (item.key, item.text) == ("k-1", "yes")


def test_column_of_plain_bytes_may_be_the_recording(tmp_path):
    pq.write_table(pa.table({"sound": [flac(0.5)["bytes"]]}), tmp_path / "test.parquet")
    (item,) = read(tmp_path, columns="audio=sound")
    assert load_waveform(item.audio_path) == pytest.approx(np.full(1_600, 0.5), abs=1e-3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("translation=when", r"column 'when' is timestamp\[us\], but translation must be text"),
        ("text=number", "column 'number' is int64, but text must be text; name another by --columns"),
        ("audio=number", "column 'number' is int64, but audio must be audio, bytes or a path"),
        ("image=several", r"column 'several' is List\(.*, but image must be"),
    ],
)
def test_column_of_a_type_that_does_not_fit_is_refused(tmp_path, columns, message):
    moment = pa.array([0], pa.timestamp("us"))
    table = pa.table({"text": ["a"], "when": moment, "number": [1], "several": [[b"x"]]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, columns=columns)
    assert read(tmp_path, columns="speaker=number")


def test_data_set_of_several_configurations_names_them(folder):
    configs = [{"config_name": name, "data_files": f"{name}.parquet"} for name in ("train", "test")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(ConfigError, match=r"available configs: \['train', 'test'\].* a local folder cannot"):
        open_source("hf", folder)


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
