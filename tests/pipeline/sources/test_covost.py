from collections import Counter
from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Broken, Skipped, Utterance
from dmlm.pipeline.sources import SourceOptions, open_source
from dmlm.pipeline.vocabulary import LANGUAGES

VALIDATED_HEADER = "client_id\tpath\tsentence\tup_votes"


@pytest.fixture
def language_dir(tmp_path):
    folder = tmp_path / "covost" / "it"
    (folder / "clips").mkdir(parents=True)
    return folder


def write_tables(folder, translations, validated, pair="it_en", clips=None):
    """Lines of both tables without headers; `clips`: files to make, None: all that are validated."""
    table = ["path\ttranslation\tsplit", *translations]
    (folder / f"covost_v2.{pair}.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    lines = "\n".join([VALIDATED_HEADER, *validated]) + "\n"
    (folder / "validated.tsv").write_text(lines, encoding="utf-8")
    for clip in [line.split("\t")[1] for line in validated] if clips is None else clips:
        (folder / "clips" / clip).touch()


def read(folder, splits=None, **options):
    return list(open_source("covost", folder.parents[1], splits, SourceOptions(**options)).iter_items())


def test_tables_are_joined_by_header_without_quoting_but_with_escapes(language_dir):
    write_tables(
        language_dir,
        ['c2.mp3\tHe said \\"yes\ttest', "c1.mp3\tActivated.\ttest"],
        ['speaker\tc1.mp3\t"Attivato.\t2', "speaker\tc2.mp3\tDisse: \\\\«sì»\t2", "other\tc3.mp3\tMai\t2"],
    )
    first, second = read(language_dir)
    assert first == Utterance(
        key="c1",
        source="covost",
        split="test",
        audio_path=language_dir / "clips" / "c1.mp3",
        text='"Attivato.',
        language="it",
        translation="Activated.",
        translation_language="en",
        speaker=first.speaker,
        recording_id="c1",
    )
    assert (second.key, second.text, second.translation) == ("c2", "Disse: \\«sì»", 'He said "yes')
    assert first.speaker == second.speaker
    assert len(first.speaker) == 16


def test_clip_not_downloaded_or_not_validated_is_skipped(language_dir):
    write_tables(
        language_dir,
        ["a.mp3\tA\ttrain", "b.mp3\tB\ttrain", "c.mp3\tC\ttrain"],
        ["s\ta.mp3\tA\t2", "s\tb.mp3\tB\t2"],
        clips=["a.mp3"],
    )
    kept, not_downloaded, not_validated = read(language_dir)
    assert isinstance(kept, Utterance)
    assert isinstance(not_downloaded, Skipped)
    assert "not downloaded" in not_downloaded.reason
    assert isinstance(not_validated, Skipped)
    assert "not in validated.tsv" in not_validated.reason


def test_malformed_lines_are_broken_and_the_rest_goes_on(language_dir):
    write_tables(
        language_dir,
        [
            *("a.mp3\tA\ttrain", "b.mp3\tB", "c.mp3\tC\ttrain", "a.mp3\tA2\ttrain"),
            *("../x.mp3\tX\ttrain", "\t", "r.mp3\tA \r B\ttrain"),
        ],
        ["s\ta.mp3\tA\t2", "s\tb.mp3\tB\t2", "s\tc.mp3\tC\tmore\t2"],
    )
    items = read(language_dir)
    reasons = {item.key: item.reason for item in items if isinstance(item, Broken)}
    assert [item.key for item in items if isinstance(item, Utterance)] == ["a"]
    assert reasons["a"] == "covost_v2.it_en.tsv:5: second line for this clip"
    assert reasons["b"] == "covost_v2.it_en.tsv:3: 2 columns, expected 3"
    assert reasons["c"] == "validated.tsv:4: 5 columns, expected 4"
    assert "is not a file name" in reasons["x"]
    assert reasons["r"].startswith("covost_v2.it_en.tsv:8: new-line character seen")
    assert len(items) == 6


def test_line_that_is_not_utf8_is_broken(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain", "b.mp3\tB\ttrain"], ["s\ta.mp3\tA\t2", "s\tb.mp3\tB\t2"])
    table = language_dir / "covost_v2.it_en.tsv"
    table.write_bytes(table.read_bytes().replace(b"\tA\t", b"\tA\xe0\t"))
    broken, kept = read(language_dir)
    assert isinstance(broken, Broken)
    assert "line is not UTF-8" in broken.reason
    assert isinstance(kept, Utterance)


def test_byte_order_mark_is_no_part_of_the_first_column(language_dir: Path) -> None:
    write_tables(language_dir, ["a.mp3\tYes\ttest"], ["s\ta.mp3\tSì\t2"])
    for table in language_dir.glob("*.tsv"):
        table.write_text("\ufeff" + table.read_text(encoding="utf-8"), encoding="utf-8")
    (item,) = read(language_dir)
    assert (item.text, item.translation) == ("Sì", "Yes")


def test_empty_sentence_or_translation_is_none(language_dir):
    write_tables(language_dir, ["a.mp3\t\ttrain", "b.mp3\tB\ttrain"], ["s\ta.mp3\tA\t2", "\tb.mp3\t \t2"])
    first, second = read(language_dir)
    assert (first.text, first.translation) == ("A", None)
    assert (second.text, second.translation, second.speaker) == (None, "B", None)


def test_train_covost_belongs_to_train_and_other_split_names_are_skipped(language_dir):
    write_tables(
        language_dir,
        ["a.mp3\tA\ttrain_covost", "b.mp3\tB\tdev", "c.mp3\tC\tdev_covost"],
        [f"s\t{name}.mp3\tX\t2" for name in "abc"],
    )
    source = open_source("covost", language_dir.parents[1])
    assert source.splits == ("dev", "train")
    dev, train, unofficial = source.iter_items()
    assert (dev.key, train.key) == ("b", "a")
    assert isinstance(unofficial, Skipped)


def test_region_is_left_out_of_the_language(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain"], ["s\ta.mp3\t你好\t2"], pair="zh-CN_en")
    (item,) = read(language_dir, lang_pair="zh-CN_en")
    assert (item.language, item.translation_language) == ("zh", "en")


def test_pair_with_a_region_is_found_by_its_languages_too(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain"], ["s\ta.mp3\t你好\t2"], pair="zh-CN_en")
    write_tables(language_dir, ["a.mp3\tA\ttrain"], ["s\ta.mp3\t你好\t2"])
    assert read(language_dir, lang_pair="zh_en") == read(language_dir, lang_pair="zh-CN_en")


def test_pair_named_as_asked_comes_before_one_of_its_languages(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain"], ["s\ta.mp3\t你好\t2"], pair="zh-CN_en")
    write_tables(language_dir, ["a.mp3\tB\ttrain"], ["s\ta.mp3\t你好\t2"], pair="zh_en")
    (item,) = read(language_dir, lang_pair="zh_en")
    assert item.translation == "B"


INTO_ENGLISH = "fr de es ca it ru zh-CN pt fa et mn nl tr ar sv-SE lv sl ta ja id cy"  # 21 languages
FROM_ENGLISH = "de tr fa sv-SE mn zh-CN cy ca sl et id ar ta lv ja"  # 15 languages


@pytest.mark.parametrize(
    "pair",
    [f"{name}_en" for name in INTO_ENGLISH.split()] + [f"en_{name}" for name in FROM_ENGLISH.split()],
)
def test_every_pair_of_covost_is_read_in_languages_that_have_a_token(tmp_path, pair):
    folder = tmp_path / "covost" / pair.split("_")[0]
    (folder / "clips").mkdir(parents=True)
    write_tables(folder, ["a.mp3\tA\ttest"], ["s\ta.mp3\tX\t2"], pair=pair)
    (item,) = read(folder, lang_pair=pair)
    assert {item.language, item.translation_language} <= set(LANGUAGES)


def test_pair_without_its_common_voice_table_says_what_is_missing(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain"], ["s\ta.mp3\tA\t2"])
    (language_dir.parent / "fr").mkdir()
    (language_dir.parent / "fr" / "covost_v2.fr_en.tsv").write_text("path\ttranslation\tsplit\n")
    with pytest.raises(ConfigError, match=r"fr/validated\.tsv is missing; unpack Common Voice corpus 4"):
        read(language_dir, lang_pair="fr_en")


def test_several_pairs_must_be_chosen_from_and_are_listed(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain"], ["s\ta.mp3\tA\t2"])
    write_tables(language_dir, ["a.mp3\tEin A\ttrain"], ["s\ta.mp3\tA\t2"], pair="it_de")
    with pytest.raises(ConfigError, match=r"several language pairs .* --lang-pair, one of it_de, it_en"):
        read(language_dir)
    with pytest.raises(ConfigError, match=r"no language pair 'it_fr' .* one of it_de, it_en"):
        read(language_dir, lang_pair="it_fr")
    (item,) = read(language_dir, lang_pair="it_de")
    assert (item.translation, item.translation_language) == ("Ein A", "de")


def test_table_without_a_column_is_corrupt_input(language_dir):
    write_tables(language_dir, ["a.mp3\tA\ttrain"], [])
    (language_dir / "validated.tsv").write_text("client_id\tpath\n")
    with pytest.raises(CorruptInputError, match=r"validated\.tsv: no column sentence; found client_id, path"):
        read(language_dir)


@pytest.mark.realdata
def test_real_slice_has_525_pairs_and_nothing_else(real_data):
    items = list(open_source("covost", real_data).iter_items())
    assert Counter((type(item), item.split) for item in items) == {
        (Utterance, "dev"): 43,
        (Utterance, "test"): 96,
        (Utterance, "train"): 386,
    }
    assert all(item.text and item.translation for item in items)
    assert {(item.language, item.translation_language) for item in items} == {("it", "en")}
