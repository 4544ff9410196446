"""Answers in the form in which VQA v2 compares them: the text rules of its official evaluation."""

import re

NUMBERS = {
    word: str(digit)
    for digit, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}


ARTICLES = frozenset(("a", "an", "the"))


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


# Every mark of this list goes out of an answer that has a comma between digits; else it leaves a space behind.
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)


_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)


# Answers lose at most this many periods: the official code passes a flag of this value where the count belongs.
_MAX_PERIODS = 32


# Words that get their apostrophe back. Each group is a form with its apostrophes and how answers spell it without.
_CONTRACTIONS = """
ain't aint|aren't arent|can't cant|could've couldve|couldn't couldnt|couldn't've couldn'tve couldnt've|didn't didnt|
doesn't doesnt|don't dont|hadn't hadnt|hadn't've hadnt've hadn'tve|hasn't hasnt|haven't havent|he'd hed|
he'd've hed've he'dve|he's hes|how'd howd|how'll howll|how's hows|isn't isnt|it'd itd|it'd've itd've it'dve|
it'll itll|ma'am maam|mightn't mightnt|mightn't've mightnt've mightn'tve|might've mightve|mustn't mustnt|
must've mustve|needn't neednt|not've notve|o'clock oclock|oughtn't oughtnt|'ow's'at ow's'at 'ows'at 'ow'sat|
shan't shant|she'd've shed've she'dve|should've shouldve|shouldn't shouldnt|shouldn't've shouldnt've shouldn'tve|
somebodyd somebody'd|somebody'd've somebodyd've somebody'dve|somebody'll somebodyll|somebody's somebodys|
someone'd someoned|someone'd've someoned've someone'dve|someone'll someonell|someone's someones|
something'd somethingd|something'd've somethingd've something'dve|something'll somethingll|that's thats|
there'd thered|there'd've thered've there'dve|there're therere|there's theres|they'd theyd|
they'd've theyd've they'dve|they'll theyll|they're theyre|they've theyve|'twas twas|wasn't wasnt|
we'd've wed've we'dve|we've weve|weren't werent|what'll whatll|what're whatre|what's whats|what've whatve|
when's whens|where'd whered|where's wheres|where've whereve|who'd whod|who'd've whod've who'dve|who'll wholl|
who's whos|who've whove|why'll whyll|why're whyre|why's whys|won't wont|would've wouldve|wouldn't wouldnt|
wouldn't've wouldnt've wouldn'tve|y'all yall|y'all'll yall'll y'allll|y'all'd've yall'd've y'alld've y'all'dve|
you'd youd|you'd've youd've you'dve|you'll youll|you're youre|you've youve
"""


CONTRACTIONS = {
    spelling: group.split()[0]
    for group in _CONTRACTIONS.replace("\n", "").split("|")
    for spelling in group.split()[1:]
}


def normalize_answer(answer: str) -> str:
    """Without punctuation and articles, in lower case, number words as digits, contractions with apostrophes."""
    return _normalize_words(_normalize_punctuation(_strip(answer)))


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalize_punctuation(text: str) -> str:
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        vanishes = has_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _normalize_words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
