"""English words of the sample corpora, by their role in a sentence.

No two words sound alike, so that sound alone decides the spelling: that lets a small model be judged by its
ears. A test holds every word against the voice's own phonemes.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = _words("zero one two three four five six seven eight nine")
NUMBERS = _words("ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety hundred thousand")
NAMES = _words(
    "maria peter laura thomas emma robert julia martin sofia daniel alice victor "
    "oscar edward monica henry susan george diana walter barbara benjamin charlotte gabriel"
)
PEOPLE = _words(
    "farmer teacher doctor captain painter driver baker student neighbor lawyer pilot gardener "
    "soldier writer grandmother uncle cousin stranger butcher judge nurse queen carpenter fisherman"
)
ANIMALS = _words("rabbit elephant tiger monkey donkey spider parrot camel wolf dolphin turtle chicken")
OBJECTS = _words(
    "apple basket bottle candle blanket ladder hammer bicycle guitar umbrella "
    "lantern pencil pillow mirror carpet orange trumpet bucket diamond notebook"
)
PLURALS = tuple(f"{word}s" for word in OBJECTS)
PLACES = _words(
    "garden kitchen market museum station village harbor forest mountain bridge library palace "
    "office hospital theater restaurant factory desert valley island tunnel church airport river"
)
ADJECTIVES = _words(
    "yellow green purple golden silver heavy broken empty ancient beautiful wooden tiny huge "
    "clever lazy hungry angry quiet famous friendly nervous gentle rusty frozen curious modern"
)
TRANSITIVE_VERBS = _words(
    "carries paints buys sells finds hides cleans repairs borrows watches loves remembers "
    "forgets describes collects measures opens follows visits touches"
)
INTRANSITIVE_VERBS = _words("sleeps sings dances waits laughs works whispers travels smiles rests")
ADVERBS = _words("slowly quickly always never often usually happily carefully suddenly secretly")
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february april july august september october november december")
DAY_PARTS = _words("morning evening")
MOMENTS = _words("breakfast dinner midnight winter summer")

CONTENT_WORDS = (
    *(*DIGITS, *NUMBERS, *NAMES, *PEOPLE, *ANIMALS, *OBJECTS, *PLACES, *ADJECTIVES),
    *(*TRANSITIVE_VERBS, *INTRANSITIVE_VERBS, *ADVERBS, *DAYS, *MONTHS, *DAY_PARTS, *MOMENTS),
)
"""Words that can stand alone in a word string: no plurals and no unstressed little words."""
