"""COCO captions: SPLIT/*.jpg and annotations/captions_SPLIT.json of 2014 or 2017; one item per caption.

With Karpathy's dataset_coco.json the splits are his (train with restval, val, test); its images are found by
`cocoid` in the folders of either year. Captions of an image follow each other. An image without a caption is
image-only; a caption whose image file is not there is skipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, SourceItem
from dmlm.pipeline.sources.coco_annotations import KARPATHY_SPLITS, read_captions, read_karpathy
from dmlm.pipeline.sources.interface import CocoPartition, SourceOptions

EXPECTED = "annotations/captions_SPLIT.json with SPLIT/*.jpg, or dataset_coco.json,"
NAME = "coco"

_PREFIX, _SUFFIX = "captions_", ".json"
_KARPATHY: Final = "karpathy"
_KARPATHY_ADDRESS = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_KARPATHY_PLACES = ("dataset_coco.json", "annotations/dataset_coco.json", "karpathy/dataset_coco.json")
_IMAGE_FILES = (
    "train2017/{:012d}.jpg",
    "val2017/{:012d}.jpg",
    "train2014/COCO_train2014_{:012d}.jpg",
    "val2014/COCO_val2014_{:012d}.jpg",
)
"""Where the image of an id may lie; both years have the same images, shared out differently."""


def is_present(corpus_dir: Path) -> bool:
    """Whether there is an annotation file with its folder of images, or Karpathy's file."""
    return bool(_find_partitions(corpus_dir))


def every_choice(corpus_dir: Path, options: SourceOptions) -> tuple[SourceOptions, ...]:
    """Options for each year where both are there and nothing says which; else just `options`."""
    partitions = _find_partitions(corpus_dir)
    if options.coco_splits or _KARPATHY in partitions:
        return (options,)
    return tuple(replace(options, coco_splits=year) for year in partitions)


def with_partition_of(corpus_dir: Path, splits: Sequence[str], options: SourceOptions) -> SourceOptions:
    """Options that name the partition of these splits, where none is named and only one has them all."""
    having = [name for name, present in _find_partitions(corpus_dir).items() if {*splits} <= {*present}]
    is_plain = options.coco_splits is None and len(having) == 1
    return replace(options, coco_splits=having[0]) if is_plain else options


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Splits of the partition chosen, sorted: those whose annotation file and image folder are both there.

    Raises:
        ConfigError: The partition is not there, or none was chosen and both years are.
    """
    partitions = _find_partitions(corpus_dir)
    return partitions[_choose_partition(corpus_dir, list(partitions), options.coco_splits)]


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the captions of a split, sorted by image id and caption id.

    Raises:
        CorruptInputError: The annotation file as a whole cannot be read.
    """
    karpathy_path = _find_karpathy(corpus_dir)
    if karpathy_path and split in KARPATHY_SPLITS.values():
        path, annotations = karpathy_path, read_karpathy(karpathy_path, split)
    else:
        path = corpus_dir / "annotations" / f"{_PREFIX}{split}{_SUFFIX}"
        annotations = read_captions(path)
    for number, fault in enumerate(annotations.faults):
        yield Broken(key=f"{path.stem}-{number}", source=NAME, split=split, reason=f"{path.name}: {fault}")
    for image_id, file_name in sorted(annotations.file_names.items()):
        image_path = corpus_dir / split / file_name if file_name else _find_image(corpus_dir, image_id)
        yield from _iter_image(split, image_id, image_path, annotations.captions.get(image_id))


def _iter_image(
    split: str, image_id: int, image_path: Path | None, captions: list[tuple[int, str]] | None
) -> Iterator[SourceItem]:
    keyed: list[tuple[str, str | None]] = [(str(image_id), None)]
    if captions:
        keyed = [(f"{image_id}-{caption_id}", caption) for caption_id, caption in sorted(captions)]
    found = image_path if image_path and image_path.is_file() else None
    for key, caption in keyed:
        if found:
            yield ImageCaption(
                key=key,
                source=NAME,
                split=split,
                image_path=found,
                image_id=str(image_id),
                text=caption or None,
                language="en" if caption else None,
            )
        else:
            yield Skipped(
                key=key, source=NAME, split=split, reason="no image file", recording_id=str(image_id)
            )


def _find_image(corpus_dir: Path, image_id: int) -> Path | None:
    paths = (corpus_dir / pattern.format(image_id) for pattern in _IMAGE_FILES)
    return next((path for path in paths if path.is_file()), None)


def _find_partitions(corpus_dir: Path) -> dict[CocoPartition, tuple[str, ...]]:
    """Splits of each partition that is there."""
    paths = (corpus_dir / "annotations").glob(f"{_PREFIX}*{_SUFFIX}")
    names = sorted(path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for path in paths)
    present = [name for name in names if (corpus_dir / name).is_dir()]
    partitions: dict[CocoPartition, tuple[str, ...]] = {
        "2014": tuple(name for name in present if name.endswith("2014")),
        "2017": tuple(name for name in present if not name.endswith("2014")),
    }
    if _find_karpathy(corpus_dir):
        partitions[_KARPATHY] = tuple(sorted(set(KARPATHY_SPLITS.values())))
    return {name: splits for name, splits in partitions.items() if splits}


def _find_karpathy(corpus_dir: Path) -> Path | None:
    paths = (corpus_dir / place for place in _KARPATHY_PLACES)
    return next((path for path in paths if path.is_file()), None)


def _choose_partition(
    corpus_dir: Path, present: list[CocoPartition], wanted: CocoPartition | None
) -> CocoPartition:
    chosen = wanted or (_KARPATHY if _KARPATHY in present else None)
    if chosen is None and len(present) == 1:
        return present[0]
    if chosen in present:
        return chosen
    problem = f"no {wanted} splits" if wanted else "splits of several years"
    advice = f"; dataset_coco.json is in {_KARPATHY_ADDRESS}" if wanted == _KARPATHY else ""
    raise ConfigError(
        f"{NAME}: {problem} in {corpus_dir}; give --coco-splits, one of {', '.join(present)}{advice}"
    )
