"""The English that prompts of several things are read by: relations, and what nouns stand for."""

import re
from collections.abc import Iterable
from typing import Final, Literal

__all__ = [
    "ARTICLE",
    "CARRIED",
    "CREATURES",
    "HAVING",
    "LINK_WORDS",
    "LOOKS",
    "NEIGHBOURS",
    "NOWHERE",
    "PARTS",
    "PLACES",
    "PLACE_WORDS",
    "THE_PLACES",
    "TURNED",
    "WORN",
    "Relation",
    "an",
    "noun",
    "singular",
]

# As models/layout.py knows them.
Relation = Literal[
    "inside", "on", "under", "beside", "behind", "before", "holding", "two", "three",
    "on_head", "on_eyes", "on_neck", "on_body", "on_feet", "alone",
]  # fmt: skip

# Where a thing is.
PLACES: Final[dict[str, Relation]] = {
    "inside of": "inside",
    "inside": "inside",
    "in front of": "before",
    "in": "inside",
    "on top of": "on",
    "on": "on",
    "above": "on",
    "over": "on",
    "riding": "on",
    "sitting on": "on",
    "standing on": "on",
    "sitting in": "inside",
    "peeking out of": "inside",
    "coming out of": "inside",
    "driving": "inside",
    "under": "under",
    "underneath": "under",
    "below": "under",
    "next to": "beside",
    "beside": "beside",
    "near": "beside",
    "to the left of": "beside",
    "left of": "beside",
    "to the right of": "beside",
    "right of": "beside",
    "chasing": "beside",
    "facing": "beside",
    "kissing": "beside",
    "looking at": "beside",
    "watching": "beside",
    "behind": "behind",
}
# Of these the second thing is one that may wear and hold as well as the first.
NEIGHBOURS: Final = frozenset({"beside", "behind", "before"})
# Of these the second thing comes first, from left to right.
TURNED: Final = frozenset({"to the right of", "right of"})
# What a thing has.
HAVING: Final = (
    *("wearing", "with", "holding", "carrying", "playing", "eating", "reading", "drinking"),
    *("hugging", "kicking", "throwing", "juggling", "containing", "bearing"),
)


def _any_of(words: Iterable[str]) -> str:
    """For a regular expression; "inside of" is found before "inside"."""
    return "|".join(sorted(words, key=len, reverse=True))


PLACE_WORDS: Final = _any_of(PLACES)
LINK_WORDS: Final = _any_of([*PLACES, *HAVING])
# What says that a noun is a thing, or how many.
ARTICLE: Final = r"(?:an?|the|one|two|three|2|3|some)"

# What has none, since it comes in pairs.
PAIR: Final = r"(?:[\w-]+ )?(?:sun|eye)?(?:glasses|goggles|boots|shoes|sneakers|headphones)\b"


def an(thing: str) -> str:
    """The thing with its indefinite article."""
    return f"{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORN_BY_PLACE: Final[dict[Relation, str]] = {
    "on_head": "hat cap crown helmet beanie tiara turban wig bow halo",
    "on_eyes": "glasses sunglasses eyeglasses goggles spectacles monocle mask",
    "on_neck": "scarf tie necktie bowtie necklace medal lei stethoscope collar",
    "on_body": """suit tuxedo dress coat jacket kimono shirt t-shirt vest sweater hoodie apron cape
        robe uniform armor armour spacesuit raincoat jumper costume""",
    "on_feet": "boots shoes sneakers sandals skates socks slippers",
}
# Where what is worn is worn.
WORN: Final = {word: place for place, words in _WORN_BY_PLACE.items() for word in words.split()}
# Worn where this layout has no place for it.
CARRIED: Final = _words("backpack bag purse watch ring gloves bracelet")

# No place for a thing to be at that could be painted as another one.
NOWHERE: Final = _words(
    """ground air floor left right top bottom middle center centre background foreground backdrop
    front side corner edge distance rain snow wind fog sunshine sunlight moonlight dark darkness
    night day morning evening afternoon weather sky mood hurry style way winter summer autumn time
    scene setting landscape lighting surface world"""
)
# Nor these, where they are not some: "in the forest", but "a fox behind a forest".
THE_PLACES: Final = _words(
    """sun forest woods jungle desert beach sea ocean water river lake park garden street city town
    country countryside village field meadow grass yard wild kitchen room bedroom office school
    classroom zoo farm mountains road sand mud shade space universe"""
)
# What is said of a whole picture.
LOOKS: Final = _words(
    """illustration painting drawing sketch render rendering photo photograph picture image icon
    sticker logo cartoon art artwork design masterpiece quality style background backdrop lighting
    shadow shadows outline outlines border object color colour colors colours palette texture
    detail details view angle resolution emoji vector"""
)
# What a thing may be "with" and yet be one thing.
PARTS: Final = _words(
    """eye eyes nose mouth smile grin frown beard mustache moustache tail tails ear ears hair mane
    beak trunk horn horns antlers wing wings leg legs arm arms hand hands foot feet paw paws claw
    claws fin fins fur skin tongue tooth teeth fangs whiskers feathers shell head heads neck belly
    stripe stripes spot spots dot dots expression color colour colors colours look roof door doors
    window windows chimney wheel wheels tire tires sail sails handle lid stem stems petal petals
    leaf leaves thorn thorns root roots branch branches spike spikes scales antenna antennae
    eyebrows eyelashes cheeks lips ponytail pattern"""
)
# What moves by itself, and so is more likely to wear and to hold than what it is in or on.
CREATURES: Final = _words(
    """animal cat kitten dog puppy mouse rat rabbit bunny hamster fox bear panda koala tiger lion
    leopard cheetah cow calf bull ox pig piglet boar frog toad monkey ape gorilla orangutan chimp
    chimpanzee chicken hen rooster chick penguin bird eagle owl parrot duck duckling goose swan dove
    pigeon crow raven flamingo peacock turkey ostrich bat horse pony foal donkey zebra unicorn camel
    llama alpaca giraffe elephant mammoth rhino rhinoceros hippo hippopotamus kangaroo sloth otter
    beaver badger skunk raccoon squirrel chipmunk hedgehog wolf coyote hyena deer reindeer moose elk
    goat sheep lamb ram bee butterfly snail ladybug ant spider scorpion cricket beetle fly worm
    caterpillar fish shark whale dolphin seal octopus squid crab lobster shrimp turtle tortoise
    snake lizard gecko crocodile alligator dinosaur t-rex sauropod dragon robot alien ghost monster
    vampire zombie skeleton snowman person man woman boy girl baby child kid king queen prince
    princess knight wizard witch pirate clown santa elf fairy mermaid angel devil astronaut doctor
    nurse chef cook farmer teacher student soldier policeman firefighter pilot ninja samurai dancer
    singer artist worker viking cowboy detective superhero hero giant dwarf gnome goblin ogre troll
    teddy cyclops yeti bigfoot gentleman lady grandma grandpa hamsters cats dogs"""
)

# What is said about a noun behind it; before it, "a smiling face", these are of its name.
_BEHIND_NOUN: Final = re.compile(
    r"(?<=\S) (?:of|with|in|on|at|from|for|by|to|made|that|who|which|is|are|flying|sitting|"
    r"standing|lying|sleeping|running|jumping|walking|swimming|smiling|dancing|hiding|looking|"
    r"crying|laughing|floating|falling|climbing|waiting|waving)\b"
)


def noun(thing: str) -> str:
    """The word that says what a phrase names, in small letters: "slice" of "a Slice of pizza"."""
    article, _, name = thing.lower().partition(" ")
    words = _BEHIND_NOUN.split(name or article, 1)[0].split()
    return words[-1].strip(".,!?\"'") if words else ""


# The library for this, inflect, takes longer to import than the rest of the API.
_IRREGULAR: Final = dict(
    pair.split("/")
    for pair in _words(
        """cookies/cookie movies/movie pies/pie ties/tie zombies/zombie brownies/brownie
        smoothies/smoothie knives/knife wolves/wolf leaves/leaf loaves/loaf calves/calf
        shelves/shelf elves/elf scarves/scarf thieves/thief shoes/shoe toes/toe canoes/canoe
        geese/goose children/child people/person"""
    )
)
_ENDINGS: Final = (
    ("ies", "y"),
    ("oes", "o"),
    ("lenses", "lens"),
    ("ouses", "ouse"),
    ("uses", "us"),
    ("xes", "x"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("mice", "mouse"),
    ("men", "man"),
)


def singular(plural: str) -> str | None:
    """One of an English plural ("red foxes" → "red fox"); None where it is none.

    In small letters. What is the same in both numbers ("sheep") counts as no plural.
    """
    adjectives, space, word = plural.lower().rpartition(" ")
    return None if (one := _one(word)) is None else f"{adjectives}{space}{one}"


def _one(word: str) -> str | None:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, one in _ENDINGS:
        if word.endswith(ending):
            return word.removesuffix(ending) + one
    return word[:-1] if re.search(r"[a-z]{2}(?<!s)s$", word) else None
