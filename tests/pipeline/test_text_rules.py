import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.text_rules import TEXT_RULES, apply_text_rule, text_hash


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("verbatim", "  Quell'operatore\u00a0e\u0300\tgià loggato. ", "Quell'operatore è già loggato."),
        ("lower", "MISTER QUILTER'S  MANNER", "mister quilter's manner"),
        ("plain", "Don’t stop — it's 5 o'clock, 'tis “late”!", "don't stop it's 5 o'clock tis late"),
        ("plain", "well-known (e.g. $5)", "well known e g 5"),
        ("ami", "Okay , <gap> it's <vocalsound> X_M_L_ . <disfmarker>", "okay it's x m l"),
        ("ami", "The I_D_s of T_V_'s A_ 'Kay Mm-hmm ?", "the i ds of t v's a 'kay mm-hmm"),
        ("ami", "<disfmarker> . <gap>", ""),
    ],
)
def test_rule_gives_the_text_that_is_tokenized(rule, text, expected):
    assert apply_text_rule(rule, text) == expected


def test_unknown_rule_names_the_valid_ones():
    with pytest.raises(
        ConfigError, match=r"'lowr': one of verbatim, lower, plain, ami; did you mean 'lower'\?"
    ):
        apply_text_rule("lowr", "text")


@given(rule=st.sampled_from(sorted(TEXT_RULES)), text=st.text(max_size=40))
def test_rules_leave_single_spaces_and_change_nothing_the_second_time(rule, text):
    once = apply_text_rule(rule, text)
    assert once == " ".join(once.split())
    assert apply_text_rule(rule, once) == once


def test_hash_ignores_case_punctuation_and_spaces_but_not_words():
    assert text_hash("Don't  stop, Mister Quilter!") == text_hash("DONT STOP MISTER QUILTER")
    assert text_hash("he reads") != text_hash("she reads")
    assert text_hash("È già attivo.") == text_hash("e\u0300 già attivo")
    assert len(text_hash("x")) == 16


def test_hash_keeps_vowel_signs_of_indic_scripts():
    assert text_hash("कि") != text_hash("क")
