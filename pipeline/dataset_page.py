"""The page of `inspect --shards --html FILE`."""

from collections.abc import Iterator

import numpy as np

from dmlm.pipeline.dataset_inspection import DatasetInspection
from dmlm.pipeline.html_page import code_grid, html_page, paragraph, section, table
from dmlm.pipeline.samples import Sample, TokenArray
from dmlm.pipeline.shards.format import token_members


def render_dataset(inspection: DatasetInspection) -> str:
    """One self-contained html page: the data set, unless a sample was asked for, and the sample."""
    sections = []
    if not inspection.is_asked_for:
        heading = "Card and indexes"
        sections.append(section(heading, "docs/shards.md says what they mean.", table([*inspection.rows()])))
    if inspection.sample is not None:
        sections += _sample_sections(inspection.sample)
    key = inspection.sample.key if inspection.sample else "no sample"
    subtitle = f"Of {inspection.card.name}; {inspection.card.licence}."
    return html_page(f"{inspection.name}: {key}", subtitle, sections)


def _sample_sections(sample: Sample) -> Iterator[str]:
    fields = {name: getattr(sample, name) for name in Sample.__slots__ if not name.endswith("_tokens")}
    rows = [(name, str(value)) for name, value in fields.items() if value is not None]
    yield section("Sample", "As the corpus has it.", table(rows))
    for name, ids in token_members(sample):
        if name == "image":
            side = int(np.ceil(np.sqrt(len(ids))))
            explanation = f"{len(ids)} codes in raster order; equal codes have equal colours."
            yield section("Image codes", explanation, code_grid(ids.tolist(), side))
        elif name == "speech":
            runs = _runs(ids)
            explanation = f"{len(ids)} units in {len(runs)} runs of equal ones: unit×length."
            yield section("Speech units", explanation, paragraph(" · ".join(runs)))
        else:
            ids_shown = " ".join(map(str, ids.tolist()))
            yield section(f"Ids of the {name}", f"{len(ids)} text tokens.", paragraph(ids_shown))


def _runs(units: TokenArray) -> list[str]:
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    lengths = np.diff(starts, append=len(units))
    return [f"{unit}×{length}" for unit, length in zip(units[starts], lengths, strict=True)]
