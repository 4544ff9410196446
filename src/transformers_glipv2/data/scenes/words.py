"""Words of composite scenes: articles, plurals, and which nouns may be confused."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "shelf": "shelves",
    "loaf": "loaves",
    "scarf": "scarves",
    "ox": "oxen",
}
# Plural already, or the same in the plural.
_UNCHANGED = {
    "fish", "sheep", "deer", "moose", "bison", "buffalo", "shrimp", "squid", "salmon", "bread", "bacon", "broccoli",
    "butter", "cheese", "corn", "fire", "garlic", "ginger", "honey", "lettuce", "meat", "money", "paper", "popcorn",
    "spaghetti", "sushi", "soap", "toilet paper", "yarn", "coral", "lightning", "dice",
    "scissors", "glasses", "sunglasses", "goggles", "trousers", "shorts", "headphones", "gloves", "skis", "pliers",
    "socks", "slippers", "grapes", "cherries", "blueberries", "beans", "noodles", "pancakes", "chopsticks", "maracas",
    "ballet shoes", "nesting dolls", "french fries", "binoculars", "jeans", "ice cream",
}  # fmt: skip

_MASS = {
    "bread", "bacon", "broccoli", "butter", "cheese", "corn", "fire", "garlic", "ginger", "lettuce", "meat", "popcorn",
    "spaghetti", "sushi", "soap", "paper", "toilet paper", "yarn", "coral",
}  # fmt: skip

# Within a line nothing may be called absent, or stand beside another unasked, on account of its name: one is a kind
# of another, or people call one by the other's name, or the images look alike.
_ALIKE = """
sofa couch armchair chair ottoman stool bench futon bed
bed crib bunk bed hospital bed air mattress hammock sleeping bag
car taxi police car race car automobile van truck suv toy car
bus van train tram rickshaw cable car
truck fire truck ambulance forklift pickup van tractor
motorcycle motor scooter bicycle kick scooter tricycle rocking horse exercise bike
airplane biplane helicopter rocket
ship boat sailboat rowboat canoe
man boy person mannequin baby woman girl doll statue fireman robot
cat wild cat tiger lion leopard cougar cheetah kitten cartoon cat
dog wolf fox dingo puppy dalmatian cartoon dog
horse zebra donkey unicorn carousel horse rocking horse camel
cow ox bull buffalo bison yak zebu water buffalo
deer moose reindeer caribou
sheep ram goat llama mountaingoat
pig boar
mouse rat hamster squirrel chipmunk marmot beaver badger otter
monkey gorilla orangutan chimpanzee
bear polar bear panda teddy bear koala
bird chicken rooster chick duck goose turkey dove pigeon eagle owl parrot swan flamingo peacock penguin \
crow magpie blackbird bluebird seagull pelican vulture toucan lark cuckoo ostrich rhea quetzal drake
whale dolphin shark fish orca seal tropical fish clownfish butterflyfish dolphinfish
lizard dragon dinosaur crocodile iguana
fly bee mosquito hornet ant beetle ladybug cockroach cricket grasshopper mantis butterfly dragonfly \
spider woodlouse
brontosaurus stegosaurus dinosaur
face man woman boy girl
emu ibis ostrich bird flamingo
bass fish
pagoda temple tower minaret
menorah candle chandelier lamp
nautilus trilobite snail seashell
mandolin guitar electric guitar
buddha statue
lotus water lily
motorbike motorcycle
ferry ship sailing ship sailboat
tick ant mayfly dragonfly
camera binocular
lobster shrimp crab crayfish fried shrimp
octopus squid jellyfish
snail seashell
worm snake caterpillar
tree pine tree palm tree christmas tree bonsai potted plant bush hedge cactus seedling bamboo
leaf clover seedling lettuce
flower rose tulip sunflower hibiscus lotus daffodil lily iris hyacinth bouquet marigold lilac
apple peach tomato cherries pomegranate apricot
tangerine lemon lime orange mango peach
melon watermelon
pear avocado mango
kiwi coconut
blueberries grapes raspberry olive strawberry
bread baguette croissant bagel pretzel sandwich hamburger hot dog burrito taco
cake cupcake pie birthday cake mooncake pudding pancakes waffle cookie
potato sweet potato
onion garlic
pumpkin melon
egg fried egg
meat steak chicken leg bacon roast chicken
candy lollipop
rice cracker rice ball cookie fortune cookie
bowl salad noodles plate soup spaghetti popcorn bucket
cup glass beer mug beer glass wine glass cocktail glass bubble tea mug urn
bottle beer bottle wine bottle champagne bottle medicine bottle baby bottle spray bottle
vase jar urn honey pot teapot kettle pot amphora potted plant
box gift crate takeout box juice box bento box chest toolbox shipping container cardboard box
envelope paper ticket scroll receipt newspaper map notebook book calendar clipboard folder banknote \
playing card credit card
bag handbag purse backpack suitcase briefcase shopping bag money bag
hat cap top hat helmet graduation cap crown sombrero
shirt coat jacket lab coat vest dress swimsuit
trousers shorts skirt
shoe boot sneaker high heel sandal slippers ballet shoes ice skate roller skate
glasses sunglasses goggles diving mask
gloves boxing glove hand
clock watch alarm clock stopwatch cuckoo clock compass
mobile phone telephone tablet computer pager intercom
television computer laptop radio microwave
camera video camera security camera film projector projector
speaker megaphone stereo amplifier radio
keyboard keyboard instrument piano
guitar electric guitar violin banjo cello
trumpet saxophone horn flute bassoon
drum barrel
ball soccer ball basketball football baseball volleyball billiard ball bowling pin
tennis racket badminton racket table tennis paddle
pen pencil crayon marker paintbrush brush
knife dagger sword
saw axe hammer pickaxe shovel
wrench screwdriver drill grinder pliers
bolt gear needle safety pin pushpin
padlock key
chain ring
lamp street lamp ceiling lamp chandelier spotlight lantern oil lamp light bulb candle flashlight
cabinet dresser wardrobe filing cabinet nightstand bookcase shelf desk locker refrigerator
table desk nightstand pool table table tennis table football table
oven stove microwave washing machine dryer refrigerator
sink bathtub toilet bidet urinal shower
door garage door window window blind curtain elevator
wall socket light switch plug smoke detector
house building castle church mosque temple tower factory hut shed tent farm circus tent dog house doll \
house igloo tepee
statue gravestone obelisk pyramid
mountain volcano island
cloud sun moon rainbow star planet comet lightning bolt wave tornado
star snowflake sparkler
circle moon sun planet clock coin disc
square brick paper window
disc cassette frisbee coin medal
medal coin trophy ribbon
heart playing card
smiley sun moon alien skull ghost hand ear
man woman scale
balance scale scale
globe planet
basket shopping basket shopping cart
trash can recycling bin bucket
rug doormat towel curtain
fan ceiling fan
trowel shovel
rock log brick
fire flame firecracker
droplet wave
gift box
cigarette pen
dartboard circle
stop sign square circle
skateboard snowboard sled skis
swing seesaw slide
baby doll
mirror mirror ball image frame window
rope chain
""".strip()


def with_article(words: str) -> str:
    """The words with "a", "an" or "some" before them, nothing where they are plural in form ("scissors")."""
    if is_plural_form(words):
        return words
    if is_mass(words):
        return f"some {words}"
    silent = words.startswith(("hour", "honest"))
    vowel = words[0] in "aeiou" and not words.startswith(("uni", "euro", "ufo", "ukulele", "one", "urin"))
    return f"{'an' if vowel or silent else 'a'} {words}"


def plural(noun: str) -> str:
    """The plural of a noun of one or more words."""
    *front, last = noun.split()
    if noun in _UNCHANGED or last in _UNCHANGED:
        return noun
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("man"):
        last = last[:-3] + "men"
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last in ("tomato", "potato", "mango"):
        last += "es"
    else:
        last += "s"
    return " ".join([*front, last])


def is_plural_form(words: str) -> bool:
    """Whether one of it is spoken of as several ("scissors", "red scissors")."""
    return words.endswith("s") and _ends_with(words, _UNCHANGED)


def is_mass(words: str) -> bool:
    """Whether it is spoken of by amount ("bread"), so that nobody counts it."""
    return _ends_with(words, _MASS)


def related_nouns(nouns: Iterable[str]) -> Mapping[str, frozenset[str]]:
    """
    For each noun those that must not be taken for absent where it is present.

    Args:
        nouns (`Iterable[str]`): a vocabulary.

    Returns:
        `Mapping[str, frozenset[str]]`: symmetric, without the noun itself. Nouns are related that share a word ("cup",
        "cup cake"), of which one ends with the other ("armchair", "chair"), or that stand in one line of a table of
        kinds and look-alikes ("sofa", "bench").
    """
    nouns = sorted(set(nouns))
    known = set(nouns)
    related: dict[str, set[str]] = defaultdict(set)
    for line in _ALIKE.splitlines():
        group = _nouns_of_line(line, known)
        for noun in group:
            related[noun] |= group
    by_word: dict[str, set[str]] = defaultdict(set)
    for noun in nouns:
        for word in noun.split():
            by_word[_singular(word)].add(noun)
    words = sorted(by_word)
    for word in words:
        for other in words:
            # Three letters and fewer end too many words by chance ("ant" in "elephant").
            if other == word or (len(word) > 3 and (other.endswith(word) or other.startswith(word))):
                for noun in by_word[word]:
                    related[noun] |= by_word[other]
                for noun in by_word[other]:
                    related[noun] |= by_word[word]
    return {noun: frozenset(related[noun] - {noun}) for noun in nouns}


def _ends_with(words: str, nouns: set[str]) -> bool:
    parts = words.split()
    return any(" ".join(parts[position:]) in nouns for position in range(len(parts)))


def _nouns_of_line(line: str, known: set[str]) -> set[str]:
    """The vocabulary's nouns in a line of the table, the longest first at each position."""
    words, found, position = line.split(), set(), 0
    while position < len(words):
        for length in (3, 2, 1):
            noun = " ".join(words[position : position + length])
            if noun in known:
                found.add(noun)
                position += length - 1
                break
        position += 1
    return found


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 and not word.endswith("ss") else word
