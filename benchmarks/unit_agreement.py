"""Which layer and how many clusters give units that do not depend on the speaker?

The same texts are spoken by two sample speakers each. For every layer × K: edit distance between the two
unit sequences (runs collapsed), and over that between different texts: 0 is speaker-independent, near 1 the
units tell nothing about the text.

    python benchmarks/unit_agreement.py [--fit 150] [--pairs 40] [--clusters 100 200 500]
"""

import argparse
from collections.abc import Sequence

import numpy as np

from dmlm.pipeline.codebooks.codebook import NearestCentroid
from dmlm.pipeline.codebooks.fitting import fit_codebook
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.whisper import open_whisper_encoder
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.synthesis.speech import EnglishVoice, make_speakers
from dmlm.pipeline.synthesis.texts import draw_texts
from dmlm.trainer.data.tasks import collapse_runs
from dmlm.trainer.scoring import count_edits

LAYERS = (2, 3, 4, None)


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    voice, speakers = EnglishVoice(), make_speakers(seed=0)
    texts = [reading.text for reading in draw_texts(seed=0).train.readings if len(reading.text.split()) > 3]
    texts = texts[: options.fit + options.pairs]

    def speak(first_speaker: int, some: Sequence[str]) -> list[Waveform]:
        return [
            voice.speak(text, speakers[(first_speaker + i) % len(speakers)], i) for i, text in enumerate(some)
        ]

    paired = texts[options.fit :]
    fit, one, other = speak(0, texts[: options.fit]), speak(0, paired), speak(5, paired)
    print("layer    K  same text  other text  ratio  units")
    for layer in LAYERS:
        encoder = open_whisper_encoder("whisper:tiny.en", layer=layer, window=WindowMode.EXACT, device="cpu")
        sets = [
            [item.activations_FD for item in encoder.encode(waveforms)] for waveforms in (fit, one, other)
        ]
        for num_clusters in options.clusters:
            codebook = fit_codebook(
                (frames_FD.numpy() for frames_FD in sets[0]),
                num_clusters=num_clusters,
                seed=0,
                encoder="whisper:tiny.en",
                features=encoder.fingerprint,
            )
            nearest = NearestCentroid(codebook.centroids_KD, encoder.device)
            first, second = (
                [collapse_runs(nearest(frames_FD).numpy()) for frames_FD in frames] for frames in sets[1:]
            )
            same, different = _distance(first, second), _distance(first, second[1:] + second[:1])
            length = np.mean([len(units) for units in first])
            name = layer or "last"
            distances = f"{same:10.3f} {different:11.3f} {same / different:6.3f}"
            print(f"{name:>5} {num_clusters:4} {distances} {length:6.0f}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Do units depend on the speaker?")
    parser.add_argument("--fit", type=int, default=150, help="texts that the codebooks are fitted on")
    parser.add_argument("--pairs", type=int, default=40, help="texts that two speakers speak")
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 200, 500])
    return parser.parse_args(arguments)


def _distance(references: Sequence[TokenArray], hypotheses: Sequence[TokenArray]) -> float:
    """Mean edit distance per unit of the reference."""
    edits = [
        count_edits([str(unit) for unit in reference], [str(unit) for unit in hypothesis])
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return float(np.mean([edit.num_errors / edit.num_reference for edit in edits]))


if __name__ == "__main__":
    main()
