"""An exported model in stock transformers: same ids, same tokens out, nothing unsafe inside."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from dmlm.cli import run
from dmlm.pipeline.errors import CheckpointError, ConfigError
from dmlm.pipeline.samples import Modality, Sample, TokenArray
from dmlm.pipeline.shards import iter_samples
from dmlm.pipeline.shards.format import MODALITY_OF
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.config import (
    BatchConfig,
    MixEntry,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SequenceConfig,
    TrainConfig,
)
from dmlm.trainer.data.tasks import TASKS, build_prompt
from dmlm.trainer.decoding import DecodingConfig, constraint_of, decode
from dmlm.trainer.decoding.modality_mask import ModalityMask
from dmlm.trainer.export import export_checkpoint
from dmlm.trainer.loop import train
from dmlm.trainer.model_card import write_card
from dmlm.trainer.trained_tasks import TrainedTask

NUM_ROWS = 264
"""Of the pretrained models: six more than the text tokenizer has entries."""
SMALL = {"vocab_size": NUM_ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
INITS: dict[str, PretrainedConfig | None] = {
    "scratch": None,
    "opt": OPTConfig(**SMALL, word_embed_proj_dim=32, ffn_dim=64, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=NUM_ROWS, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "llama": LlamaConfig(
        **SMALL, intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=False
    ),
}
GENERATING = ("asr", "s2tt", "t2s", "i2t")
NUM_NEW = 12
MODELS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module", params=INITS)
def checkpoint(
    request: pytest.FixtureRequest, token_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """A few true training steps, from each kind of start."""
    directory, shape = tmp_path_factory.mktemp(request.param), INITS[request.param]
    if shape is not None:
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(shape).save_pretrained(directory / "llm")
        AutoTokenizer.from_pretrained(token_shards / "codebook" / "text").save_pretrained(directory / "llm")
    return train_briefly(directory, token_shards, str(directory / "llm") if shape else None)


def train_briefly(directory: Path, shards: Path, init: str | None) -> Checkpoint:
    recipe = Recipe(
        name="tiny",
        num_steps=4,
        mix=tuple(MixEntry(task=task, weight=1.0) for task in TASKS),
        model=ModelConfig(num_layers=1, width=32, num_heads=2, dropout=0.0),
        sequence=SequenceConfig(max_length=128, collapse_runs=True),
        batch=BatchConfig(max_tokens=256),
        optimizer=OptimizerConfig(learning_rate=3e-3, num_warmup_steps=1),
    )
    config = TrainConfig(shards=(shards,), recipe=recipe, out_dir=directory / "run", init=init, device="cpu")
    return load_checkpoint(train(config).checkpoint)


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("models") / "tiny"
    (checkpoint.path / "asr.json").write_text('{"shards": "/home/somebody"}')  # as `evaluate` leaves one
    export_checkpoint(checkpoint.path, out_dir)
    return out_dir


@pytest.fixture(scope="module")
def stock(exported: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float64)


def sample(number: int = 0) -> Sample:
    rng = np.random.default_rng(number)
    return Sample(
        key="a",
        source="toy",
        split="train",
        language="en",
        translation_language="de",
        speech_tokens=rng.integers(0, 20, 6 + number).astype(np.int32),
        image_tokens=rng.integers(0, 16, 16).astype(np.int32),
        text_tokens=rng.integers(66, 90, 5 + number).astype(np.int32),
    )


def prompt_of(checkpoint: Checkpoint, task: str, number: int = 0) -> TokenArray:
    sequence = checkpoint.settings.recipe.sequence
    return build_prompt(TASKS[task], sample(number), checkpoint.vocabulary, sequence)


def test_ids_are_those_of_the_vocabulary(exported: Path, stock: PreTrainedModel) -> None:
    vocabulary = Vocabulary.from_json(json.loads((exported / "vocabulary.json").read_bytes()))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    names = vocabulary.added_tokens()
    assert tokenizer.convert_tokens_to_ids(names) == list(range(vocabulary.num_text, vocabulary.num_used))
    assert len(tokenizer) == vocabulary.num_used
    assert stock.get_input_embeddings().weight.shape[0] == stock.config.vocab_size == vocabulary.size


@pytest.mark.parametrize("task", GENERATING)
def test_stock_generation_gives_the_tokens_of_our_decoding(
    task: str, checkpoint: Checkpoint, stock: PreTrainedModel
) -> None:
    vocabulary = checkpoint.vocabulary
    prompts = [prompt_of(checkpoint, task, number) for number in range(4)]
    constraint = constraint_of(task, vocabulary)
    outputs = decode(
        checkpoint.model.double(),
        prompts,
        constraint,
        DecodingConfig(),
        max_new_tokens=[NUM_NEW] * len(prompts),
    )
    ours = {output.index: output.tokens for output in outputs}
    ends = dict.fromkeys([constraint.end_id, vocabulary.eos_id])
    for number, prompt in enumerate(prompts):
        expected = [*ours[number].tolist(), *ends][:NUM_NEW]
        assert generate(stock, prompt, ModalityMask(vocabulary, task)) == expected


def generate(model: PreTrainedModel, prompt: TokenArray, mask: ModalityMask) -> list[int]:
    prompt_BT = torch.tensor(prompt[None].astype(np.int64))
    output_BT = model.generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        logits_processor=[mask],
        max_new_tokens=NUM_NEW,
    )
    return output_BT[0, len(prompt) :].tolist()


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_stock_generation_warns_of_nothing(
    checkpoint: Checkpoint, stock: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        generate(stock, prompt_of(checkpoint, "asr"), ModalityMask(checkpoint.vocabulary, "asr"))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.messages


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
@pytest.mark.parametrize("task", TASKS)
def test_the_mask_lets_nothing_else_out(task: str, checkpoint: Checkpoint) -> None:
    vocabulary, mask = checkpoint.vocabulary, ModalityMask(checkpoint.vocabulary, task)
    scores = torch.zeros(2, vocabulary.size)
    modality = MODALITY_OF[TASKS[task].target]
    is_text = modality is Modality.TEXT
    last = vocabulary.eos_id if is_text else vocabulary.special_id(f"</{modality}>")
    tokens = torch.tensor([[vocabulary.bos_id, vocabulary.special_id("<asr>")], [0, last]])
    allowed, after_last = (row.isfinite().nonzero().flatten().tolist() for row in mask(tokens, scores))
    target = vocabulary.range_of(modality)
    assert set(allowed) == {*range(target.start, target.stop), last}
    assert after_last == (allowed if is_text else [vocabulary.eos_id])


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_speech_that_is_closed_ends(checkpoint: Checkpoint, stock: PreTrainedModel) -> None:
    vocabulary = checkpoint.vocabulary
    closed = np.append(prompt_of(checkpoint, "t2s"), vocabulary.special_id("</speech>")).astype(np.int32)
    assert generate(stock, closed, ModalityMask(vocabulary, "t2s")) == [vocabulary.eos_id]


def test_it_holds_weights_and_plain_text_only(exported: Path, checkpoint: Checkpoint) -> None:
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} < files
    assert {"README.md", "vocabulary.json", "dmlm.json", "codebook/text/tokenizer.json"} < files
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".md", ""}
    assert not any("trainer_state" in name or "asr.json" in name for name in files)
    theirs = sha256_file(checkpoint.path / "model.safetensors")
    assert sha256_file(exported / "model.safetensors") == theirs


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_dmlm_opens_it_as_a_checkpoint(exported: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    again = load_checkpoint(resolve_checkpoint(exported))
    assert (again.step, again.vocabulary) == (checkpoint.step, checkpoint.vocabulary)
    export_checkpoint(exported, tmp_path / "copy")
    assert read_all(tmp_path / "copy") == read_all(exported)


def read_all(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_prompts_written_as_text_have_our_ids(exported: Path, checkpoint: Checkpoint) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    for task in GENERATING:
        prompt = prompt_of(checkpoint, task)
        text = tokenizer.decode(prompt.tolist())
        assert text.startswith("</s><")
        assert tokenizer(text, add_special_tokens=False).input_ids == prompt.tolist()


@pytest.mark.parametrize("checkpoint", ["opt"], indirect=True)
def test_the_card_says_what_it_is_and_its_example_runs(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (exported / "README.md").read_text()
    assert "| asr | `</s><speech>{speech}</speech><asr><en>` | `{text}</s>` | 1–257 | 0 |" in card
    assert "| t2s | `</s><en>{text}<t2s><speech>` | `{speech}</speech></s>` | 302–321 | 259 |" in card
    assert "| 302–321 | `<speech_0>` … `<speech_19>` |" in card
    assert "started from llm: its licence goes on" in card
    assert "speech: sha256 speech" in card
    assert "data toy: not known to dmlm" in card
    run_example(card, FOLDER=exported)
    assert "<speech" not in capsys.readouterr().out


def run_example(page: str, changes: Mapping[str, str] = MappingProxyType({}), **names: Any) -> dict[str, Any]:
    """Runs the first Python code of a page, given names and changed in places; gives all its names."""
    code = page.partition("```python\n")[2].partition("```")[0]
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, names)
    return names


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
@pytest.mark.parametrize("task", ["t2s", "image"])
def test_the_example_of_a_model_without_text_ends_with_its_closing_tag(
    task: Literal["t2s", "image"], exported: Path, checkpoint: Checkpoint
) -> None:
    trained = (TrainedTask(task=task, language="en"),)
    card = write_card(replace(checkpoint, settings=replace(checkpoint.settings, trained=trained)))
    constraint = constraint_of(task, checkpoint.vocabulary)
    others = f"*range({constraint.allowed.start}, {constraint.allowed.stop}), "
    names = run_example(card, {others: ""}, FOLDER=exported)
    assert names["output"][0, names["ids"].shape[1] :].tolist() == [constraint.end_id]


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_prompts_of_the_documentation_begin_as_the_vocabulary_says(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    path = tmp_path / "model" / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"bos_id": 1}))
    page = MODELS.read_text().partition("In transformers")[2]
    names = run_example(page, {"=200": "=4", "=1000": "=4"}, DIR=path.parent, units=[3, 4])
    assert names["ids"][0, 0] == 1


@pytest.fixture
def marks_first_words(exported: Path, tmp_path: Path) -> Path:
    """The exported model with a tokenizer that puts a space before the first word of a text only."""
    shutil.copytree(exported, tmp_path / "first")
    path = tmp_path / "first" / "tokenizer.json"
    rule = {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "first", "split": True}
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"pre_tokenizer": rule}))
    return path.parent


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_prompts_of_documentation_and_card_hold_a_text_as_training_had_it(
    marks_first_words: Path, checkpoint: Checkpoint
) -> None:
    page = MODELS.read_text().partition("In transformers")[2]
    documented = run_example(page, {"=200": "=4", "=1000": "=4"}, DIR=marks_first_words, units=[3, 4])
    trained = (TrainedTask(task="t2s", language="en"),)
    card = write_card(replace(checkpoint, settings=replace(checkpoint.settings, trained=trained)))
    shown = run_example(card, FOLDER=marks_first_words)
    for names, text in ((documented, "seven green birds"), (shown, "hello")):
        alone = names["tokenizer"](text, add_special_tokens=False).input_ids
        assert alone[0] == names["tokenizer"].convert_tokens_to_ids("Ġ")
        assert names["ids"][0, 2:-2].tolist() == alone


def without_images(samples: Iterable[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.image_tokens is None]


@pytest.fixture(scope="module")
def speech_only(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Of a data set without images; the mix names every task all the same, as the recipe `demo` does."""
    directory = tmp_path_factory.mktemp("speech-only")
    samples = without_images(iter_samples(token_shards))
    shards = write_shards(directory / "shards", samples, has_images=False)
    return train_briefly(directory, shards, None)


def test_the_card_lists_tasks_that_had_samples_with_their_languages(
    speech_only: Checkpoint, tmp_path: Path
) -> None:
    export_checkpoint(speech_only.path, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| ") and "`</s>" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| asr", "| s2tt", "| t2s", "| speech", "| text"]
    assert [row.split(" | ")[-1] for row in rows] == ["en |", "de |", "en |", "none |", "en |"]


def test_the_card_of_a_model_that_was_trained_further_has_the_data_of_before(
    speech_only: Checkpoint, token_shards: Path, tmp_path: Path
) -> None:
    second = train_briefly(tmp_path / "second", token_shards, str(speech_only.path))
    third = train_briefly(tmp_path / "third", token_shards, str(second.path))
    (first,) = speech_only.settings.datasets
    named = replace(third.settings.datasets_before[0], name="librispeech")
    assert third.settings.datasets_before == (first, *second.settings.datasets)
    card = write_card(replace(third, settings=replace(third.settings, datasets_before=(named,))))
    for dataset in (first, *second.settings.datasets):
        assert card.count(dataset.sha256) == 1
    assert "data toy: not known to dmlm" in card
    assert "data librispeech: CC BY 4.0" in card


def test_a_checkpoint_of_an_older_version_lists_the_tasks_that_it_has_tokens_for(
    speech_only: Checkpoint, tmp_path: Path
) -> None:
    old = tmp_path / "checkpoint-000004"
    shutil.copytree(speech_only.path, old)
    content = json.loads((old / "dmlm.json").read_bytes())
    del content["trained"], content["datasets_before"]
    (old / "dmlm.json").write_text(json.dumps(content))
    sums = json.loads((old / "DONE").read_bytes())
    (old / "DONE").write_text(json.dumps(sums | {"dmlm.json": sha256_file(old / "dmlm.json")}))
    export_checkpoint(old, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| s2tt | `</s><speech>{speech}</speech><s2tt><en>`" in card
    assert "| i2t |" not in card
    assert "| not recorded |" in card


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_an_empty_folder_is_taken_and_a_full_one_is_not(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    inode = (tmp_path / "empty").stat().st_ino
    assert run(["export", "--checkpoint", str(checkpoint.path), "--out", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty").stat().st_ino == inode  # a mount point cannot be replaced
    before = read_all(tmp_path)
    with pytest.raises(ConfigError, match="not empty"):
        export_checkpoint(checkpoint.path, tmp_path / "empty")
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_an_export_that_fails_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(checkpoint: Checkpoint) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr("dmlm.trainer.export.write_card", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        export_checkpoint(checkpoint.path, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkpoint", ["scratch"], indirect=True)
def test_a_tokenizer_with_other_ids_is_not_exported(exported: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    export_checkpoint(exported, broken)
    path = broken / "tokenizer.json"
    swapped = path.read_text().replace("<speech_3>", "x").replace("<speech_4>", "<speech_3>")
    path.write_text(swapped.replace('"x"', '"<speech_4>"'))
    sums = json.loads((broken / "DONE").read_bytes())
    (broken / "DONE").write_text(json.dumps(sums | {"tokenizer.json": sha256_file(path)}))
    with pytest.raises(CheckpointError, match="gives other ids"):
        export_checkpoint(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
