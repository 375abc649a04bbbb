"""Speech units, way 1: the activations of an encoder and their nearest centroids."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from dmlm.pipeline.codebooks.codebook import Codebook, NearestCentroid
from dmlm.pipeline.encoders import Precision, SpeechEncoder, WindowMode
from dmlm.pipeline.encoders.registry import open_encoder
from dmlm.pipeline.errors import CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.tokenizers import Fingerprint


class KMeansTokenizer:
    """Waveforms to units, one per frame of the encoder; a SpeechTokenizer."""

    def __init__(self, encoder: SpeechEncoder, codebook: Codebook) -> None:
        """Refuses a codebook of other activations.

        Raises:
            FingerprintMismatchError: The codebook was fitted on another encoder, layer or window mode.
        """
        check_same_features(encoder.fingerprint, codebook.features)
        self._encoder, self._codebook = encoder, codebook
        self._quantise = NearestCentroid(codebook.centroids_KD, encoder.device)

    @property
    def num_tokens(self) -> int:
        """Clusters of the codebook."""
        return self._codebook.num_clusters

    @property
    def sampling_rate_hz(self) -> int:
        """The encoder's."""
        return self._encoder.sampling_rate_hz

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder's, the size of its batches and the codebook's sha256."""
        return {
            **self._encoder.fingerprint,
            "batch_seconds": self._encoder.batch_seconds,
            "num_clusters": self.num_tokens,
            "codebook_sha256": self._codebook.sha256,
        }

    def encode(self, waveforms: Iterable[Waveform]) -> Iterator[TokenArray]:
        """Yields the units of each waveform, one per encoder frame, in the order given."""
        for ids_F in self._encoder.map_frames(waveforms, self._quantise):
            yield ids_F.cpu().numpy().astype(np.int32)


def open_kmeans_tokenizer(
    codebook: Codebook,
    device: str,
    *,
    window: WindowMode | None = None,
    precision: Precision | None = None,
) -> KMeansTokenizer:
    """Tokenizer of a codebook with the encoder that it was fitted on.

    Args:
        codebook: From `load_codebook`.
        device: Of the encoder.
        window: Another window mode than that of the fit, to compare; None: the same.
        precision: The same for the precision.

    Raises:
        ConfigError: The weights of the encoder cannot be found.
        CorruptInputError: The codebook names settings that no encoder has.
        FingerprintMismatchError: The weights found are not those that it was fitted on.
    """
    wanted = {"window": window, "precision": precision}
    features = {**codebook.features, **{name: str(value) for name, value in wanted.items() if value}}
    codebook = replace(codebook, features=features)
    return KMeansTokenizer(open_encoder_of(codebook, device), codebook)


def open_encoder_of(codebook: Codebook, device: str) -> SpeechEncoder:
    """The encoder that a codebook names; errors as `open_kmeans_tokenizer`."""
    features = codebook.features
    layer = features.get("layer", "last")
    try:
        window = WindowMode(str(features.get("window", WindowMode.EXACT)))
        precision = Precision(str(features.get("precision", Precision.FLOAT32)))
    except ValueError as error:
        raise CorruptInputError(
            f"codebook of {codebook.encoder}: {error}; build the codebook again"
        ) from error
    if not (layer == "last" or isinstance(layer, int)):
        raise CorruptInputError(f"codebook of {codebook.encoder}: layer {layer}; build the codebook again")
    return open_encoder(
        codebook.encoder,
        layer=layer if isinstance(layer, int) else None,
        window=window,
        precision=precision,
        device=device,
    )


def check_same_features(encoder: Fingerprint, codebook: Fingerprint) -> None:
    """Raises FingerprintMismatchError when a codebook was fitted on other activations than the encoder's."""
    differing = sorted(
        name for name in encoder.keys() | codebook.keys() if encoder.get(name) != codebook.get(name)
    )
    if differing:
        ours = ", ".join(f"{name}={encoder.get(name)}" for name in differing)
        theirs = ", ".join(f"{name}={codebook.get(name)}" for name in differing)
        raise FingerprintMismatchError(
            f"the encoder has {ours}, but the codebook was fitted with {theirs};"
            " use that encoder or build another codebook"
        )
