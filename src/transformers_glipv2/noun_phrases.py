"""
Noun phrases of a sentence: the phrases to look for when the caller gives none.

By default rules find them, which are good enough for captions:

1. Every word gets a kind: determiner (the, her, two), adjective (red, small), noun, or other. Words of closed classes
   (prepositions, conjunctions, pronouns, auxiliaries) and frequent verbs of captions are listed below; any other word
   is a noun unless its position or its ending says that it is a verb or an adjective.
2. A phrase is determiner? adjective* noun+, the pattern of the original. Punctuation and a possessive 's end it.

Repeated words are repeated entities: each occurrence is a phrase of its own. What a question asks about things is left
out: "how many dogs" is about dogs, "what color is the cup" about the cup.

spaCy's parser is the other choice (`pip install "transformers-glipv2[phrases]"`, then `python -m spacy download
en_core_web_sm`).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .prompts import Span

# What finds noun phrases.
CHUNKERS = ("rules", "spacy")

# A possessive 's; a word, maybe with hyphens or apostrophes inside; a punctuation mark. \u2019 is the typographic '.
_WORD = re.compile("['\u2019]s\\b|[^\\W_]+(?:[-'\u2019](?!s\\b)[^\\W_]+)*|[^\\w\\s]|_")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    """
    a an the this that these those some any each every another both all no many several few other my your his
    her its our their one two three four five six seven eight nine ten eleven twelve dozen
    """
)
# Words that end a phrase and are in none: prepositions, conjunctions, pronouns, auxiliaries, adverbs.
_OTHERS = _words(
    """
    about above across after against along among amid around as at atop away before behind below beneath beside
    besides between beyond by down during except for from in inside into like near nearby of off on onto
    opposite out outside over past per since through throughout till to toward towards under underneath until up
    upon versus via with within without and or but nor so yet if while when where which who whom whose what why
    how than then because although though i you he she it we they me him them us himself herself itself
    themselves someone somebody something anyone anything everyone everything nobody nothing there here is am
    are was were be been being has have had having do does did done can could will would shall should may might
    must not don't doesn't isn't aren't also just only together apart alone again still already almost even
    either neither next close adjacent far left right up-close
    """
)
_VERBS = _words(
    """
    hold holds held sit sits sat stand stands stood ride rides rode ridden wear wears wore worn carry carries
    eat eats ate eaten look looks lie lies lay lays laid lean leans hang hangs hung run runs ran jump jumps
    throw throws threw thrown catch catches caught hit hits kick kicks play plays walk walks fly flies flew
    drive drives drove driven talk talks read reads write writes sleep sleeps slept swim swims swam wait waits
    watch watches show shows shown point points reach reaches touch touches cut cuts cook cooks push pushes pull
    pulls take takes took taken get gets got give gives gave given go goes went gone come comes came make makes
    made put puts see sees saw seen feed feeds fed chase chases climb climbs cross crosses face faces fill fills
    contain contains rest rests surround surrounds seem seems appear appears graze grazes perform performs
    prepare prepares try tries pose poses smile smiles seated parked filled topped built
    """
)
# Listed verbs that are as often nouns; their position decides.
_VERBS_OR_NOUNS = _words(
    """
    stand stands ride rides look looks run runs jump jumps throw throws catch catches hit hits kick kicks play
    plays walk walks fly flies drive drives talk talks cut cuts cook cooks watch watches show shows point points
    push pull rest rests face faces saw feed climb cross crosses pose poses smile smiles
    """
)
_ADJECTIVES = _words(
    """
    red green blue yellow orange white black brown grey gray pink purple beige tan golden silver gold dark light
    bright colorful colourful big large small little tiny huge tall short long high low wide narrow thick thin
    old young new wooden metal metallic plastic round square flat striped plaid empty full open closed clean
    dirty wet dry hot cold warm fresh ripe sliced whole half different same similar various multiple first
    second third last upper lower front rear back middle bottom top happy sad beautiful pretty cute fancy furry
    fluffy heavy blond blonde bald male female asian snowy sandy grassy rocky muddy cloudy sunny busy modern
    antique single double elderly curly ugly woolly main own such more most
    """
)
# Listed adjectives that end a phrase as nouns do: "an orange", "the top".
_ADJECTIVES_OR_NOUNS = _words(
    """
    orange gold silver light metal plastic square male female top bottom back front
    """
)
_INTENSIFIERS = {"very", "quite", "too", "rather"}
_SIDES = {"left", "right", "front", "back", "top", "bottom", "middle", "next", "close"}
# Not every word in -ing or -ed is a verb.
_ING_NOUNS = _words(
    """
    building ceiling painting railing clothing wing ring string king swing earring thing awning sibling duckling
    pudding wedding icing evening morning frosting drawing crossing siding topping dressing lighting bedding
    spring sting sling paving flooring handwriting fencing
    """
)
_ING_MODIFIERS = _words(
    """
    dining parking swimming living washing cutting shopping baking sewing fishing sleeping
    """
)
_ED_NOUNS = _words(
    """
    bed shed seed weed reed sled moped steed breed speed feed flatbed
    """
)
_LY_ADJECTIVES_OR_NOUNS = _words(
    """
    family jelly lily belly ally bully butterfly fly curly ugly woolly elderly wooly silly early daily dolly
    trolley assembly supply lovely friendly
    """
)

# What questions ask about things, which is none itself: "what color is the cup?", "which kind of bird".
_ASKED = _words("brand color colour gender kind make material number shape size sort species time type")

# Kinds of words, one letter each, so that the pattern of a phrase is a regular expression.
DETERMINER, ADJECTIVE, NOUN, OTHER = "d", "j", "n", "x"
_PHRASE = re.compile(f"{DETERMINER}?{ADJECTIVE}*{NOUN}+")


def chunk_kinds(kinds: str) -> list[Span]:
    """
    Phrases of a sentence whose words have kinds.

    Args:
        kinds (`str`): one letter a word: d(eterminer), j (adjective), n(oun), x (other).

    Returns:
        `list[tuple[int, int]]`: the words [start, end) of each phrase: determiner? adjective* noun+.
    """
    return [match.span() for match in _PHRASE.finditer(kinds)]


def words_of(sentence: str) -> list[Span]:
    """Characters [start, end) of each word, punctuation mark and possessive 's."""
    return [match.span() for match in _WORD.finditer(sentence)]


def tag_words(words: Sequence[str]) -> str:
    """
    The kind of each word by the rules of this file.

    Args:
        words (`Sequence[str]`): words and punctuation marks of one sentence.

    Returns:
        `str`: one letter a word, as `chunk_kinds` takes them.
    """
    words = [word.lower().replace("\u2019", "'") for word in words]
    kinds: list[str] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        previous = words[index - 1] if index else ""
        asks = (previous == "how" and word in ("many", "much")) or (previous in ("what", "which") and word in _ASKED)
        kinds.append(OTHER if asks else _kind(word, kinds[-1] if kinds else OTHER, following))
    return "".join(kinds)


def _opens_phrase(word: str) -> bool:
    return word in _DETERMINERS or word.isdigit()


def _is_content(word: str) -> bool:
    """May be an adjective or a noun, so that the word before it may describe it."""
    return word[:1].isalnum() and not _opens_phrase(word) and word not in _OTHERS and word not in _INTENSIFIERS


def _kind(word: str, before: str, following: str) -> str:
    """The kind of a word from itself, the kind before it and the word after it."""
    in_phrase = before in (DETERMINER, ADJECTIVE)
    describes = _is_content(following)
    if word in _SIDES:
        # "the left chair", "the top" but "left of", "in front of", "next to".
        if in_phrase and following != "of" and (describes or word in _ADJECTIVES_OR_NOUNS):
            return ADJECTIVE if describes else NOUN
        return OTHER
    if word in _INTENSIFIERS:
        return ADJECTIVE if in_phrase and describes else OTHER
    if not word[0].isalnum() or word in _OTHERS:
        return OTHER
    if _opens_phrase(word):
        return DETERMINER
    if word in _VERBS and not (word in _VERBS_OR_NOUNS and in_phrase):
        return OTHER
    if word in _ADJECTIVES:
        # "a red apple", "is red" (no phrase, for want of a noun), "an orange", "a traffic light".
        is_noun = word in _ADJECTIVES_OR_NOUNS and (before == NOUN or (in_phrase and not describes))
        return NOUN if is_noun else ADJECTIVE
    if before == NOUN and _opens_phrase(following):
        return OTHER  # "a girl paints the wall": two phrases do not touch
    if word.endswith("ing") and len(word) > 4 and word not in _ING_NOUNS:
        modifies = describes and (in_phrase or word in _ING_MODIFIERS) and before != NOUN
        return ADJECTIVE if modifies else OTHER
    if word.endswith("ed") and len(word) > 3 and word not in _ED_NOUNS:
        return ADJECTIVE if describes and before != NOUN else OTHER
    if word.endswith("ly") and word not in _LY_ADJECTIVES_OR_NOUNS:
        return OTHER
    return NOUN


def chunk_noun_phrases(sentence: str) -> list[Span]:
    """
    Noun phrases by the rules of this file.

    Args:
        sentence (`str`): English.

    Returns:
        `list[tuple[int, int]]`: characters [start, end) of each phrase, in order.
    """
    spans = words_of(sentence)
    kinds = tag_words([sentence[start:end] for start, end in spans])
    return [(spans[first][0], spans[stop - 1][1]) for first, stop in chunk_kinds(kinds)]


@lru_cache(maxsize=1)
def _spacy_model() -> Any:
    """spaCy's small English model."""
    try:
        import spacy  # here, since it takes seconds

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:  # spaCy, or its model, is not installed
        raise ImportError(
            'The chunker "spacy" needs spaCy and its English model: `pip install "transformers-glipv2[phrases]"`, '
            'then `python -m spacy download en_core_web_sm`. Or take the chunker "rules".'
        ) from error


def check_chunker(chunker: str) -> None:
    """Raises ValueError unless `chunker` is one of `CHUNKERS`."""
    if chunker not in CHUNKERS:
        raise ValueError(f"the chunker of noun phrases is {chunker!r}; choose one of {', '.join(CHUNKERS)}.")


def find_noun_phrases(sentence: str, chunker: str = "rules") -> list[Span]:
    """
    Noun phrases of a sentence.

    Args:
        sentence (`str`): English.
        chunker (`str`, *optional*, defaults to `"rules"`): `"rules"` (`chunk_noun_phrases`) or `"spacy"`. Nothing is
            chosen by what is installed, so that a sentence has the same phrases on every machine.

    Returns:
        `list[tuple[int, int]]`: characters [start, end) of each phrase, in order, without pronouns.

    Raises:
        ValueError: for another chunker.
        ImportError: when spaCy or its English model is missing.
    """
    check_chunker(chunker)
    if chunker == "rules":
        return chunk_noun_phrases(sentence)
    chunks = _spacy_model()(sentence).noun_chunks
    spans = [(chunk.start_char, chunk.end_char) for chunk in chunks if chunk.root.pos_ != "PRON"]
    spans = [(start + _length_of_question(sentence[start:end]), end) for start, end in spans]
    return [(start, end) for start, end in spans if start < end]


def _length_of_question(phrase: str) -> int:
    """Characters at the beginning of a phrase that ask: "how many " of "how many dogs", all of "what color"."""
    match = re.match(rf"how (many|much)\b\s*|(what|which) ({'|'.join(sorted(_ASKED))})$", phrase, re.IGNORECASE)
    return match.end() if match else 0
