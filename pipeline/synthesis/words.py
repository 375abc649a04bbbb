"""English words of the sample corpora, by their role in a sentence.

No two words sound alike, so that sound alone decides the spelling: that lets a small model be judged by its
ears. A test holds every word against the voice's own phonemes.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = _words("zero one two three four five six seven eight nine")
NUMBERS = _words("ten eleven twelve twenty thirty forty fifty hundred thousand")
NAMES = _words(
    "maria peter laura thomas emma robert julia martin sofia daniel oscar benjamin charlotte gabriel"
)
PEOPLE = _words(
    "farmer teacher doctor captain painter baker student lawyer pilot soldier grandmother carpenter"
)
ANIMALS = _words("rabbit elephant tiger monkey spider parrot turtle chicken")
OBJECTS = _words("apple basket bottle candle blanket hammer bicycle guitar umbrella pencil trumpet notebook")
PLURALS = tuple(f"{word}s" for word in OBJECTS)
PLACES = _words("garden kitchen market museum station village harbor forest mountain bridge hospital airport")
ADJECTIVES = _words(
    "yellow purple golden heavy broken empty ancient beautiful wooden hungry famous friendly quiet modern"
)
TRANSITIVE_VERBS = _words(
    "carries paints buys finds repairs borrows watches remembers collects opens follows visits"
)
INTRANSITIVE_VERBS = _words("sleeps sings dances waits laughs travels")
ADVERBS = _words("slowly always never often carefully suddenly")
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january april july august october december")
DAY_PARTS = _words("morning evening")
MOMENTS = _words("breakfast dinner midnight summer")

CONTENT_WORDS = (
    *(*DIGITS, *NUMBERS, *NAMES, *PEOPLE, *ANIMALS, *OBJECTS, *PLACES, *ADJECTIVES),
    *(*TRANSITIVE_VERBS, *INTRANSITIVE_VERBS, *ADVERBS, *DAYS, *MONTHS, *DAY_PARTS, *MOMENTS),
)
"""Words that can stand alone in a word string: no plurals and no unstressed little words."""
