import pytest

from dmlm.pipeline.samples import Broken, TextLine
from dmlm.pipeline.sources import SourceOptions, open_source
from dmlm.pipeline.sources.interface import is_key
from dmlm.pipeline.sources.lines import stem_to_key


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeffCiao, mondo.\r\n\n  Zwölf  \n".encode())
    (tmp_path / "my dev.txt").write_text("one\n")
    return tmp_path


def test_every_line_that_is_not_blank_is_a_sample_named_by_its_number(folder):
    source = open_source("text", folder, options=SourceOptions(language="it"))
    assert source.splits == ("my dev", "train")
    assert list(source.iter_items()) == [
        TextLine(key="my_dev-dd22ad88-00000001", source="text", split="my dev", text="one", language="it"),
        TextLine(key="train-00000001", source="text", split="train", text="Ciao, mondo.", language="it"),
        TextLine(key="train-00000003", source="text", split="train", text="Zwölf", language="it"),
    ]


def test_files_whose_names_cannot_be_keys_have_keys_of_their_own(tmp_path):
    names = ["日本", "中文", f"{'x' * 60}1", f"{'x' * 60}2", "a b", "a_b"]
    for name in names:
        (tmp_path / f"{name}.txt").write_text("one\n")
    keys = [item.key for item in open_source("text", tmp_path).iter_items()]
    assert len(set(keys)) == len(names)
    assert all(is_key(key) and len(key) < 80 for key in keys)
    assert "a_b-00000001" in keys
    assert all(stem_to_key(key[:-9]) == key[:-9] for key in keys)


def test_root_may_be_one_file(folder):
    source = open_source("text", folder / "train.txt")
    assert source.splits == ("train",)
    assert len(list(source.iter_items())) == 2


def test_line_that_is_not_utf8_is_broken_and_the_rest_goes_on(folder):
    (folder / "train.txt").write_bytes(b"caf\xe9\nfine\n")
    broken, fine = open_source("text", folder, ["train"]).iter_items()
    assert isinstance(broken, Broken)
    assert broken.reason == "train.txt:1: line is not UTF-8"
    assert fine.text == "fine"


@pytest.mark.realdata
def test_real_transcripts_have_5315_lines(real_data):
    items = list(open_source("text", real_data / "text").iter_items())
    assert len(items) == len({item.key for item in items}) == 5_315
    assert {type(item) for item in items} == {TextLine}
