"""Two modalities, 100 times as many tokens of one as of the other: what the normalisation is for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlm.pipeline.samples import Modality, Sample
from dmlm.trainer.config import Recipe, TrainConfig, recipe_from_json
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.data.tasks import MODALITIES
from dmlm.trainer.loop import train
from dmlm.trainer.loss import count_loss_tokens, token_weights
from dmlm.trainer.models.model import build_model
from dmlm.trainer.models.packed_forward import PackedModel

NUM_UNITS = 199  # with </speech> 200 speech tokens, beside one letter and EOS: 100 to 1


@dataclass(frozen=True)
class Outcome:
    text_share_of_gradient: float
    """At the first step, on all weights."""
    text_loss: float
    """Over the last steps, in nats."""
    speech_loss: float
    share_of_tokens: float
    """Of text, among the tokens that carry loss."""


def samples() -> Iterator[Sample]:
    """Random units; the letter tells which half of the codebook they are from."""
    rng = np.random.default_rng(0)
    for i in range(64):
        half = i % 2
        yield Sample(
            key=f"long-{i:02d}",
            source="long",
            split="train",
            language="en",
            speech_tokens=rng.integers(10 * half, 10 * half + 10, NUM_UNITS).astype(np.int32),
            text_tokens=np.array([100 + half], np.int32),
        )


def recipe_of(normalise: str) -> Recipe:
    return recipe_from_json(
        {
            "name": normalise,
            "num_steps": 40,
            "mix": [{"task": "asr", "weight": 1}],
            "model": {"num_layers": 2, "width": 32, "num_heads": 2, "dropout": 0.0},
            "sequence": {"max_length": 256},
            "loss": {"normalise": normalise},
            "batch": {"max_tokens": 1024, "pool_size": 8},
            "optimizer": {"learning_rate": 3.0e-3, "num_warmup_steps": 5},
            "save_every_steps": 40,
            "log_every_steps": 10,
        }
    )


def gradient_share(shards: Path, recipe: Recipe) -> float:
    """Norm of the gradient that text gives, as a share of the norms of both."""
    data = open_training_data([shards])
    text_dir = data.codebook_dirs[Modality.TEXT]
    model = build_model(recipe.model, data.vocabulary, text_dir=text_dir, max_length=256, seed=0)
    packed = PackedModel(model)
    (batch,) = TokenStream(data, recipe, seed=0).next_step()
    weights = token_weights(batch, count_loss_tokens([batch]), recipe.loss)
    norms = {}
    for modality in (Modality.TEXT, Modality.SPEECH):
        mine = batch.modality_N == MODALITIES.index(modality)
        loss, _ = packed(batch, weights * mine)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        norms[modality] = torch.cat([part.flatten() for part in parts]).norm().item()
    return norms[Modality.TEXT] / sum(norms.values())


@pytest.fixture(scope="module")
def outcomes(
    write_shards: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("normalised")
    shards = write_shards(folder / "shards", list(samples()))
    outcomes = {}
    for normalise in ("none", "batch", "sequence"):
        recipe = recipe_of(normalise)
        report = train(TrainConfig(shards=(shards,), recipe=recipe, out_dir=folder / normalise))
        assert report.last is not None
        losses, shares = report.last.loss_by_modality, report.last.share_by_modality
        outcomes[normalise] = Outcome(
            gradient_share(shards, recipe), losses["text"], losses["speech"], shares["text"]
        )
        print(f"{normalise:>9}: {outcomes[normalise]}")
    return outcomes


def test_one_token_in_a_hundred_is_text(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        assert outcome.share_of_tokens == pytest.approx(1 / 101)


def test_plain_loss_gives_text_next_to_no_gradient_and_the_normalised_one_most_of_it(
    outcomes: dict[str, Outcome],
) -> None:
    assert outcomes["none"].text_share_of_gradient < 0.15
    assert outcomes["batch"].text_share_of_gradient > 0.75


def test_text_is_learnt_sooner_with_the_normalised_loss(outcomes: dict[str, Outcome]) -> None:
    plain, normalised = outcomes["none"], outcomes["batch"]
    assert normalised.text_loss < 0.5 * plain.text_loss


def test_speech_is_still_learnt_with_the_normalised_loss(outcomes: dict[str, Outcome]) -> None:
    at_the_start = math.log(320)  # rows of the embedding
    assert outcomes["batch"].speech_loss < 0.75 * at_the_start


def test_equal_sequences_make_both_normalisations_the_same(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["sequence"].text_loss == pytest.approx(outcomes["batch"].text_loss, rel=1e-3)
