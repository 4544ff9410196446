"""Sentences that are true of a composite scene: captions, referring phrases, questions with answers."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers_glipv2.data.scenes.assets import SceneAssets
from transformers_glipv2.data.scenes.colours import COLOUR_NAMES
from transformers_glipv2.data.scenes.render import SceneObject
from transformers_glipv2.data.scenes.words import NUMBERS, is_mass, is_plural_form, plural, with_article

SIDES = ("left of", "right of")
RELATIONS = (*SIDES, "above", "below", "in front of", "behind")
QUESTION_TYPES = ("what", "how many", "which color", "is there", "left or right")

# How much of an object must be hidden before one says that it is behind another.
_BEHIND_FRACTION = 0.1
_SIZE_RATIO = 2.5


@dataclass
class SceneText:
    """
    A sentence about a scene.

    Attributes:
        text (`str`): a caption, a phrase or a question.
        spans (`dict[int, list[list[int]]]`): character spans [start, end) of the words for each object that is
            mentioned.
        phrases (`dict[int, str]`): the words for each object that is mentioned.
        answer (`str` or `None`), question_type (`str` or `None`): of questions.
        referents (`list[int]`): of a referring phrase: the objects that the whole of it refers to.
    """

    text: str = ""
    spans: dict[int, list[list[int]]] = field(default_factory=dict)
    phrases: dict[int, str] = field(default_factory=dict)
    answer: str | None = None
    question_type: str | None = None
    referents: list[int] = field(default_factory=list)

    def add(self, words: str, objects: Iterable[int] = ()) -> "SceneText":
        """Append words; with objects, the words refer to them."""
        span = [len(self.text), len(self.text) + len(words)]
        self.text += words
        for index in objects:
            self.spans.setdefault(index, []).append(span)
            self.phrases.setdefault(index, words)
        return self


def holds(relation: str, one: SceneObject, other: SceneObject, other_index: int, one_index: int) -> bool:
    """Whether "one RELATION other" is plainly true: boxes hardly overlap in that direction, the way is not askew."""
    if relation == "behind":
        return one.hidden_by.get(other_index, 0) >= _BEHIND_FRACTION
    if relation == "in front of":
        return other.hidden_by.get(one_index, 0) >= _BEHIND_FRACTION
    axis = 0 if relation in SIDES else 1
    if relation in ("right of", "below"):
        one, other = other, one
    end, start = one.bbox[axis] + one.bbox[axis + 2], other.bbox[axis]
    overlap = end - start
    across = abs(_centre(one, 1 - axis) - _centre(other, 1 - axis))
    along = _centre(other, axis) - _centre(one, axis)
    return overlap <= 0.15 * min(one.bbox[axis + 2], other.bbox[axis + 2]) and across <= along


def may_hold(relation: str, one: SceneObject, other: SceneObject, other_index: int, one_index: int) -> bool:
    """Whether somebody might say "one RELATION other"; where this is false, the sentence is plainly false."""
    if relation == "behind":
        return one.hidden_by.get(other_index, 0) > 0
    if relation == "in front of":
        return other.hidden_by.get(one_index, 0) > 0
    axis = 0 if relation in SIDES else 1
    if relation in ("right of", "below"):
        one, other = other, one
    return _centre(one, axis) < _centre(other, axis)


def names_of(index: int, objects: Sequence[SceneObject]) -> list[str]:
    """Short names, without an article, that mean this object of the scene and no other; may be none."""
    own = objects[index]
    rivals = [o for i, o in enumerate(objects) if i != index and o.noun == own.noun]
    if not rivals:
        adjectives = [*([own.colour] if own.colour else []), *own.attributes]
        return [own.noun, *(f"{adjective} {own.noun}" for adjective in adjectives)]
    names = []
    if own.colour and all(rival.colour and rival.colour != own.colour for rival in rivals):
        names.append(f"{own.colour} {own.noun}")
    if len(rivals) == 1:
        ratio = own.area / rivals[0].area
        if ratio >= _SIZE_RATIO or ratio <= 1 / _SIZE_RATIO:
            names.append(f"{'large' if ratio > 1 else 'small'} {own.noun}")
    return names


def group_name(noun: str, objects: Sequence[SceneObject], with_colour: bool = True) -> tuple[str, list[int]]:
    """All objects of a noun in one phrase ("a red apple", "two chairs"), and their indices."""
    members = [index for index, o in enumerate(objects) if o.noun == noun]
    colours = {objects[index].colour for index in members}
    colour = colours.pop() if len(colours) == 1 else None
    prefix = f"{colour} " if colour and with_colour else ""
    if len(members) == 1:
        attribute = next(iter(objects[members[0]].attributes), "")
        prefix = prefix or (f"{attribute} " if attribute else "")
        return with_article(f"{prefix}{noun}"), members
    if is_plural_form(noun) or is_mass(noun):
        unit = "pieces" if is_mass(noun) else "pairs"
        return f"{NUMBERS[len(members)]} {unit} of {prefix}{noun}", members
    return f"{NUMBERS[len(members)]} {prefix}{plural(noun)}", members


def list_caption(objects: Sequence[SceneObject], opening: str = "", with_colour: bool = True) -> SceneText:
    """Everything in the scene, from left to right."""
    sentence = SceneText().add(opening)
    nouns = sorted({o.noun for o in objects}, key=lambda noun: min(_centre(o, 0) for o in objects if o.noun == noun))
    for index, noun in enumerate(nouns):
        if index:
            sentence.add(" and " if index == len(nouns) - 1 else ", ")
        sentence.add(*group_name(noun, objects, with_colour))
    return sentence


def relation_caption(objects: Sequence[SceneObject], rng: random.Random) -> SceneText | None:
    """ "a red apple left of a wooden chair", of one or two relations; `None` where none is plain."""
    found = _plain_relations(objects, rng)
    named = [(a, relation, b) for a, relation, b in found if names_of(a, objects) and names_of(b, objects)]
    if not named:
        return None
    first, relation, second = named[0]
    name = {index: with_article(rng.choice(names_of(index, objects))) for index in (first, second)}
    sentence = SceneText().add(rng.choice(("", "", "there is ", "a picture of ")))
    sentence.add(name[first], [first]).add(f" {_spoken(relation, rng)} ").add(name[second], [second])
    more = [(a, r, b) for a, r, b in named[1:] if a == first and b not in (first, second)]
    if more and rng.random() < 0.6:
        _, relation, third = more[0]
        sentence.add(f" and {_spoken(relation, rng)} ").add(
            with_article(rng.choice(names_of(third, objects))), [third]
        )
    return sentence


def referring_phrase(objects: Sequence[SceneObject], rng: random.Random, hard: bool = True) -> SceneText | None:
    """
    "the red cup left of the bottle": words that mean exactly one object.

    Args:
        objects (`Sequence[SceneObject]`): the scene.
        rng (`random.Random`): the only source of chance.
        hard (`bool`, *optional*, defaults to `True`): prefer objects that their noun alone does not identify.

    Returns:
        `SceneText | None`: `spans` hold the head of the referent and the landmark's words for the landmark;
        `phrases` of the referent is the whole. `None` where nothing can be said without doubt.
    """
    order = list(range(len(objects)))
    rng.shuffle(order)
    if hard:
        order.sort(key=lambda index: sum(o.noun == objects[index].noun for o in objects) < 2)
    for index in order:
        ways = [_by_relation, _by_relation, _by_name, _by_extreme]
        rng.shuffle(ways)
        for way in ways:
            sentence = way(index, objects, rng)
            if sentence is not None:
                sentence.referents = [index]
                sentence.phrases[index] = sentence.text
                return sentence
    return None


def _by_name(index: int, objects: Sequence[SceneObject], rng: random.Random) -> SceneText | None:
    names = names_of(index, objects)
    return SceneText().add(f"the {rng.choice(names)}", [index]) if names else None


def _by_extreme(index: int, objects: Sequence[SceneObject], rng: random.Random) -> SceneText | None:
    """ "the leftmost cup", "the cup on the right", where it is so by a good margin."""
    own = objects[index]
    rivals = [o for i, o in enumerate(objects) if i != index and o.noun == own.noun]
    if not rivals:
        return None
    words = []
    for axis, low, high in (
        (0, ("leftmost", "left"), ("rightmost", "right")),
        (1, ("top", "top"), ("bottom", "bottom")),
    ):
        gaps = [_centre(rival, axis) - _centre(own, axis) for rival in rivals]
        margin = 0.6 * max(o.bbox[axis + 2] for o in (own, *rivals))
        for (adjective, side), signed in ((low, gaps), (high, [-gap for gap in gaps])):
            if min(signed) >= margin:
                words.append(f"the {adjective} {own.noun}")
                if len(rivals) == 1 and axis == 0:
                    words.append(f"the {own.noun} on the {side}")
    return SceneText().add(rng.choice(words), [index]) if words else None


def _by_relation(index: int, objects: Sequence[SceneObject], rng: random.Random) -> SceneText | None:
    own = objects[index]
    relations = [(relation, b) for a, relation, b in _plain_relations(objects, rng) if a == index]
    for relation, landmark in relations:
        names = names_of(landmark, objects)
        if not names or objects[landmark].noun == own.noun:
            continue
        heads = [own.noun] + ([f"{own.colour} {own.noun}"] if own.colour else [])
        rng.shuffle(heads)
        for head in heads:
            # Whoever the head might mean, the relation must rule out.
            rivals = [
                i
                for i, o in enumerate(objects)
                if i != index and o.noun == own.noun and (head == own.noun or o.colour in (own.colour, None))
            ]
            if not any(may_hold(relation, objects[i], objects[landmark], landmark, i) for i in rivals):
                sentence = SceneText().add(f"the {head}", [index]).add(f" {_spoken(relation, rng)} ")
                return sentence.add(f"the {rng.choice(names)}", [landmark])
    return None


def question(objects: Sequence[SceneObject], absent: Sequence[str], rng: random.Random, kind: str) -> SceneText | None:
    """
    A question and its one answer.

    Args:
        objects (`Sequence[SceneObject]`): the scene.
        absent (`Sequence[str]`): nouns that are surely not in the image.
        rng (`random.Random`): the only source of chance.
        kind (`str`): one of `QUESTION_TYPES`.

    Returns:
        `SceneText | None`: `None` where the scene allows no such question without doubt.
    """
    ask = {
        "what": _ask_what,
        "how many": _ask_how_many,
        "which color": _ask_colour,
        "is there": _ask_presence,
        "left or right": _ask_side,
    }[kind]
    sentence = ask(objects, absent, rng)
    if sentence is not None:
        sentence.question_type = kind
    return sentence


def answers_of(nouns: Iterable[str]) -> list[str]:
    """Every answer that a question about scenes of these nouns may have."""
    digits = [str(number) for number in range(len(NUMBERS))]
    return ["yes", "no", "left", "right", *digits, *COLOUR_NAMES, *sorted(set(nouns) - set(COLOUR_NAMES))]


def coloured_labels(
    assets: SceneAssets, objects: Sequence[SceneObject], shown: frozenset[str], rng: random.Random, count: int = 60
) -> tuple[list[str], list[str]]:
    """
    Labels with colours for a scene.

    Args:
        assets (`SceneAssets`): whose held-out pairs are never named.
        objects (`Sequence[SceneObject]`): the scene.
        shown (`frozenset[str]`): nouns that the background may show.
        rng (`random.Random`): the only source of chance.
        count (`int`, *optional*, defaults to 60): absent labels.

    Returns:
        `tuple[list[str], list[str]]`: the label of each object, and absent labels. A noun has a colour where
        all its objects have one ("red chair"); then the same noun in other colours is among the absent.
    """
    plain = {o.noun for o in objects if o.colour is None}
    categories = [o.noun if o.noun in plain else f"{o.colour} {o.noun}" for o in objects]
    negatives = []
    for noun in sorted({o.noun for o in objects} - plain):
        there = {o.colour for o in objects if o.noun == noun}
        others = [
            colour
            for colour in COLOUR_NAMES
            if colour not in there
            and not any(alike(colour, own) for own in there)
            and (colour, noun) not in assets.held_out_pairs
        ]
        negatives += [f"{colour} {noun}" for colour in rng.sample(others, min(3, len(others)))]
    absent = assets.absent(assets.nouns, [o.noun for o in objects], shown)
    for noun in rng.sample(absent, min(count - len(negatives), len(absent))):
        colour = rng.choice(COLOUR_NAMES)
        named = rng.random() < 0.7 and (colour, noun) not in assets.held_out_pairs
        negatives.append(f"{colour} {noun}" if named else noun)
    return categories, negatives


def _ask_what(objects: Sequence[SceneObject], absent: Sequence[str], rng: random.Random) -> SceneText | None:
    questions: list[tuple[str, int, int | None]] = []
    if len({o.noun for o in objects}) == 1:
        questions.append((rng.choice(("what is in the picture?", "what is this?")), 0, None))
    for index, own in enumerate(objects):
        # An object of two colours might be meant as well.
        if own.colour and all(o.colour not in (own.colour, None) for i, o in enumerate(objects) if i != index):
            questions.append((f"what is the {own.colour} thing?", index, None))
    for a, relation, b in _plain_relations(objects, rng):
        others = [i for i in range(len(objects)) if i not in (a, b)]
        if relation in ("in front of", "behind") or not names_of(b, objects):
            continue
        if not any(may_hold(relation, objects[i], objects[b], b, i) for i in others):
            questions.append((relation, a, b))
    if not questions:
        return None
    words, target, landmark = rng.choice(questions)
    sentence = SceneText(answer=objects[target].noun)
    if landmark is None:
        return sentence.add(words)
    sentence.add(f"what is {_spoken(words, rng)} ").add(f"the {rng.choice(names_of(landmark, objects))}", [landmark])
    return sentence.add("?")


def _ask_how_many(objects: Sequence[SceneObject], absent: Sequence[str], rng: random.Random) -> SceneText | None:
    # Nobody counts bread, nor scissors without asking whether pairs are meant.
    nouns = sorted({o.noun for o in objects if not (is_plural_form(o.noun) or is_mass(o.noun))})
    if not nouns:
        return None
    counts = {noun: [i for i, o in enumerate(objects) if o.noun == noun] for noun in nouns}
    noun = max(nouns, key=lambda n: (len(counts[n]), n)) if rng.random() < 0.8 else rng.choice(nouns)
    unseen = [n for n in rng.sample(absent, min(8, len(absent))) if not (is_plural_form(n) or is_mass(n))]
    if unseen and rng.random() < 0.1:
        return SceneText(answer="0").add(f"how many {plural(unseen[0])} are there?")
    sentence = SceneText(answer=str(len(counts[noun]))).add("how many ").add(plural(noun), counts[noun])
    return sentence.add(rng.choice((" are there?", " are in the picture?")))


def _ask_colour(objects: Sequence[SceneObject], absent: Sequence[str], rng: random.Random) -> SceneText | None:
    named = []
    for index, o in enumerate(objects):
        names = [name for name in names_of(index, objects) if not o.colour or o.colour not in name.split()]
        if o.colour and names:
            named.append((index, rng.choice(names)))
    if not named:
        return None
    index, name = rng.choice(named)
    verb = "are" if is_plural_form(objects[index].noun) else "is"
    return SceneText(answer=objects[index].colour).add(f"what color {verb} ").add(f"the {name}", [index]).add("?")


def _ask_presence(objects: Sequence[SceneObject], absent: Sequence[str], rng: random.Random) -> SceneText | None:
    yes = rng.random() < 0.5 or not absent
    coloured = [o for o in objects if o.colour and all(r.colour for r in objects if r.noun == o.noun)]
    if coloured and rng.random() < 0.4:
        o = rng.choice(coloured)
        there = {r.colour for r in objects if r.noun == o.noun}
        others = [c for c in COLOUR_NAMES[:7] if c not in there and not any(alike(c, t) for t in there)]
        colour = o.colour if yes or not others else rng.choice(others)
        members = [i for i, r in enumerate(objects) if r.noun == o.noun and r.colour == colour]
        return _presence(f"{colour} {o.noun}", members)
    if yes:
        noun = rng.choice(objects).noun
        return _presence(noun, [i for i, o in enumerate(objects) if o.noun == noun])
    return _presence(rng.choice(absent), [])


def _presence(name: str, members: list[int]) -> SceneText:
    verb = "are there" if is_plural_form(name) else "is there"
    sentence = SceneText(answer="yes" if members else "no").add(f"{verb} ")
    return sentence.add(with_article(name) if verb == "is there" else name, members).add("?")


def _ask_side(objects: Sequence[SceneObject], absent: Sequence[str], rng: random.Random) -> SceneText | None:
    found = [
        (a, relation, b)
        for a, relation, b in _plain_relations(objects, rng)
        if relation in SIDES and names_of(a, objects) and names_of(b, objects)
    ]
    if not found:
        return None
    a, relation, b = found[0]
    side = relation.split()[0]
    names = [f"the {rng.choice(names_of(index, objects))}" for index in (a, b)]
    verb = "are" if is_plural_form(objects[a].noun) else "is"
    sentence = SceneText().add(f"{verb} ").add(names[0], [a])
    if rng.random() < 0.5:
        sentence.answer = side
        return sentence.add(" left or right of ").add(names[1], [b]).add("?")
    asked = rng.choice(("left", "right"))
    sentence.answer = "yes" if asked == side else "no"
    return sentence.add(f" {asked} of ").add(names[1], [b]).add("?")


def alike(one: str, other: str | None) -> bool:
    """Whether two colours are so near that people disagree."""
    near: tuple[str, ...] = (
        "red pink",
        "red orange",
        "orange yellow",
        "orange brown",
        "purple pink",
        "purple blue",
        "gray white",
    )
    near += ("gray black", "red brown", "yellow brown")
    return f"{one} {other}" in near or f"{other} {one}" in near


def _plain_relations(objects: Sequence[SceneObject], rng: random.Random) -> list[tuple[int, str, int]]:
    """All (one, relation, other) that are plainly true, shuffled."""
    found = [
        (a, relation, b)
        for a, one in enumerate(objects)
        for b, other in enumerate(objects)
        if a != b
        for relation in RELATIONS
        if holds(relation, one, other, b, a)
    ]
    rng.shuffle(found)
    return found


def _spoken(relation: str, rng: random.Random) -> str:
    return f"to the {relation}" if relation in SIDES and rng.random() < 0.4 else relation


def _centre(o: SceneObject, axis: int) -> float:
    return o.bbox[axis] + o.bbox[axis + 2] / 2
