"""`build-codebook`: a sample of the corpora -> speech codebook, image codebook, text tokenizer.

DIR/speech, DIR/image and DIR/text are written to a scratch folder and appear all at once, or, in a folder
that was there, before the card, so that a build that was killed leaves nothing that looks whole.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from dmlm.pipeline.audio import SAMPLING_RATE_HZ, load_utterance
from dmlm.pipeline.codebooks.codebook import Codebook, FitStatistics, load_codebook
from dmlm.pipeline.codebooks.config import (
    KMEANS,
    BuildCodebookConfig,
    check_config,
    num_bpe_entries,
    warn_of_unused,
)
from dmlm.pipeline.codebooks.corpus_sampling import CorpusSample, SourceShare, draw_sample
from dmlm.pipeline.codebooks.fitting import FitMode, fit_codebook
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.registry import absolute_encoder, choose_precision, open_encoder
from dmlm.pipeline.errors import ConfigError, SampleError
from dmlm.pipeline.images import load_image
from dmlm.pipeline.progress import track
from dmlm.pipeline.samples import ImageCaption, Modality, Utterance, Waveform
from dmlm.pipeline.sources import describe_options
from dmlm.pipeline.storage import is_vacant, publish_folder, scratch_for
from dmlm.pipeline.tokenizers.patch import ENCODER as PATCH
from dmlm.pipeline.tokenizers.patch import image_to_patches, patch_features
from dmlm.pipeline.tokenizers.pretrained import (
    PretrainedPart,
    absolute_name,
    name_image_part,
    name_speech_part,
    read_part,
)
from dmlm.pipeline.tokenizers.registry import CARD, is_codebook, load_tokenizers, read_card, write_card
from dmlm.pipeline.tokenizers.text import BPE, HuggingFaceTextTokenizer, load_text_tokenizer, train_bpe

__all__ = ["BuildCodebookConfig", "CodebookReport", "SourceShare", "build_codebook", "is_codebook"]

Item = TypeVar("Item", Utterance, ImageCaption)
Loaded = TypeVar("Loaded")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookReport:
    """What is in a codebook folder."""

    out_dir: Path
    was_there: bool
    """Nothing was done: the folder held the same codebook."""
    speech: FitStatistics | PretrainedPart | None
    image: FitStatistics | PretrainedPart | None
    num_text_tokens: int
    num_left_out: int
    """Items of the sample that were broken."""
    seconds: float

    def table(self) -> str:
        """A few lines to print."""
        fits = {"speech": self.speech, "image": self.image}
        lines = [f"{name:7} {_describe(fit)}" for name, fit in fits.items() if fit]
        lines.append(f"{'text':7} {self.num_text_tokens} tokens")
        ending = "was already there" if self.was_there else f"built in {self.seconds:.0f} s"
        broken = f"; {self.num_left_out} broken items left out" if self.num_left_out else ""
        return "\n".join([*lines, f"{self.out_dir}: {ending}{broken}"])


def build_codebook(config: BuildCodebookConfig) -> CodebookReport:
    """Fits every modality that the sources hold and publishes the folder.

    A folder that already holds a codebook of the same settings and data is left as it is.

    Raises:
        ConfigError: A setting cannot be honoured, or the folder holds something else.
    """
    start = time.monotonic()
    check_config(config)
    if not is_vacant(config.out_dir) and not is_codebook(config.out_dir):
        raise ConfigError(f"{config.out_dir}: exists and is not a codebook; choose another --out")
    sample = draw_sample(
        config.sources,
        config.root,
        splits=config.splits,
        options=config.options,
        limit=config.limit,
        seed=config.seed,
        audio_seconds=config.max_audio_seconds,
    )
    warn_of_unused(config, has_speech=sample.has_speech, has_images=bool(sample.images))
    settings = _settings(config, sample)
    left_out: list[str] = []
    if was_there := is_codebook(config.out_dir):
        _check_same_settings(config.out_dir, settings)
    else:
        _build(config, sample, settings, left_out)
    return CodebookReport(
        out_dir=config.out_dir,
        was_there=was_there,
        speech=_read_part(config.out_dir / Modality.SPEECH),
        image=_read_part(config.out_dir / Modality.IMAGE),
        num_text_tokens=load_tokenizers(config.out_dir).text.num_tokens,
        num_left_out=sample.num_broken + len(left_out),
        seconds=time.monotonic() - start,
    )


def _settings(config: BuildCodebookConfig, sample: CorpusSample) -> dict[str, Any]:
    """What the codebook depends on: settings resolved, data by its hash, no corpus paths."""
    settings = asdict(config)
    for name in ("root", "out_dir", "device", "options"):
        del settings[name]
    settings |= describe_options(config.options)
    settings["encoder"] = absolute_encoder(config.encoder)
    settings["precision"] = choose_precision(config.precision, config.encoder, config.device)
    settings["speech_tokenizer"] = absolute_name(config.speech_tokenizer)
    settings["image_tokenizer"] = absolute_name(config.image_tokenizer)
    settings["sources"] = [asdict(part.source) for part in sample.parts]
    settings["splits"] = [list(part.splits) for part in sample.parts]
    return {**settings, "sample_sha256": sample.sha256}


def _check_same_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    defaults = {field.name: field.default for field in fields(BuildCodebookConfig)}
    found = {**defaults, **read_card(directory)["settings"]}
    for name in settings:
        if found.get(name) != settings[name]:
            raise ConfigError(
                f"{directory}: holds a codebook of {name} {found.get(name)}, not {settings[name]};"
                " choose another --out or delete it"
            )


def _build(
    config: BuildCodebookConfig, sample: CorpusSample, settings: Mapping[str, Any], left_out: list[str]
) -> None:
    with scratch_for(config.out_dir, is_shared=True) as scratch:
        _make_text_tokenizer(config, sample).save(scratch / Modality.TEXT)
        if sample.images:
            _make_image_part(config, sample, left_out).save(scratch / Modality.IMAGE)
        if sample.has_speech:
            _make_speech_part(config, sample, left_out).save(scratch / Modality.SPEECH)
        write_card(scratch, settings)
        _publish(scratch, config.out_dir)


def _publish(scratch: Path, out_dir: Path) -> None:
    try:
        publish_folder(scratch, out_dir, last=CARD)
    except OSError:
        if not is_codebook(out_dir):
            raise
        if read_card(out_dir) != read_card(scratch):
            raise ConfigError(
                f"{out_dir}: another process has put another codebook there meanwhile; "
                "choose another --out, or use that one"
            ) from None


def _make_text_tokenizer(config: BuildCodebookConfig, sample: CorpusSample) -> HuggingFaceTextTokenizer:
    if config.text_tokenizer.startswith(BPE):
        return train_bpe(sample.texts, num_bpe_entries(config.text_tokenizer))
    return load_text_tokenizer(config.text_tokenizer)


def _make_image_part(
    config: BuildCodebookConfig, sample: CorpusSample, left_out: list[str]
) -> Codebook | PretrainedPart:
    if config.image_tokenizer == PATCH:
        return _fit_patches(config, sample, left_out)
    return name_image_part(config.image_tokenizer, config.image_resolution, config.device)


def _make_speech_part(
    config: BuildCodebookConfig, sample: CorpusSample, left_out: list[str]
) -> Codebook | PretrainedPart:
    if config.speech_tokenizer == KMEANS:
        return _fit_speech(config, sample, left_out)
    return name_speech_part(config.speech_tokenizer, config.device)


def _fit_patches(config: BuildCodebookConfig, sample: CorpusSample, left_out: list[str]) -> Codebook:
    images = track(sample.images, "image codebook", len(sample.images), "images")
    pixels = _readable(images, lambda image: load_image(image.image_path), left_out)
    return fit_codebook(
        (image_to_patches(image, config.image_resolution) for image in pixels),
        num_clusters=config.num_image_clusters,
        seed=config.seed,
        encoder=PATCH,
        features=patch_features(config.image_resolution),
        mode=FitMode(config.fit),
    )


def _fit_speech(config: BuildCodebookConfig, sample: CorpusSample, left_out: list[str]) -> Codebook:
    encoder = open_encoder(
        config.encoder,
        layer=config.layer,
        window=WindowMode(config.window),
        precision=choose_precision(config.precision, config.encoder, config.device),
        device=config.device,
    )
    waveforms = _draw_waveforms(sample, config.max_audio_seconds, left_out)
    activations = track(encoder.encode(waveforms), "speech codebook", unit="utterances")
    return fit_codebook(
        (item.activations_FD.cpu().numpy() for item in activations),
        num_clusters=config.num_clusters,
        seed=config.seed,
        encoder=absolute_encoder(config.encoder),
        features=encoder.fingerprint,
        mode=FitMode(config.fit),
        device=encoder.device,
    )


def _draw_waveforms(sample: CorpusSample, audio_seconds: float, left_out: list[str]) -> Iterator[Waveform]:
    for utterances, budget_seconds in sample.speech_budgets(audio_seconds):
        for waveform in _readable(utterances, load_utterance, left_out):
            yield waveform
            budget_seconds -= len(waveform) / SAMPLING_RATE_HZ
            if budget_seconds <= 0:
                break


def _readable(items: Iterable[Item], load: Callable[[Item], Loaded], left_out: list[str]) -> Iterator[Loaded]:
    """Yields what `load` makes of the items; broken ones are named and left out."""
    for item in items:
        try:
            loaded = load(item)
        except SampleError as error:
            left_out.append(item.key)
            _logger.warning("left out %s: %s", item.key, error)
        else:
            yield loaded


def _read_part(directory: Path) -> FitStatistics | PretrainedPart | None:
    if not directory.is_dir():
        return None
    return read_part(directory) or load_codebook(directory).statistics


def _describe(fit: FitStatistics | PretrainedPart) -> str:
    if isinstance(fit, PretrainedPart):
        return f"{fit.name}, not fitted here; its weights: {fit.terms.licence}"
    kept = f"measured on {fit.num_kept} of {fit.num_seen} vectors"
    explained = 1 - fit.inertia / fit.variance if fit.variance else 1.0
    return (
        f"{fit.num_used} clusters used (perplexity {fit.perplexity:.0f}), {explained:.0%} of variance, {kept}"
    )
