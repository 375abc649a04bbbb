"""README.txt of a sample and of each corpus in it: nobody shall mistake them for the real ones."""

from collections.abc import Mapping
from pathlib import Path

from dmlm.pipeline.storage import write_bytes
from dmlm.pipeline.synthesis.meetings import TEST_MEETINGS, TRAIN_MEETINGS
from dmlm.pipeline.synthesis.readings import SENTENCE_CHAPTERS, SPLITS, WORD_STRING_CHAPTERS

SENTENCES = [SENTENCE_CHAPTERS[split] for split in SPLITS]
WORD_STRINGS = [WORD_STRING_CHAPTERS[split] for split in SPLITS]
ENGLISH_VOICE = "voice `heart` of hibari-tts, at several pitches and tempos that stand for speakers"
CORPORA = {
    "LibriSpeech": f"""\
The layout is LibriSpeech's; the speech is not. Spoken by
{ENGLISH_VOICE}.
Splits: {", ".join(SPLITS)}. All have the same speakers. No text of the last two occurs in any
training part of this sample; every word of them does.
Chapters {", ".join(SENTENCES)} hold sentences of a small grammar, chapters {", ".join(WORD_STRINGS)}
strings of random words, which no grammar can guess.
""",
    "ami": f"""\
The layout, the names of the meetings and their partition are AMI's; the meetings are not. Spoken by
{ENGLISH_VOICE}.
Training: {", ".join(TRAIN_MEETINGS)}; test: {", ".join(TEST_MEETINGS)}. Some turns overlap.
The last segment of each meeting lies beyond the end of its recording, on purpose.
Word times are not measured: a segment's time is shared among its words in proportion to their letters.
""",
    "covost": """\
The layout is that of CoVoST 2 over Common Voice; the speech is not. Italian sentences and their English
translations come from one small grammar, spoken by the Italian voice of espeak-ng at several rates and
pitches that stand for speakers. No sentence of dev or test occurs in train.
""",
    "coco": """\
The layout is that of COCO 2017; the images are drawn shapes, captioned by the program that drew them. No
picture of train2017 shows the shapes of one of val2017 on the same ground.
""",
}
TEXT_CORPUS = f"""\
The layout is LibriSpeech's; the speech is not. The lines of a text file, spoken by {ENGLISH_VOICE}.
The transcripts keep letters, digits and apostrophes of the lines, in upper case.
"""


def write_readmes(out_dir: Path, *, seed: int, from_text: bool, versions: Mapping[str, str]) -> None:
    """Writes README.txt into `out_dir` and into every corpus folder."""
    made_by = "".join(f"  {name} {version}\n" for name, version in versions.items())
    origin = f"SYNTHETIC. Made by `dmlm-cli sample` with seed {seed} and\n{made_by}\n"
    corpora = {"LibriSpeech": TEXT_CORPUS} if from_text else CORPORA
    for name, description in corpora.items():
        write_bytes(out_dir / name / "README.txt", (origin + description).encode())
    overview = "".join(f"{name}/\n{description}\n" for name, description in corpora.items())
    write_bytes(out_dir / "README.txt", (origin + overview).encode())
