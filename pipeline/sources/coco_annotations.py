"""The two caption files of COCO: captions_SPLIT.json of the consortium, and Karpathy's dataset_coco.json."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dmlm.pipeline.errors import CorruptInputError

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
"""His splits by what the file calls them: `restval`, the rest of val2014, is trained on too."""


@dataclass(slots=True)
class Annotations:
    """Images and captions of one split, and what cannot be used."""

    file_names: dict[int, str | None] = field(default_factory=dict)
    """By image id; None: the file does not say, the id tells."""
    captions: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    """Caption ids and texts by image id."""
    faults: list[str] = field(default_factory=list)


def read_captions(path: Path) -> Annotations:
    """Content of captions_SPLIT.json.

    Raises:
        CorruptInputError: The file as a whole cannot be read.
    """
    images, captions = _read_lists(path, "images", "annotations")
    annotations = Annotations()
    for image in images:
        match image:
            case {"id": int(image_id), "file_name": str(file_name)} if Path(file_name).name == file_name:
                annotations.file_names[image_id] = file_name
            case _:
                annotations.faults.append(f"image without id or plain file name: {str(image)[:80]}")
    for caption in captions:
        _add_caption(annotations, caption)
    return annotations


def read_karpathy(path: Path, split: str) -> Annotations:
    """Content of dataset_coco.json for one split; images are known by `cocoid`, captions by `sentid`.

    Raises:
        CorruptInputError: The file as a whole cannot be read.
    """
    (images,) = _read_lists(path, "images")
    annotations = Annotations()
    for image in images:
        match image:
            case {"cocoid": int(image_id), "split": str(name), "sentences": list(sentences)} if (
                name in KARPATHY_SPLITS
            ):
                if KARPATHY_SPLITS[name] == split:
                    annotations.file_names[image_id] = None
                    _add_sentences(annotations, image_id, sentences)
            case _ if split == "train":  # once, not in every split
                annotations.faults.append(f"image without cocoid, split or sentences: {str(image)[:80]}")
    return annotations


def _add_caption(annotations: Annotations, caption: object) -> None:
    match caption:
        case {"id": int(caption_id), "image_id": int(image_id), "caption": str(text)}:
            if image_id in annotations.file_names:
                annotations.captions.setdefault(image_id, []).append((caption_id, text))
            else:
                annotations.faults.append(f"caption {caption_id}: no image {image_id}")
        case _:
            annotations.faults.append(f"caption without id, image id or text: {str(caption)[:80]}")


def _add_sentences(annotations: Annotations, image_id: int, sentences: Iterable[object]) -> None:
    for sentence in sentences:
        match sentence:
            case {"sentid": int(caption_id), "raw": str(text)}:
                annotations.captions.setdefault(image_id, []).append((caption_id, text))
            case _:
                annotations.faults.append(f"image {image_id}: no sentid or raw text: {str(sentence)[:80]}")


def _read_lists(path: Path, *names: str) -> list[list[object]]:
    try:
        content = json.loads(path.read_bytes())
        lists = [content[name] for name in names]
        if not all(isinstance(entry, list) for entry in lists):
            raise TypeError(f"{' and '.join(names)} must be lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptInputError(
            f"{path}: not a COCO caption file ({type(error).__name__}: {error}); download it again"
        ) from error
    return lists
