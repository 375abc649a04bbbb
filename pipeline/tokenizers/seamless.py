"""Speech units, way 2: the Seamless codec, XLS-R 1B's 35th block and 10,000 centroids, 50 units a second.

Suffixes: K cluster, D width.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from dmlm.pipeline.codebooks.codebook import NearestCentroid, Vectors
from dmlm.pipeline.converters.xlsr import CONFIG, convert_xlsr
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.encoders.wav2vec2 import Wav2Vec2Encoder, load_wav2vec2
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenizers import Fingerprint

if TYPE_CHECKING:
    from dmlm.pipeline.encoders.xlsr_fairseq2 import XlsrFairseq2Encoder

NUM_UNITS = 10_000
LAYER = 35
BACKENDS = ("transformers", "fairseq2")
CHECKPOINT, CENTROIDS, CONVERTED = "xlsr2_1b_v2.pt", "kmeans_10k.npy", "xlsr2_1b_v2"
ADDRESS = "https://dl.fbaipublicfiles.com/seamlessM4T/models/unit_extraction/"
"""Where Meta publishes both files, under CC BY-NC 4.0."""
MAX_HEADER_BYTES = 1_000


class SeamlessTokenizer:
    """16 kHz waveforms to units, one per frame of XLS-R, runs kept; a SpeechTokenizer."""

    def __init__(self, encoder: SpeechEncoder, centroids_KD: Vectors, centroids_sha256: str) -> None:
        """Takes an encoder of the codec's layer that leaves its input as it is."""
        self._encoder, self._sha256 = encoder, centroids_sha256
        self._num_units = len(centroids_KD)
        self._quantise = NearestCentroid(centroids_KD, encoder.device)

    @property
    def num_tokens(self) -> int:
        """10,000."""
        return self._num_units

    @property
    def sampling_rate_hz(self) -> int:
        """16,000."""
        return self._encoder.sampling_rate_hz

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder's, the size of its batches and the sha256 of the centroids' file."""
        return {
            "speech_tokenizer": "seamless",
            "backend": "transformers",
            **self._encoder.fingerprint,
            "batch_seconds": self._encoder.batch_seconds,
            "num_clusters": self.num_tokens,
            "codebook_sha256": self._sha256,
        }

    def encode(self, waveforms: Iterable[Waveform]) -> Iterator[TokenArray]:
        """Yields the units of each waveform, in the order given."""
        for ids_F in self._encoder.map_frames(map(normalise_evenly, waveforms), self._quantise):
            yield ids_F.cpu().numpy().astype(np.int32)


def normalise_evenly(waveform: Waveform) -> Waveform:
    """Layer norm over the whole waveform; an odd number of samples is made even before, with a 1.

    The 1 is the padding value of the released code, and so part of what the units mean.
    """
    padded = torch.from_numpy(np.pad(waveform, (0, len(waveform) % 2), constant_values=1))
    normalised: Waveform = F.layer_norm(padded, padded.shape).numpy()
    return normalised


def open_seamless_tokenizer(
    directory: Path, *, device: str = "auto", backend: str = "transformers"
) -> SeamlessTokenizer:
    """The codec from a folder with `xlsr2_1b_v2.pt` and `kmeans_10k.npy`.

    The checkpoint is converted once, into a folder beside it; it may be deleted afterwards.

    Args:
        directory: The folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend: `transformers`, or `fairseq2` to run the reference implementation.

    Raises:
        ConfigError: The files are not there, or no such backend.
        CorruptInputError: A file is damaged or another than it should be.
        MissingDependencyError: fairseq2 is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unit backend {backend}: one of {', '.join(BACKENDS)}")
    converted = directory / CONVERTED
    has_weights = (converted / CONFIG).is_file() or (directory / CHECKPOINT).is_file()
    if not has_weights or not (directory / CENTROIDS).is_file():
        raise ConfigError(
            f"{directory}: the Seamless codec needs {CHECKPOINT} and {CENTROIDS} there (CC BY-NC 4.0, from"
            f" {ADDRESS}); see docs/seamless.md"
        )
    convert_xlsr(directory / CHECKPOINT, converted)
    encoder = _open_encoder(converted, device, backend)
    centroids_KD = read_centroids(directory / CENTROIDS, encoder.width)
    return SeamlessTokenizer(encoder, centroids_KD, sha256_file(directory / CENTROIDS))


def read_centroids(path: Path, width: int) -> Vectors:
    """Centroids K × D of an npy file, float32; a file that could run code is refused unread.

    Raises:
        CorruptInputError: The file is cut, or no matrix of 10,000 × `width` finite floats.
    """
    try:
        stored = np.lib.format.open_memmap(path, mode="r", max_header_size=MAX_HEADER_BYTES)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptInputError(f"{path}: not a whole npy file ({error}); fetch it again") from error
    if stored.shape != (NUM_UNITS, width) or stored.dtype.kind != "f":
        expected = f"float32 of shape {(NUM_UNITS, width)}"
        raise CorruptInputError(f"{path}: {stored.dtype} of shape {stored.shape}, expected {expected}")
    centroids_KD: Vectors = np.array(stored, np.float32)
    if not np.isfinite(centroids_KD).all():
        raise CorruptInputError(f"{path} holds values that are not finite; fetch it again")
    return centroids_KD


def _open_encoder(converted: Path, device: str, backend: str) -> "Wav2Vec2Encoder | XlsrFairseq2Encoder":
    if backend == "fairseq2":
        from dmlm.pipeline.encoders.xlsr_fairseq2 import XlsrFairseq2Encoder

        return XlsrFairseq2Encoder(converted, layer=LAYER, device=device)
    model, _ = load_wav2vec2(str(converted))
    # Zero mean and unit variance are the tokenizer's work, for it pads first.
    return Wav2Vec2Encoder(model, layer=LAYER, do_normalize=False, device=device)
