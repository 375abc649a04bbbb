"""Speech units, way 1: the activations of an encoder and their nearest centroids."""

from collections.abc import Iterable, Iterator

import numpy as np

from dmlm.pipeline.codebook import Codebook, NearestCentroid
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.errors import FingerprintMismatchError
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
