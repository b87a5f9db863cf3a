"""Grammar: the documents of minimal_pairs, two sentences that differ in one point, of which one is English.

One function per phenomenon draws words and returns (grammatical, ungrammatical). The design follows BLiMP
(https://arxiv.org/abs/1912.00582), whose data cannot be had offline; the vocabulary and the sentences are this
project's own. Both members of a pair have the same number of words and differ in one or two of them, so that the
length of a sentence says nothing about the answer.
"""

from random import Random
from typing import Any

SEED = 0
PAIRS_PER_PHENOMENON = 32

# Regular nouns: the plural is the noun and an "s".
PEOPLE = ("actor", "baker", "doctor", "driver", "farmer", "lawyer", "pilot", "singer", "student", "teacher", "waiter")
THINGS = ("basket", "bottle", "chair", "lamp", "map", "mirror", "picture", "table", "ticket", "window")
MASS = ("bread", "furniture", "luggage", "milk", "rice", "sugar", "water")
NAMES = ("Anna", "Daniel", "Laura", "Maria", "Peter", "Simon")
ADJECTIVES = ("clever", "friendly", "old", "quiet", "tall", "tired", "young")
QUALITIES = ("broken", "cheap", "dirty", "heavy", "old", "small")
WHEN = ("last week", "on Monday", "this morning", "yesterday")

# Present tense: (singular, plural, rest).
HABITS = (
    ("drinks", "drink", "black coffee"),
    ("lives", "live", "near the station"),
    ("plays", "play", "the piano"),
    ("sleeps", "sleep", "until noon"),
    ("speaks", "speak", "very softly"),
    ("walks", "walk", "to work every day"),
    ("works", "work", "in the city"),
)
STATES = (
    ("is", "are", "very tired"),
    ("looks", "look", "rather pale"),
    ("needs", "need", "some rest"),
    ("seems", "seem", "happy today"),
    ("wants", "want", "more time"),
    ("was", "were", "late again"),
)
# (past, past participle, object); the two forms differ and neither passes for the other.
IRREGULAR = (
    ("ate", "eaten", "the apple"),
    ("broke", "broken", "the window"),
    ("chose", "chosen", "the color"),
    ("drew", "drawn", "the picture"),
    ("drove", "driven", "the truck"),
    ("flew", "flown", "the plane"),
    ("rode", "ridden", "the horse"),
    ("saw", "seen", "the film"),
    ("stole", "stolen", "the map"),
    ("threw", "thrown", "the ball"),
    ("took", "taken", "the ticket"),
    ("wore", "worn", "the coat"),
    ("wrote", "written", "the letter"),
)
# Past tense, both needing an object: a person, or the thing named.
MEETING = ("admired", "avoided", "met", "praised", "thanked", "trusted")
HANDLING = (
    ("brought", "the cake"),
    ("described", "the plan"),
    ("fixed", "the car"),
    ("found", "the key"),
    ("mentioned", "the letter"),
    ("needed", "the map"),
    ("owned", "the boat"),
    ("wanted", "the ticket"),
)
# Reflexive pronoun -> nouns that can only take this one.
REFLEXIVES = {
    "himself": ("father", "grandfather", "king", "monk", "prince", "uncle"),
    "herself": ("aunt", "grandmother", "mother", "nun", "queen", "sister"),
    "themselves": ("actors", "boys", "doctors", "farmers", "girls", "pilots", "students"),
}


def numbered(noun: str, plural: bool) -> str:
    return noun + "s" if plural else noun


def agreeing(
    random: Random, subject: str, *, plural: bool, predicates: tuple[tuple[str, str, str], ...]
) -> tuple[str, str]:
    *forms, rest = random.choice(predicates)
    return f"{subject} {forms[plural]} {rest}.", f"{subject} {forms[not plural]} {rest}."


def subject_verb_agreement(random: Random) -> tuple[str, str]:
    plural = random.random() < 0.5
    subject = f"The {random.choice(ADJECTIVES)} {numbered(random.choice(PEOPLE), plural)}"
    return agreeing(random, subject, plural=plural, predicates=HABITS)


def agreement_across_prepositional_phrase(random: Random) -> tuple[str, str]:
    plural = random.random() < 0.5
    head, other = random.sample(PEOPLE, 2)
    place = random.choice(("behind", "beside", "near", "next to"))
    subject = f"The {numbered(head, plural)} {place} the {numbered(other, not plural)}"
    return agreeing(random, subject, plural=plural, predicates=STATES)


def agreement_across_relative_clause(random: Random) -> tuple[str, str]:
    plural = random.random() < 0.5
    head, other = random.sample(PEOPLE, 2)
    clause = f"that the {numbered(other, not plural)} {random.choice(MEETING)}"
    return agreeing(random, f"The {numbered(head, plural)} {clause}", plural=plural, predicates=STATES)


def agreement_with_coordination(random: Random) -> tuple[str, str]:
    first, second = random.sample(PEOPLE, 2)
    return agreeing(random, f"The {first} and the {second}", plural=True, predicates=HABITS)


def agreement_with_one_of(random: Random) -> tuple[str, str]:
    subject = f"One of the {random.choice(ADJECTIVES)} {numbered(random.choice(PEOPLE), plural=True)}"
    return agreeing(random, subject, plural=False, predicates=STATES)


def determiner_noun_agreement(random: Random) -> tuple[str, str]:
    determiner, plural = random.choice((("this", False), ("that", False), ("these", True), ("those", True)))
    thing = random.choice(THINGS)
    verb = random.choice(("borrowed", "cleaned", "moved", "painted", "sold"))
    start, end = f"{random.choice(NAMES)} {verb} {determiner} {random.choice(QUALITIES)}", random.choice(WHEN)
    return f"{start} {numbered(thing, plural)} {end}.", f"{start} {numbered(thing, not plural)} {end}."


def reflexive_binding(random: Random) -> tuple[str, str]:
    """The reflexive refers to the subject of its own clause, never to the one who speaks (Principle A)."""
    inner, outer = random.sample(sorted(REFLEXIVES), 2)
    speaker, actor = random.choice(REFLEXIVES[outer]), random.choice(REFLEXIVES[inner])
    start = f"The {speaker} {random.choice(('believed', 'knew', 'said', 'thought'))} that the {actor}"
    verb = random.choice(("blamed", "defended", "hurt", "praised"))
    return f"{start} {verb} {inner}.", f"{start} {verb} {outer}."


def irregular_participle(random: Random) -> tuple[str, str]:
    past, participle, thing = random.choice(IRREGULAR)
    person = random.choice(PEOPLE)
    if random.random() < 0.5:
        return f"The {person} has already {participle} {thing}.", f"The {person} has already {past} {thing}."
    when = random.choice(WHEN)
    return f"The {person} {past} {thing} {when}.", f"The {person} {participle} {thing} {when}."


def negative_polarity(random: Random) -> tuple[str, str]:
    """The word "ever" needs a negation before it."""
    _, participle, thing = random.choice(IRREGULAR)
    rest = f"{random.choice(PEOPLE)} has ever {participle} {thing}."
    return f"No {rest}", f"{random.choice(('Every', 'Some', 'That', 'The', 'This'))} {rest}"


def negative_polarity_scope(random: Random) -> tuple[str, str]:
    """The negation must stand above "ever" in the tree, not only before it: here it may sit in a relative clause."""
    first, second = random.sample(PEOPLE, 2)
    _, participle, thing = random.choice(IRREGULAR)
    met, rest = random.choice(MEETING), f"has ever {participle} {thing}"
    return f"No {first} that the {second} {met} {rest}.", f"The {first} that no {second} {met} {rest}."


def wh_gap(random: Random) -> tuple[str, str]:
    """After "what" the place of the object stays empty, after "that" it does not."""
    verb, thing = random.choice(HANDLING)
    start = f"{random.choice(NAMES)} {random.choice(('forgot', 'knows', 'noticed', 'remembers'))}"
    clause = f"the {random.choice(PEOPLE)} {verb}"
    if random.random() < 0.5:
        return f"{start} what {clause}.", f"{start} that {clause}."
    return f"{start} that {clause} {thing}.", f"{start} what {clause} {thing}."


def much_and_many(random: Random) -> tuple[str, str]:
    counted = random.random() < 0.5
    noun = numbered(random.choice(THINGS), plural=True) if counted else random.choice(MASS)
    start = (
        f"The {random.choice(PEOPLE)} {random.choice(('carried', 'ordered', 'packed'))} {random.choice(('so', 'too'))}"
    )
    right, wrong = ("many", "much") if counted else ("much", "many")
    return f"{start} {right} {noun}.", f"{start} {wrong} {noun}."


def transitivity(random: Random) -> tuple[str, str]:
    person, thing = random.choice(PEOPLE), random.choice(THINGS)
    right = random.choice(("carried", "cleaned", "described", "noticed", "repaired"))
    wrong = random.choice(("arrived", "coughed", "existed", "fainted", "knelt", "laughed", "sneezed", "yawned"))
    return f"The {person} {right} the {thing}.", f"The {person} {wrong} the {thing}."


def existential_there(random: Random) -> tuple[str, str]:
    """What "there is" introduces takes no universal quantifier."""
    plural = random.random() < 0.5
    right = random.choice(("few", "many", "several", "two") if plural else ("a", "one", "no"))
    wrong = random.choice(("all", "both", "most") if plural else ("each", "every"))
    person = numbered(random.choice(PEOPLE), plural)
    if right == "a" and person[0] in "aeiou":
        right = "an"
    start = f"There {'were' if plural else 'was'}"
    end = random.choice(("at the station", "behind the house", "in the garden", "in the kitchen", "near the door"))
    return f"{start} {right} {person} {end}.", f"{start} {wrong} {person} {end}."


PHENOMENA = (
    subject_verb_agreement,
    agreement_across_prepositional_phrase,
    agreement_across_relative_clause,
    agreement_with_coordination,
    agreement_with_one_of,
    determiner_noun_agreement,
    reflexive_binding,
    irregular_participle,
    negative_polarity,
    negative_polarity_scope,
    wh_gap,
    much_and_many,
    transitivity,
    existential_there,
)


def documents() -> list[dict[str, Any]]:
    """PAIRS_PER_PHENOMENON rounds, each with one pair per phenomenon, so that the first n documents are a fair sample.

    No sentence occurs twice; which of the two places holds the grammatical one is drawn.
    """
    randoms = {phenomenon: Random(f"{SEED}/{phenomenon.__name__}") for phenomenon in PHENOMENA}
    seen: set[str] = set()
    found = []
    for _ in range(PAIRS_PER_PHENOMENON):
        for phenomenon, random in randoms.items():
            right, wrong = phenomenon(random)
            while right in seen or wrong in seen:
                right, wrong = phenomenon(random)
            seen |= {right, wrong}
            place = random.randrange(2)
            sentences = [wrong, right] if place else [right, wrong]
            found.append({"phenomenon": phenomenon.__name__, "sentences": sentences, "grammatical": place})
    return found


def dataset(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(documents())}
