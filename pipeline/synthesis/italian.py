"""Italian sentences and their English translations, from one grammar in both languages."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """An Italian sentence and what it means."""

    italian: str
    english: str


class Phrase(NamedTuple):
    """A phrase in both languages."""

    italian: str
    english: str


class Verb(NamedTuple):
    """Third person singular in both languages, and the English infinitive for questions and negations."""

    italian: str
    english: str
    infinitive: str


SUBJECTS = (
    Phrase("il contadino", "the farmer"),
    Phrase("la maestra", "the teacher"),
    Phrase("il mio vicino", "my neighbor"),
    Phrase("mia sorella", "my sister"),
    Phrase("il vecchio capitano", "the old captain"),
    Phrase("una giovane attrice", "a young actress"),
    Phrase("il nostro medico", "our doctor"),
    Phrase("la bambina", "the little girl"),
    Phrase("il pittore famoso", "the famous painter"),
    Phrase("mio fratello", "my brother"),
    Phrase("la cantante", "the singer"),
    Phrase("un turista curioso", "a curious tourist"),
    Phrase("Maria", "Maria"),
    Phrase("Lorenzo", "Lorenzo"),
)
VERBS = (
    Verb("compra", "buys", "buy"),
    Verb("vende", "sells", "sell"),
    Verb("porta", "carries", "carry"),
    Verb("cerca", "looks for", "look for"),
    Verb("trova", "finds", "find"),
    Verb("dipinge", "paints", "paint"),
    Verb("pulisce", "cleans", "clean"),
    Verb("guarda", "watches", "watch"),
    Verb("nasconde", "hides", "hide"),
    Verb("dimentica", "forgets", "forget"),
    Verb("perde", "loses", "lose"),
    Verb("regala", "gives away", "give away"),
)
OBJECTS = (
    Phrase("una mela rossa", "a red apple"),
    Phrase("il libro verde", "the green book"),
    Phrase("due bottiglie", "two bottles"),
    Phrase("la bicicletta nuova", "the new bicycle"),
    Phrase("un tavolo di legno", "a wooden table"),
    Phrase("tre candele", "three candles"),
    Phrase("la chiave d'oro", "the golden key"),
    Phrase("un cappello nero", "a black hat"),
    Phrase("sette arance", "seven oranges"),
    Phrase("la vecchia chitarra", "the old guitar"),
    Phrase("uno specchio rotto", "a broken mirror"),
    Phrase("le scarpe bianche", "the white shoes"),
    Phrase("un orologio prezioso", "a precious clock"),
    Phrase("molte lettere", "many letters"),
)
PLACES = (
    Phrase("al mercato", "at the market"),
    Phrase("in cucina", "in the kitchen"),
    Phrase("vicino al fiume", "near the river"),
    Phrase("sotto il ponte", "under the bridge"),
    Phrase("dietro la chiesa", "behind the church"),
    Phrase("alla stazione", "at the station"),
    Phrase("nel giardino", "in the garden"),
    Phrase("davanti al museo", "in front of the museum"),
    Phrase("in biblioteca", "in the library"),
    Phrase("sull'isola", "on the island"),
)
TIMES = (
    Phrase("ogni mattina", "every morning"),
    Phrase("dopo cena", "after dinner"),
    Phrase("prima di mezzogiorno", "before noon"),
    Phrase("la domenica", "on Sundays"),
    Phrase("in primavera", "in spring"),
    Phrase("di notte", "at night"),
    Phrase("durante le vacanze", "during the holidays"),
    Phrase("tutti i giorni", "every day"),
)
TEMPLATES = (
    Phrase("{subject} {verb} {object} {place}.", "{subject} {verb} {object} {place}."),
    Phrase("{time} {subject} {verb} {object}.", "{time} {subject} {verb} {object}."),
    Phrase("{subject} non {verb} {object} {time}.", "{subject} does not {infinitive} {object} {time}."),
    Phrase("perché {subject} {verb} {object} {place}?", "why does {subject} {infinitive} {object} {place}?"),
    Phrase(
        "{time} {subject} {verb} {object} {place}.",
        "{time} {subject} {verb} {object} {place}.",
    ),
)


def make_translation(rng: np.random.Generator) -> Translation:
    """A sentence of the grammar in both languages, with capital letter and punctuation."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    verb = VERBS[rng.integers(len(VERBS))]
    lists = {"subject": SUBJECTS, "object": OBJECTS, "place": PLACES, "time": TIMES}
    phrases = {role: choices[rng.integers(len(choices))] for role, choices in lists.items()}
    italian = {role: phrase.italian for role, phrase in phrases.items()}
    english = {role: phrase.english for role, phrase in phrases.items()}
    return Translation(
        italian=_capitalise(template.italian.format(verb=verb.italian, **italian)),
        english=_capitalise(
            template.english.format(verb=verb.english, infinitive=verb.infinitive, **english)
        ),
    )


def _capitalise(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
