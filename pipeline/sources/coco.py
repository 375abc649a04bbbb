"""COCO captions: SPLIT/*.jpg and annotations/captions_SPLIT.json; one item per caption.

Captions of an image follow each other. An image without a caption is image-only; a caption whose image
file is not there is skipped.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dmlm.pipeline.errors import CorruptInputError
from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, SourceItem
from dmlm.pipeline.sources.interface import SourceOptions

EXPECTED = "annotations/captions_SPLIT.json and SPLIT/*.jpg"
NAME = "coco"

_PREFIX, _SUFFIX = "captions_", ".json"


@dataclass(slots=True)
class _Annotations:
    """One annotation file: file names and captions by image id, and what cannot be used."""

    file_names: dict[int, str] = field(default_factory=dict)
    captions: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def is_present(corpus_dir: Path) -> bool:
    """Whether there is an annotation file with its folder of images."""
    return bool(_list_splits(corpus_dir))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Splits whose annotation file and image folder are both there, sorted."""
    return _list_splits(corpus_dir)


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the captions of a split, sorted by image id and caption id.

    Raises:
        CorruptInputError: The annotation file as a whole cannot be read.
    """
    path = corpus_dir / "annotations" / f"{_PREFIX}{split}{_SUFFIX}"
    annotations = _read_annotations(path)
    for number, fault in enumerate(annotations.faults):
        yield Broken(key=f"{path.stem}-{number}", source=NAME, split=split, reason=f"{path.name}: {fault}")
    for image_id in sorted(annotations.file_names):
        captions = annotations.captions.get(image_id)
        image_path = corpus_dir / split / annotations.file_names[image_id]
        yield from _iter_image(split, image_id, image_path, captions)


def _iter_image(
    split: str, image_id: int, image_path: Path, captions: list[tuple[int, str]] | None
) -> Iterator[SourceItem]:
    keyed: list[tuple[str, str | None]] = [(str(image_id), None)]
    if captions:
        keyed = [(f"{image_id}-{caption_id}", caption) for caption_id, caption in sorted(captions)]
    image_is_there = image_path.is_file()
    for key, caption in keyed:
        if image_is_there:
            yield ImageCaption(
                key=key,
                source=NAME,
                split=split,
                image_path=image_path,
                image_id=str(image_id),
                text=caption or None,
                language="en" if caption else None,
            )
        else:
            yield Skipped(
                key=key, source=NAME, split=split, reason="no image file", recording_id=str(image_id)
            )


def _read_annotations(path: Path) -> _Annotations:
    try:
        content = json.loads(path.read_bytes())
        images, captions = content["images"], content["annotations"]
        if not (isinstance(images, list) and isinstance(captions, list)):
            raise TypeError("images and annotations must be lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptInputError(
            f"{path}: not a COCO caption file ({type(error).__name__}: {error}); download it again"
        ) from error
    annotations = _Annotations()
    for image in images:
        _add_image(annotations, image)
    for caption in captions:
        _add_caption(annotations, caption)
    return annotations


def _add_image(annotations: _Annotations, image: object) -> None:
    match image:
        case {"id": int(image_id), "file_name": str(file_name)} if Path(file_name).name == file_name:
            annotations.file_names[image_id] = file_name
        case _:
            annotations.faults.append(f"image without id or plain file name: {str(image)[:80]}")


def _add_caption(annotations: _Annotations, caption: object) -> None:
    match caption:
        case {"id": int(caption_id), "image_id": int(image_id), "caption": str(text)}:
            if image_id in annotations.file_names:
                annotations.captions.setdefault(image_id, []).append((caption_id, text))
            else:
                annotations.faults.append(f"caption {caption_id}: no image {image_id}")
        case _:
            annotations.faults.append(f"caption without id, image id or text: {str(caption)[:80]}")


def _list_splits(corpus_dir: Path) -> tuple[str, ...]:
    paths = (corpus_dir / "annotations").glob(f"{_PREFIX}*{_SUFFIX}")
    names = (path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for path in paths)
    return tuple(sorted(name for name in names if (corpus_dir / name).is_dir()))
