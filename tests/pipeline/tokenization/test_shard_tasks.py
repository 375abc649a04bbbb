"""The plan: every item in exactly one shard, in order, and a shard is known by what it is made from."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, SourceItem, Utterance
from dmlm.pipeline.tokenization.shard_tasks import MAX_SKIPPED, plan_shards, task_sha256


def caption(key: str, image: int) -> ImageCaption:
    return ImageCaption(
        key=key, source="coco", split="train", image_path=Path(f"{image}.jpg"), image_id=str(image)
    )


def utterance(key: str, path: Path = Path("a.flac"), **fields: object) -> Utterance:
    return Utterance(key=key, source="librispeech", split="train", audio_path=path, **fields)


@st.composite
def corpora(draw: st.DrawFn) -> list[SourceItem]:
    items: list[SourceItem] = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(["speech", "image", "skipped", "broken"])))):
        marks = {"key": str(number), "source": "s", "split": "t"}
        if kind == "image":
            num_captions = draw(st.integers(1, 7))
            items += [caption(f"{number}-{c}", number) for c in range(num_captions)]
        elif kind == "speech":
            items.append(utterance(str(number)))
        else:
            items.append((Skipped if kind == "skipped" else Broken)(reason="r", **marks))
    return items


@given(items=corpora(), samples_per_shard=st.integers(1, 6))
def test_plan_holds_every_item_once_in_order_and_keeps_captions_together(
    items: list[SourceItem], samples_per_shard: int
) -> None:
    tasks = plan_shards("x", items, samples_per_shard)
    assert [item for task in tasks for item in task.items] == items
    assert [task.name for task in tasks] == [f"x-{number:06d}" for number in range(len(tasks))]
    paths = [set(task.image_paths) for task in tasks]
    assert sum(map(len, paths)) == len(set().union(*paths))
    for task in tasks:
        num_samples = sum(not isinstance(item, Skipped) for item in task.items)
        one_image = len(task.image_paths) == 1 and not task.utterances
        assert num_samples <= samples_per_shard or one_image
        num_skipped = len(task.items) - num_samples
        assert num_samples or len(tasks) == 1 or num_skipped >= MAX_SKIPPED * samples_per_shard
        assert num_skipped <= MAX_SKIPPED * samples_per_shard


def test_many_skipped_items_fill_a_shard() -> None:
    skipped = [Skipped(key=f"s{n}", source="s", split="t", reason="r") for n in range(2 * MAX_SKIPPED + 1)]
    tasks = plan_shards("x", [utterance("a"), *skipped, utterance("b")], 1)
    assert [len(task.items) for task in tasks] == [1 + MAX_SKIPPED, MAX_SKIPPED, 2]
    (task,) = plan_shards("x", [utterance("a"), *skipped, utterance("b")], 3)
    assert len(task.items) == len(skipped) + 2


def test_second_item_of_a_key_is_broken_and_says_of_which_splits_both_are() -> None:
    again = replace(utterance("a"), split="dev")
    (task,) = plan_shards("x", [utterance("a"), utterance("b"), again], 10)
    first, second, third = task.items
    assert (first, second) == (utterance("a"), utterance("b"))
    assert isinstance(third, Broken)
    assert third.reason == "an item of dev whose key is already that of an item of train"


def sha256(item: SourceItem, recipe: dict[str, object] | None = None, name: str = "x") -> str:
    (task,) = plan_shards(name, [item], 10)
    return task_sha256(task, recipe or {})


def test_task_is_known_by_its_recipe_its_items_and_the_size_of_their_files(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.flac", tmp_path / "elsewhere" / "a.flac"
    path.write_bytes(b"1")
    moved.parent.mkdir()
    moved.write_bytes(b"2")
    first = sha256(utterance("a", path))
    assert first == sha256(utterance("a", moved))
    moved.write_bytes(b"22")
    others = [
        sha256(utterance("a", moved)),
        sha256(utterance("a", tmp_path / "none" / "a.flac")),
        sha256(utterance("b", path)),
        sha256(utterance("a", path, text="other")),
        sha256(utterance("a", path, end_seconds=1.0)),
        sha256(utterance("a", path), {"limit": 1}),
        sha256(utterance("a", path), name="y"),
    ]
    assert len({first, *others}) == 8
