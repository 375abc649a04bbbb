import json
from collections import Counter

import pytest
from PIL import Image

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Broken, ImageCaption, Skipped
from dmlm.pipeline.sources import SourceOptions, open_source


@pytest.fixture
def corpus(tmp_path):
    """COCO folder with two images in val2017."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for image_id in (7, 12):
        Image.new("RGB", (8, 8)).save(folder / "val2017" / f"{image_id:012d}.jpg")
    return folder


def annotate(corpus, images, captions, split="val2017"):
    content = {"info": {}, "images": images, "annotations": captions}
    (corpus / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def image(image_id):
    return {"id": image_id, "file_name": f"{image_id:012d}.jpg"}


def caption(caption_id, image_id, text="a cat"):
    return {"id": caption_id, "image_id": image_id, "caption": text}


def read(corpus):
    return list(open_source("coco", corpus.parent).iter_items())


def test_captions_of_an_image_follow_each_other_in_order_of_ids(corpus):
    annotate(
        corpus,
        [image(12), image(7)],
        [caption(100, 12), caption(20, 7), caption(3, 12, "two dogs "), caption(9, 7)],
    )
    items = read(corpus)
    assert [item.key for item in items] == ["7-9", "7-20", "12-3", "12-100"]
    assert items[2] == ImageCaption(
        key="12-3",
        source="coco",
        split="val2017",
        image_path=corpus / "val2017" / "000000000012.jpg",
        image_id="12",
        text="two dogs ",
        language="en",
    )


def test_image_without_caption_is_image_only(corpus):
    annotate(corpus, [image(7), image(12)], [caption(1, 12), caption(2, 7, "")])
    first, second = read(corpus)
    assert (first.key, first.text, first.language) == ("7-2", None, None)
    assert second.text == "a cat"
    annotate(corpus, [image(7)], [])
    assert [(item.key, item.text) for item in read(corpus)] == [("7", None)]


def test_every_caption_of_a_missing_image_is_skipped(corpus):
    annotate(corpus, [image(7), image(8)], [caption(1, 8), caption(2, 8), caption(3, 7)])
    items = read(corpus)
    assert [(type(item), item.key) for item in items] == [
        (ImageCaption, "7-3"),
        (Skipped, "8-1"),
        (Skipped, "8-2"),
    ]
    assert items[1].recording_id == "8"


def test_malformed_entries_are_broken_and_the_rest_goes_on(corpus):
    annotate(
        corpus,
        [image(7), {"id": "x"}, {"id": 9, "file_name": "../../secret.jpg"}, 5],
        [caption(1, 7), caption(2, 99), {"id": 3, "image_id": 7, "caption": None}, "text"],
    )
    items = read(corpus)
    assert Counter(type(item) for item in items) == {Broken: 6, ImageCaption: 1}
    assert "caption 2: no image 99" in " ".join(item.reason for item in items[:-1])
    assert len({item.key for item in items}) == 7


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 3, "annotations": []}', "\udcff", "[" * 10**6])
def test_unreadable_annotation_file_is_corrupt_input(corpus, content):
    path = corpus / "annotations" / "captions_val2017.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CorruptInputError, match=r"captions_val2017\.json: not a COCO caption file"):
        read(corpus)


def test_split_without_its_image_folder_is_not_there_and_2014_names_work(corpus):
    annotate(corpus, [image(7)], [], split="train2017")
    (corpus / "val2014").mkdir()
    name = "COCO_val2014_000000000005.jpg"
    Image.new("RGB", (8, 8)).save(corpus / "val2014" / name)
    annotate(corpus, [{"id": 5, "file_name": name}], [caption(1, 5)], split="val2014")
    source = open_source("coco", corpus)
    assert source.splits == ("val2014",)
    assert [item.key for item in source.iter_items()] == ["5-1"]


def write_2014(corpus):
    """The same two images in the layout of 2014: 7 in train2014, 12 in val2014."""
    for image_id, split in ((7, "train2014"), (12, "val2014")):
        (corpus / split).mkdir()
        name = f"COCO_{split}_{image_id:012d}.jpg"
        Image.new("RGB", (8, 8)).save(corpus / split / name)
        annotate(corpus, [{"id": image_id, "file_name": name}], [caption(image_id * 10, image_id)], split)


def karpathy_image(cocoid, split, *sentids):
    sentences = [{"tokens": ["a", "cat"], "raw": f"A cat, {i}.", "imgid": 0, "sentid": i} for i in sentids]
    return {
        "filepath": "val2014",
        "sentids": list(sentids),
        "filename": f"COCO_val2014_{cocoid:012d}.jpg",
        "imgid": 0,
        "split": split,
        "sentences": sentences,
        "cocoid": cocoid,
    }


def write_karpathy(corpus, images, place="dataset_coco.json"):
    (corpus / place).parent.mkdir(exist_ok=True)
    (corpus / place).write_text(json.dumps({"images": images, "dataset": "coco"}))


def test_layout_of_2014_is_read(corpus):
    write_2014(corpus)
    source = open_source("coco", corpus)
    assert source.splits == ("train2014", "val2014")
    assert [item.key for item in source.iter_items()] == ["7-70", "12-120"]


def test_both_years_in_one_folder_need_a_choice(corpus):
    annotate(corpus, [image(7)], [caption(1, 7)])
    write_2014(corpus)
    with pytest.raises(ConfigError, match=r"several years in .*; give --coco-splits, one of 2014, 2017"):
        open_source("coco", corpus)
    chosen = open_source("coco", corpus, options=SourceOptions(coco_splits="2017"))
    assert chosen.splits == ("val2017",)


@pytest.mark.parametrize("place", ["dataset_coco.json", "karpathy/dataset_coco.json"])
def test_karpathy_splits_find_images_of_either_year_by_cocoid(corpus, place):
    write_2014(corpus)
    (corpus / "val2014" / "COCO_val2014_000000000012.jpg").unlink()  # 12 is in val2017 only
    (corpus / "val2017" / "000000000007.jpg").unlink()  # 7 is in train2014 only
    images = [
        karpathy_image(12, "restval", 5, 3),
        karpathy_image(7, "train", 9),
        karpathy_image(8, "test", 1),
    ]
    write_karpathy(corpus, images, place)
    source = open_source("coco", corpus)
    assert source.splits == ("test", "train", "val")
    items = list(source.iter_items())
    assert [(type(item), item.split, item.key) for item in items] == [
        (Skipped, "test", "8-1"),
        (ImageCaption, "train", "7-9"),
        (ImageCaption, "train", "12-3"),
        (ImageCaption, "train", "12-5"),
    ]
    assert items[1].image_path == corpus / "train2014" / "COCO_train2014_000000000007.jpg"
    assert items[2].image_path == corpus / "val2017" / "000000000012.jpg"
    assert items[2].text == "A cat, 3."
    official = open_source("coco", corpus, options=SourceOptions(coco_splits="2014"))
    assert official.splits == ("train2014", "val2014")


def test_splits_asked_for_tell_the_partition(corpus):
    annotate(corpus, [image(7)], [caption(1, 7)])
    write_2014(corpus)
    for splits in (["val2017"], ["train2014", "val2014"]):
        assert open_source("coco", corpus, splits).splits == tuple(splits)
    write_karpathy(corpus, [karpathy_image(7, "train", 9)])
    for splits in (["val2017"], ["train2014", "val2014"], ["train"]):
        assert open_source("coco", corpus, splits).splits == tuple(splits)


def test_damaged_karpathy_entries_are_broken_once(corpus):
    sound = karpathy_image(7, "val", 1)
    write_karpathy(corpus, [sound, {"cocoid": "x"}, {**sound, "split": "rest"}, {**sound, "sentences": [3]}])
    items = read(corpus)
    assert Counter((type(item), item.split) for item in items) == {
        (Broken, "train"): 2,
        (Broken, "val"): 1,
        (ImageCaption, "val"): 1,
    }


def test_karpathy_splits_without_their_file_say_where_it_is(corpus):
    annotate(corpus, [image(7)], [caption(1, 7)])
    with pytest.raises(ConfigError, match=r"no karpathy splits in .*dataset_coco\.json is in https://"):
        open_source("coco", corpus, options=SourceOptions(coco_splits="karpathy"))


@pytest.mark.realdata
def test_real_slice_has_60_images_with_5_captions_each(real_data):
    items = list(open_source("coco", real_data).iter_items())
    assert Counter((type(item), item.split) for item in items) == {
        (ImageCaption, "train2017"): 100,
        (ImageCaption, "val2017"): 200,
    }
    assert set(Counter(item.image_id for item in items).values()) == {5}
    assert len({item.key for item in items}) == 300
