"""The items of a shard -> samples, and ledger entries for those that are left out or broken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from dmlm.pipeline.audio import load_utterance
from dmlm.pipeline.errors import AnnotationError, AudioError, ConfigError, ImageError, SampleError
from dmlm.pipeline.images import load_image
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import (
    Broken,
    ImageCaption,
    Modality,
    Sample,
    Skipped,
    SourceItem,
    TextLine,
    TokenArray,
    UnitInventory,
    UnitLine,
    Utterance,
)
from dmlm.pipeline.shards.card import fingerprint_sha256
from dmlm.pipeline.shards.format import encode_members
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.pipeline.tokenization.file_encoding import Encoded, Outcome, encode_files
from dmlm.pipeline.tokenization.quarantined_files import file_of, sha256_if_readable
from dmlm.pipeline.tokenization.separate_processes import SeparateProcesses
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.tokenizers import ImageTokenizer, SpeechTokenizer, TextTokenizer
from dmlm.pipeline.vocabulary import Vocabulary

Tokenizer = TypeVar("Tokenizer", SpeechTokenizer, ImageTokenizer)

_STAGES: Final = {AudioError: "audio", ImageError: "image"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOutcomes:
    """What became of the files of a task, where nothing has to be encoded for it; None: it has."""

    speech: Mapping[str, Outcome] | None = None
    """By key."""
    images: Mapping[Path, Outcome] | None = None


NOTHING_KNOWN: Final = KnownOutcomes()


@dataclass(frozen=True, kw_only=True)
class ItemEncoder:
    """The tokenizers that a source needs, and its text rule."""

    speech: SpeechTokenizer | None
    image: ImageTokenizer | None
    text: TextTokenizer
    text_rule: str
    units: UnitInventory | None = None
    """Of speech that comes as units; then `speech` is None."""
    decoders: SeparateProcesses = field(default_factory=SeparateProcesses)
    """Where files are decoded: one that crashes its decoder costs its own samples."""

    @property
    def fingerprints(self) -> dict[Modality, dict[str, Any]]:
        """Fingerprint of each tokenizer, with a `sha256` of the rest."""
        speech = self.speech or self.units
        tokenizers = {Modality.TEXT: self.text, Modality.SPEECH: speech, Modality.IMAGE: self.image}
        return {
            modality: {**tokenizer.fingerprint, "sha256": fingerprint_sha256(tokenizer.fingerprint)}
            for modality, tokenizer in tokenizers.items()
            if tokenizer is not None
        }

    @property
    def vocabulary(self) -> Vocabulary:
        """Sizes that the ids keep within."""
        speech = self.speech or self.units
        return Vocabulary(
            num_text=self.text.num_tokens,
            num_speech=speech.num_tokens if speech else 0,
            num_image=self.image.num_tokens if self.image else 0,
            bos_id=self.text.bos_id,
            eos_id=self.text.eos_id,
        )

    def encode(
        self, task: ShardTask, on_file: Callable[[], None], known: KnownOutcomes = NOTHING_KNOWN
    ) -> list[Sample | LedgerEntry]:
        """What becomes of each item of a task, in order; `on_file` is called after each file.

        Raises:
            ConfigError: The items need a tokenizer that is not there.
        """
        for _ in (*(known.speech or ()), *(known.images or ())):
            on_file()
        speech, images = known.speech, known.images
        if speech is None:
            speech = self._encode_speech(task.utterances, on_file)
        if images is None:
            images = self._encode_images(task.image_paths, on_file)
        return [self._finish_item(item, speech, images) for item in task.items]

    def _encode_speech(
        self, utterances: Sequence[Utterance], on_file: Callable[[], None]
    ) -> dict[str, Outcome]:
        if not utterances:
            return {}
        tokenizer = require(self.speech, Modality.SPEECH)
        decode = partial(load_utterance, sampling_rate_hz=tokenizer.sampling_rate_hz)
        load = partial(self.decoders.call, decode)
        outcomes = encode_files(utterances, load, tokenizer.encode, AudioError, on_file)
        return {item.key: outcome for item, outcome in zip(utterances, outcomes, strict=True)}

    def _encode_images(self, paths: Sequence[Path], on_file: Callable[[], None]) -> dict[Path, Outcome]:
        if not paths:
            return {}
        tokenizer = require(self.image, Modality.IMAGE)
        load = partial(self.decoders.call, load_image)
        outcomes = encode_files(paths, load, tokenizer.encode, ImageError, on_file)
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
                case TextLine():
                    sample = self._text_sample(item)
                case UnitLine():
                    sample = self._unit_sample(item)
            encode_members(sample)
        except SampleError as error:
            return _quarantined(item, _STAGES.get(type(error), "text"), error)
        return sample

    def _speech_sample(self, item: Utterance, encoded: Encoded) -> Sample:
        rate_hz = require(self.speech, Modality.SPEECH).sampling_rate_hz
        return self._sample(
            item,
            translation=item.translation,
            translation_language=item.translation_language,
            speaker=item.speaker,
            recording_id=item.recording_id,
            duration_seconds=encoded.length / rate_hz,
            overlap_seconds=item.overlap_seconds,
            speech_tokens=encoded.tokens,
            translation_tokens=self._text_tokens(item.translation),
        )

    def _image_sample(self, item: ImageCaption, encoded: Encoded) -> Sample:
        return self._sample(item, image_id=item.image_id, image_tokens=encoded.tokens)

    def _text_sample(self, item: TextLine) -> Sample:
        return self._sample(
            item,
            translation=item.translation,
            translation_language=item.translation_language,
            translation_tokens=self._text_tokens(item.translation),
        )

    def _unit_sample(self, item: UnitLine) -> Sample:
        return self._sample(item, speech_tokens=np.array(item.units.split(), dtype=np.int32))

    def _sample(self, item: Utterance | ImageCaption | TextLine | UnitLine, **fields: Any) -> Sample:
        """Sample with what every kind of item has, and with `fields`."""
        return Sample(
            key=item.key,
            source=item.source,
            split=item.split,
            text=item.text,
            language=item.language,
            text_tokens=self._text_tokens(item.text),
            **fields,
        )

    def _text_tokens(self, text: str | None) -> TokenArray | None:
        """None when the text rule leaves nothing to say."""
        ruled = apply_text_rule(self.text_rule, text or "")
        return self.text.encode(ruled) if ruled else None


def _encoded(outcome: Outcome) -> Encoded:
    if isinstance(outcome, SampleError):
        raise outcome
    return outcome


def require(tokenizer: Tokenizer | None, modality: Modality) -> Tokenizer:
    """The tokenizer; raises ConfigError when the codebook folder has none for `modality`."""
    if tokenizer is None:
        raise ConfigError(
            f"the codebook has no {modality} part; run `dmlm-cli build-codebook` with this source, and with "
            f"`--split` of a split that has such samples: it reads training splits alone by itself"
        )
    return tokenizer


def _skipped(item: Skipped) -> LedgerEntry:
    return LedgerEntry(
        key=item.key, outcome="skipped", stage="source", reason=item.reason, recording_id=item.recording_id
    )


def _quarantined(item: SourceItem, stage: str, error: SampleError) -> LedgerEntry:
    reason, path = str(error), file_of(item)
    # Names, not paths: the ledger is part of the data set and must not depend on where the corpus lies.
    if path is not None:
        reason = reason.replace(str(path), path.name)
    reason = reason.encode(errors="backslashreplace").decode()  # a name need not be UTF-8
    return LedgerEntry(
        key=item.key,
        outcome="quarantined",
        stage=stage,
        reason=reason,
        error=type(error).__name__,
        sha256=sha256_if_readable(path) if path is not None else None,
    )
