"""The items of a shard -> samples, and ledger entries for those that are left out or broken.

Files are loaded ahead by a few threads while the tokenizer computes; a file that cannot be loaded costs its
own samples and nothing else.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.errors import AnnotationError, AudioError, ConfigError, DmlmError, ImageError, SampleError
from dmlm.pipeline.images import load_image
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import (
    Broken,
    ImageCaption,
    Modality,
    Pixels,
    Sample,
    Skipped,
    SourceItem,
    TokenArray,
    Utterance,
    Waveform,
)
from dmlm.pipeline.shard_tasks import ShardTask
from dmlm.pipeline.shards.card import fingerprint_sha256
from dmlm.pipeline.shards.format import encode_members
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.pipeline.tokenizers import ImageTokenizer, SpeechTokenizer, TextTokenizer
from dmlm.pipeline.vocabulary import Vocabulary

T = TypeVar("T")
Raw = TypeVar("Raw", Waveform, Pixels)
Tokenizer = TypeVar("Tokenizer", SpeechTokenizer, ImageTokenizer)

NUM_LOADERS: Final = min(8, os.cpu_count() or 1)
MAX_LOADED_AHEAD: Final = 2 * NUM_LOADERS

_STAGES: Final = {AudioError: "audio", ImageError: "image"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one file, and the length of what was loaded: audio samples, or rows of pixels."""

    tokens: TokenArray
    length: int


Outcome = Encoded | SampleError


@dataclass(frozen=True, kw_only=True)
class ItemEncoder:
    """The tokenizers that a source needs, and its text rule."""

    speech: SpeechTokenizer | None
    image: ImageTokenizer | None
    text: TextTokenizer
    text_rule: str

    @property
    def fingerprints(self) -> dict[Modality, dict[str, Any]]:
        """Fingerprint of each tokenizer, with a `sha256` of the rest."""
        tokenizers = {Modality.TEXT: self.text, Modality.SPEECH: self.speech, Modality.IMAGE: self.image}
        return {
            modality: {**tokenizer.fingerprint, "sha256": fingerprint_sha256(tokenizer.fingerprint)}
            for modality, tokenizer in tokenizers.items()
            if tokenizer is not None
        }

    @property
    def vocabulary(self) -> Vocabulary:
        """Sizes that the ids keep within."""
        return Vocabulary(
            num_text=self.text.num_tokens,
            num_speech=self.speech.num_tokens if self.speech else 0,
            num_image=self.image.num_tokens if self.image else 0,
            bos_id=self.text.bos_id,
            eos_id=self.text.eos_id,
        )

    def encode(self, task: ShardTask, on_file: Callable[[], None]) -> list[Sample | LedgerEntry]:
        """What becomes of each item of a task, in order; `on_file` is called after each file.

        Raises:
            ConfigError: The items need a tokenizer that is not there.
        """
        speech = self._encode_speech(task.utterances, on_file)
        images = self._encode_images(task.image_paths, on_file)
        return [self._finish_item(item, speech, images) for item in task.items]

    def _encode_speech(
        self, utterances: Sequence[Utterance], on_file: Callable[[], None]
    ) -> dict[str, Outcome]:
        if not utterances:
            return {}
        tokenizer = require(self.speech, Modality.SPEECH)
        rate_hz = tokenizer.sampling_rate_hz

        def load(item: Utterance) -> Waveform:
            return load_waveform(item.audio_path, item.start_seconds, item.end_seconds, rate_hz)

        outcomes = encode_files(utterances, load, tokenizer.encode, AudioError, on_file)
        return {item.key: outcome for item, outcome in zip(utterances, outcomes, strict=True)}

    def _encode_images(self, paths: Sequence[Path], on_file: Callable[[], None]) -> dict[Path, Outcome]:
        if not paths:
            return {}
        tokenizer = require(self.image, Modality.IMAGE)
        outcomes = encode_files(paths, load_image, tokenizer.encode, ImageError, on_file)
        return dict(zip(paths, outcomes, strict=True))

    def _finish_item(
        self, item: SourceItem, speech: Mapping[str, Outcome], images: Mapping[Path, Outcome]
    ) -> Sample | LedgerEntry:
        try:
            match item:
                case Skipped():
                    return _skipped(item)
                case Broken():
                    return _quarantined(item, "source", AnnotationError(item.reason))
                case Utterance():
                    sample = self._speech_sample(item, _encoded(speech[item.key]))
                case ImageCaption():
                    sample = self._image_sample(item, _encoded(images[item.image_path]))
            encode_members(sample)
        except SampleError as error:
            return _quarantined(item, _STAGES.get(type(error), "text"), error)
        return sample

    def _speech_sample(self, item: Utterance, encoded: Encoded) -> Sample:
        rate_hz = require(self.speech, Modality.SPEECH).sampling_rate_hz
        return Sample(
            key=item.key,
            source=item.source,
            split=item.split,
            text=item.text,
            language=item.language,
            translation=item.translation,
            translation_language=item.translation_language,
            speaker=item.speaker,
            recording_id=item.recording_id,
            duration_seconds=encoded.length / rate_hz,
            overlap_seconds=item.overlap_seconds,
            speech_tokens=encoded.tokens,
            text_tokens=self._text_tokens(item.text),
            translation_tokens=self._text_tokens(item.translation),
        )

    def _image_sample(self, item: ImageCaption, encoded: Encoded) -> Sample:
        return Sample(
            key=item.key,
            source=item.source,
            split=item.split,
            text=item.text,
            language=item.language,
            image_id=item.image_id,
            image_tokens=encoded.tokens,
            text_tokens=self._text_tokens(item.text),
        )

    def _text_tokens(self, text: str | None) -> TokenArray | None:
        """None when the text rule leaves nothing to say."""
        ruled = apply_text_rule(self.text_rule, text or "")
        return self.text.encode(ruled) if ruled else None


def encode_files(
    items: Sequence[T],
    load: Callable[[T], Raw],
    encode: Callable[[Iterable[Raw]], Iterator[TokenArray]],
    error_type: type[SampleError],
    on_file: Callable[[], None],
) -> list[Outcome]:
    """Loads each item and encodes what could be loaded; one outcome for each item, in their order."""
    failed: dict[int, SampleError] = {}
    lengths: dict[int, int] = {}

    def loaded() -> Iterator[Raw]:
        for index, raw in enumerate(load_ahead(items, load, error_type)):
            if isinstance(raw, SampleError):
                failed[index] = raw
                on_file()
            else:
                lengths[index] = len(raw)
                yield raw

    tokens = []
    for ids in encode(loaded()):
        tokens.append(ids)
        on_file()
    encoded = zip(lengths.items(), tokens, strict=True)
    outcomes = failed | {index: Encoded(ids, length) for (index, length), ids in encoded}
    return [outcomes[index] for index in range(len(items))]


def load_ahead(
    items: Iterable[T], load: Callable[[T], Raw], error_type: type[SampleError]
) -> Iterator[Raw | SampleError]:
    """Yields what `load` gives for each item, in order; a few are loaded while the consumer works.

    Whatever a decoder raises costs its own sample only; errors of settings and packages end the run.
    """

    def load_or_error(item: T) -> Raw | SampleError:
        try:
            return load(item)
        except SampleError as error:
            return error
        except (DmlmError, ImportError):
            raise
        except Exception as error:
            return error_type(f"{type(error).__name__}: {error}")

    pending: deque[Future[Raw | SampleError]] = deque()
    with ThreadPoolExecutor(NUM_LOADERS) as pool:
        for item in items:
            pending.append(pool.submit(load_or_error, item))
            if len(pending) > MAX_LOADED_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encoded(outcome: Outcome) -> Encoded:
    if isinstance(outcome, SampleError):
        raise outcome
    return outcome


def require(tokenizer: Tokenizer | None, modality: Modality) -> Tokenizer:
    """The tokenizer; raises ConfigError when the codebook folder has none for `modality`."""
    if tokenizer is None:
        raise ConfigError(
            f"the codebook has no {modality} part; run `dmlm-cli build-codebook` with this source"
        )
    return tokenizer


def _skipped(item: Skipped) -> LedgerEntry:
    return LedgerEntry(
        key=item.key, outcome="skipped", stage="source", reason=item.reason, recording_id=item.recording_id
    )


def _quarantined(item: SourceItem, stage: str, error: SampleError) -> LedgerEntry:
    reason = str(error)
    # Names, not paths: the ledger is part of the data set and must not depend on where the corpus lies.
    if path := _file_of(item):
        reason = reason.replace(str(path), path.name)
    return LedgerEntry(
        key=item.key, outcome="quarantined", stage=stage, reason=reason, error=type(error).__name__
    )


def _file_of(item: SourceItem) -> Path | None:
    match item:
        case Utterance():
            return item.audio_path
        case ImageCaption():
            return item.image_path
        case _:
            return None
