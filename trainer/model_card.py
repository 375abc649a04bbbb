"""The README.md of an exported model: what it does, how to prompt it, what it was made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import dmlm
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.manifests import load_manifest
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards.format import MODALITY_OF
from dmlm.pipeline.tokenizers.pretrained import read_terms
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.data.dataset import DatasetIdentity
from dmlm.trainer.data.tasks import TASKS, Part, make_template
from dmlm.trainer.decoding import constraint_of
from dmlm.trainer.settings import RunSettings
from dmlm.trainer.trained_tasks import DEFAULT_LANGUAGE, NO_LANGUAGE, TrainedTask

_EXAMPLES: Final = {"speech": "<speech_0><speech_1>", "image": "<image_0><image_1>", "text": "hello"}
"""Stand for what a prompt of the card's example is about."""

_CARD: Final = """\
---
library_name: transformers
tags:
- dmlm
- discrete-multimodal-language-model
---
# {name}

A Discrete Multimodal Language Model (arXiv 2406.06582): one decoder-only model over text, speech units and
image codes. Exported by dmlm {version} from step {step} of the recipe `{name}`. Stock `AutoModelForCausalLM`
and `AutoTokenizer` load this folder; `codebook/` turns audio and images into its tokens
(`dmlm-cli transcribe --checkpoint THIS_FOLDER hello.wav`).

## Tasks and prompts

{tasks}

A prompt is everything before the target. `{{speech}}` stands for `<speech_0><speech_17>…`, {runs};
`{{image}}` for `<image_0>…`, `{{text}}` for a text that was tokenized alone, as below: within a prompt some
tokenizers give it other ids. A prompt names one of the task's languages, as `<en>`; `none`: it names none.

## Vocabulary

{vocabulary}

Embedding rows from {num_used} on fill it up to {size}: no token has these ids.

## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
prompt = {prompt!r}
parts = [tokenizer(part, add_special_tokens=False).input_ids for part in prompt]
ids = torch.tensor([sum(parts, [])])

def only_{modality}(batch, ids):
    return [*range({start}, {stop}), {end_id}]

output = model.generate(
    ids, prefix_allowed_tokens_fn=only_{modality}, eos_token_id={end_id}, max_new_tokens=100
)
print(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))
```

Without the restriction other modalities may come out. With dmlm installed, a logits processor does the same
for every task: `dmlm.trainer.decoding.modality_mask.ModalityMask(vocabulary, "{task}")`. In vLLM:
`SamplingParams(temperature=0, allowed_token_ids=…, stop_token_ids=…)` with the ids of the table of tasks.

## Tokenizers

{fingerprints}

## Data

{data}

## Licence

{licences}
"""


def write_card(checkpoint: Checkpoint) -> str:
    """Text of the card."""
    settings, vocabulary = checkpoint.settings, checkpoint.vocabulary
    names = _names(checkpoint)
    collapses, trained = settings.recipe.sequence.collapse_runs, _trained(settings)
    return _CARD.format(
        name=settings.recipe.name,
        version=dmlm.__version__,
        step=checkpoint.step,
        tasks="\n".join(_task_rows(trained, settings, names)),
        runs="runs of equal units collapsed into one" if collapses else "one unit per frame",
        vocabulary="\n".join(_vocabulary_rows(vocabulary, names)),
        num_used=vocabulary.num_used,
        size=vocabulary.size,
        **_example(trained, settings, names),
        fingerprints="\n".join(_fingerprint_rows(settings)),
        data="\n".join(
            f"- {d.name} (text rule `{d.text_rule}`, sha256 {d.sha256})" for d in _datasets(settings)
        ),
        licences="\n".join(f"- {line}" for line in _licences(checkpoint)),
    )


def _names(checkpoint: Checkpoint) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir, trust_remote_code=False)
    names: list[str] = tokenizer.convert_ids_to_tokens(list(range(checkpoint.vocabulary.num_used)))
    return names


def _trained(settings: RunSettings) -> dict[str, list[str | None]]:
    """Languages of each task that the model was trained on, in the order of the tasks."""
    trained = settings.trained or [
        # A checkpoint of an older version tells what its mix named, with samples or without.
        TrainedTask(task=entry.task, language=DEFAULT_LANGUAGE)
        for entry in settings.recipe.mix
        if all(settings.vocabulary.range_of(MODALITY_OF[member]) for member in TASKS[entry.task].members)
    ]
    tasks: dict[str, list[str | None]] = {name: [] for name in TASKS}
    for entry in trained:
        tasks[entry.task].append(entry.language)
    return {name: languages for name, languages in tasks.items() if languages}


def _task_rows(
    trained: Mapping[str, Sequence[str | None]], settings: RunSettings, names: Sequence[str]
) -> Iterator[str]:
    vocabulary = settings.vocabulary
    yield "| task | prompt | target | ids of the target | ends with id | languages |"
    yield "|---|---|---|---|---|---|"
    for task, languages in trained.items():
        template = make_template(
            TASKS[task], languages[0], languages[0], vocabulary, settings.recipe.sequence
        )
        prompt, target = (
            "".join(_spell(part, names, f"{{{part.member}}}") for part in parts)
            for parts in (template.prompt, template.target)
        )
        constraint = constraint_of(task, vocabulary)
        end = constraint.end_id
        others = [i for i in constraint.ids if i != end]
        shown = ", ".join(language or NO_LANGUAGE for language in languages)
        known = shown if settings.trained else "not recorded"
        yield f"| {task} | `{prompt}` | `{target}` | {others[0]}–{others[-1]} | {end} | {known} |"


def _example(
    trained: Mapping[str, Sequence[str | None]], settings: RunSettings, names: Sequence[str]
) -> dict[str, object]:
    """A prompt in the card's code, and what may come behind it: text if any task answers in text."""
    vocabulary = settings.vocabulary
    task = min(trained, key=lambda name: MODALITY_OF[TASKS[name].target] is not Modality.TEXT)
    language, modality = trained[task][0], MODALITY_OF[TASKS[task].target]
    template = make_template(TASKS[task], language, language, vocabulary, settings.recipe.sequence)
    constraint = constraint_of(task, vocabulary)
    return {
        "prompt": [_spell(part, names, _EXAMPLES.get(str(part.member), "")) for part in template.prompt],
        "task": task,
        "modality": modality,
        "start": constraint.allowed.start,
        "stop": constraint.allowed.stop,
        "end_id": constraint.end_id,
    }


def _spell(part: Part, names: Sequence[str], member: str) -> str:
    """Names of the part's tokens, or `member` where a sample has its own."""
    return member if part.tokens is None else "".join(names[i] for i in part.tokens)


def _vocabulary_rows(vocabulary: Vocabulary, names: list[str]) -> Iterator[str]:
    yield "| ids | tokens |"
    yield "|---|---|"
    for part in ("text", "special", "speech", "image"):
        ids = getattr(vocabulary, part)
        if len(ids):
            shown = "text" if part == "text" else f"`{names[ids.start]}` … `{names[ids.stop - 1]}`"
            yield f"| {ids.start}–{ids.stop - 1} | {shown} |"
    yield (
        f"\nBegin `{names[vocabulary.bos_id]}` ({vocabulary.bos_id}), end `{names[vocabulary.eos_id]}` "
        f"({vocabulary.eos_id}). Fingerprint {vocabulary.fingerprint}."
    )


def _fingerprint_rows(settings: RunSettings) -> Iterator[str]:
    for modality, mark in settings.fingerprints.items():
        yield f"- {modality}: " + ", ".join(f"{name} {value}" for name, value in mark.items())


def _datasets(settings: RunSettings) -> Iterable[DatasetIdentity]:
    """Of the run, and of the checkpoints that came before it."""
    return dict.fromkeys([*settings.datasets, *settings.datasets_before])


def _licences(checkpoint: Checkpoint) -> Iterator[str]:
    """What binds the model; dmlm does not judge what follows from it."""
    init = checkpoint.settings.recipe.model.init
    if init is not None:
        yield f"started from {init}: its licence goes on"
    for name in dict.fromkeys(dataset.name for dataset in _datasets(checkpoint.settings)):
        try:
            yield f"data {name}: {load_manifest(name).licence}"
        except ConfigError:
            yield f"data {name}: not known to dmlm"
    for directory in sorted(Path(checkpoint.codebook_dir).iterdir()):
        terms = read_terms(directory) if directory.is_dir() else None
        if terms is not None:
            yield str(terms)
    yield "the model itself: to be filled in by whoever publishes it, within the above"
