"""The pages of `inspect --codebook --html FILE` and `experiment codebook-sweep`."""

from collections.abc import Callable

from dmlm.pipeline.codebooks.inspection import InspectionReport, describe_quality
from dmlm.pipeline.codebooks.measuring import CodebookQuality
from dmlm.pipeline.codebooks.quality import LetterMatch
from dmlm.pipeline.codebooks.sweep import SweepReport
from dmlm.pipeline.html_page import bar_chart, heat_table, html_page, section, share_chart, table

LONGEST_RUN = 30
"""Longer runs share the last bar."""


def render_inspection(report: InspectionReport) -> str:
    """One self-contained html page."""
    quality = report.quality
    sections = [
        section("Measures", "docs/codebooks.md says what they mean.", table(describe_quality(quality))),
        section(
            "Usage of units",
            f"Share of frames of each unit, most frequent first; {quality.num_dead} of {quality.num_clusters}"
            " units were never used. Dashed: equal use.",
            _usage_chart(quality.counts),
        ),
        section(
            "Lengths of runs",
            f"Share of runs of equal units by their length in frames; all of {LONGEST_RUN} and more"
            " share the last bar.",
            _run_chart(quality.run_counts),
        ),
    ]
    if quality.letters:
        sections.append(_letter_section(quality.letters))
    return html_page(report.title, f"Measured on {report.origin}.", sections)


def render_sweep(report: SweepReport) -> str:
    """One self-contained html page: a shaded table of layers and clusters for each measure."""
    title = f"Layers and clusters of {report.encoder}, window {report.window}"
    sections = [
        _sweep_section(report, "Unexplained variance", "Lower keeps more.", lambda q: q.unexplained_variance),
        _sweep_section(
            report,
            "Perplexity over K",
            "1 when all units are used equally.",
            lambda q: q.perplexity / q.num_clusters,
        ),
        _sweep_section(
            report,
            "Units a second after collapsing runs",
            "Lower makes shorter sequences.",
            lambda q: q.collapsed_tokens_per_second,
        ),
    ]
    if all(point.quality.shift_agreement is not None for point in report.points):
        explanation = (
            "Share of units that stay when the recording begins a second later: low, and they tell places."
        )
        sections.append(
            _sweep_section(
                report, "Same unit a second later", explanation, lambda q: q.shift_agreement or 0.0
            )
        )
    if all(point.quality.letters for point in report.points):
        explanation = "Share of the letters' entropy that units tell, less what they tell by chance."
        sections.append(_sweep_section(report, "Letter information", explanation, _information))
    return html_page(title, f"{report.origin}. docs/codebooks.md says what the measures mean.", sections)


def _sweep_section(
    report: SweepReport, heading: str, explanation: str, measure: Callable[[CodebookQuality], float]
) -> str:
    rows: dict[str, list[float]] = {}
    for point in report.points:
        rows.setdefault(str(point.layer), []).append(measure(point.quality))
    columns = list(dict.fromkeys(f"K {point.quality.num_clusters}" for point in report.points))
    return section(heading, explanation, heat_table("layer", columns, list(rows.items())))


def _information(quality: CodebookQuality) -> float:
    letters = quality.letters
    return letters.information - letters.information_by_chance if letters else 0.0


def _usage_chart(counts: tuple[int, ...]) -> str:
    total = max(1, sum(counts))
    shares = [count / total for count in sorted(counts, reverse=True)]
    return bar_chart(shares, "rank of the unit", "share of frames", mark=1 / len(counts))


def _run_chart(run_counts: tuple[int, ...]) -> str:
    """`run_counts` starts at length 0, of which there are none."""
    total = max(1, sum(run_counts))
    longest = [sum(run_counts[LONGEST_RUN:])] if len(run_counts) > LONGEST_RUN else []
    shown = [*run_counts[1:LONGEST_RUN], *longest]
    return bar_chart([count / total for count in shown], "length of the run in frames", "share of runs")


def _letter_section(letters: LetterMatch) -> str:
    rows = [
        ("purity", letters.purity, letters.purity_by_chance),
        ("information", letters.information, letters.information_by_chance),
    ]
    return section(
        "Letters",
        f"Letters spread evenly over the speech of {letters.num_recordings} recordings. Mark: with letters"
        " exchanged between recordings; only what goes beyond it tells anything.",
        share_chart(rows),
    )
