"""The README.md of an exported model: what it does, how to prompt it, what it was made of."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import dmlm
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.manifests import load_manifest
from dmlm.pipeline.tokenizers.pretrained import read_terms
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.data.tasks import TASKS, make_template
from dmlm.trainer.decoding.modality_mask import closing_id, target_ids
from dmlm.trainer.settings import RunSettings

_LANGUAGE: Final = "en"
"""Stands for any in the templates."""

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
`{{image}}` for `<image_0>…`; `<{language}>` for the token of the language, which is left out where it is not
known.

## Vocabulary

{vocabulary}

Embedding rows from {num_used} on fill it up to {size}: no token has these ids.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
prompt = {prompt!r}
ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids

def only_text(batch, ids):
    return [*range({text_stop}), {eos_id}]

output = model.generate(ids, prefix_allowed_tokens_fn=only_text, max_new_tokens=100)
print(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))
```

Without the restriction other modalities may come out. With dmlm installed, a logits processor does the same
for every task: `dmlm.trainer.decoding.modality_mask.ModalityMask(vocabulary, "asr")`. In vLLM:
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
    collapses = settings.recipe.sequence.collapse_runs
    return _CARD.format(
        name=settings.recipe.name,
        version=dmlm.__version__,
        step=checkpoint.step,
        tasks="\n".join(_task_rows(settings, names)),
        runs="runs of equal units collapsed into one" if collapses else "one unit per frame",
        language=_LANGUAGE,
        vocabulary="\n".join(_vocabulary_rows(vocabulary, names)),
        num_used=vocabulary.num_used,
        size=vocabulary.size,
        prompt=f"{names[vocabulary.bos_id]}<speech><speech_0><speech_1></speech><asr><{_LANGUAGE}>",
        text_stop=vocabulary.text.stop,
        eos_id=vocabulary.eos_id,
        fingerprints="\n".join(_fingerprint_rows(settings)),
        data="\n".join(
            f"- {d.name} (text rule `{d.text_rule}`, sha256 {d.sha256})" for d in settings.datasets
        ),
        licences="\n".join(f"- {line}" for line in _licences(checkpoint)),
    )


def _names(checkpoint: Checkpoint) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    names: list[str] = tokenizer.convert_ids_to_tokens(list(range(checkpoint.vocabulary.num_used)))
    return names


def _task_rows(settings: RunSettings, names: list[str]) -> Iterator[str]:
    vocabulary, sequence = settings.vocabulary, settings.recipe.sequence
    trained = {entry.task for entry in settings.recipe.mix}
    yield "| task | prompt | target | ids of the target | ends with id |"
    yield "|---|---|---|---|---|"
    for name, task in TASKS.items():
        if name not in trained:
            continue
        template = make_template(task, _LANGUAGE, _LANGUAGE, vocabulary, sequence)
        prompt, target = (
            "".join(
                f"{{{part.member}}}" if part.tokens is None else "".join(names[i] for i in part.tokens)
                for part in parts
            )
            for parts in (template.prompt, template.target)
        )
        ids, closing = target_ids(vocabulary, name), closing_id(vocabulary, name)
        end = vocabulary.eos_id if closing is None else closing
        others = [i for i in ids if i != end]
        yield f"| {name} | `{prompt}` | `{target}` | {others[0]}–{others[-1]} | {end} |"


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


def _licences(checkpoint: Checkpoint) -> Iterator[str]:
    """What binds the model; dmlm does not judge what follows from it."""
    init = checkpoint.settings.recipe.model.init
    if init is not None:
        yield f"started from {init}: its licence goes on"
    for name in dict.fromkeys(dataset.name for dataset in checkpoint.settings.datasets):
        try:
            yield f"data {name}: {load_manifest(name).licence}"
        except ConfigError:
            yield f"data {name}: not known to dmlm"
    for directory in sorted(Path(checkpoint.codebook_dir).iterdir()):
        terms = read_terms(directory) if directory.is_dir() else None
        if terms is not None:
            yield str(terms)
    yield "the model itself: to be filled in by whoever publishes it, within the above"
