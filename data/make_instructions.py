"""Write instructions.jsonl: small tasks in Alpaca's columns (instruction, input, output), each with one right answer.

    python data/make_instructions.py > data/instructions.jsonl

Everything is drawn from one seed and computed here, so every answer can be checked and the file is the same on every
machine. No task's answer needs knowledge of the world beyond the metre, the kilogram and the calendar week.
"""

import json
import random
from collections.abc import Callable

SEED = 0
PER_KIND = 16
VOCABULARY = """
    apple anchor basket bridge candle carpet cloud desert dolphin engine feather forest garden glass hammer harbour
    island jacket kettle ladder lantern magnet market meadow needle ocean orange paper pencil planet pocket quilt
    river rocket saddle shadow silver spoon stone table thunder ticket tunnel velvet village window winter yellow
"""
WORDS = VOCABULARY.split()
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
UNITS = (("metres", "centimetres", 100), ("kilograms", "grams", 1000), ("hours", "minutes", 60), ("weeks", "days", 7))

Task = Callable[[random.Random], tuple[str, str, str]]  # -> instruction, input, output


def words(rng: random.Random) -> list[str]:
    return rng.sample(WORDS, rng.randint(3, 5))


def sort_words(rng: random.Random) -> tuple[str, str, str]:
    chosen = words(rng)
    return "Sort these words alphabetically.", ", ".join(chosen), ", ".join(sorted(chosen))


def reverse_list(rng: random.Random) -> tuple[str, str, str]:
    chosen = words(rng)
    return "Write this list in reverse order.", ", ".join(chosen), ", ".join(reversed(chosen))


def upper_case(rng: random.Random) -> tuple[str, str, str]:
    text = " ".join(words(rng))
    return "Rewrite this text in capital letters.", text, text.upper()


def count_vowels(rng: random.Random) -> tuple[str, str, str]:
    word = rng.choice(WORDS)
    return "How many vowels (a, e, i, o, u) does this word have?", word, str(sum(letter in "aeiou" for letter in word))


def count_words(rng: random.Random) -> tuple[str, str, str]:
    chosen = rng.sample(WORDS, rng.randint(2, 8))
    return "How many words are in this text?", " ".join(chosen), str(len(chosen))


def sum_numbers(rng: random.Random) -> tuple[str, str, str]:
    numbers = [rng.randint(1, 40) for _ in range(rng.randint(2, 4))]
    return "Add these numbers.", ", ".join(map(str, numbers)), str(sum(numbers))


def largest_number(rng: random.Random) -> tuple[str, str, str]:
    numbers = rng.sample(range(10, 1000), 4)
    return "Which of these numbers is the largest?", ", ".join(map(str, numbers)), str(max(numbers))


def longest_word(rng: random.Random) -> tuple[str, str, str]:
    longest = rng.choice([word for word in WORDS if len(word) > 5])
    chosen = [longest, *rng.sample([word for word in WORDS if len(word) < len(longest)], 3)]
    rng.shuffle(chosen)
    return "Which of these words is the longest?", ", ".join(chosen), longest


def extract_number(rng: random.Random) -> tuple[str, str, str]:
    count, thing = rng.randint(2, 99), rng.choice(WORDS)
    text = rng.choice(("Page {} shows the word '{}'.", "We counted {} stickers with the word '{}' on them."))
    return "Extract the number from this sentence.", text.format(count, thing), str(count)


def first_letters(rng: random.Random) -> tuple[str, str, str]:
    chosen = words(rng)
    return "Join the first letters of these words.", " ".join(chosen), "".join(word[0] for word in chosen)


def remove_word(rng: random.Random) -> tuple[str, str, str]:
    chosen = words(rng)
    gone = rng.choice(chosen)
    rest = ", ".join(word for word in chosen if word != gone)
    return f"Remove the word '{gone}' from this list.", ", ".join(chosen), rest


def convert_units(rng: random.Random) -> tuple[str, str, str]:
    large, small, factor = rng.choice(UNITS)
    count = rng.randint(2, 30)
    return f"Convert {count} {large} to {small}.", "", f"{count * factor} {small}"


def later_day(rng: random.Random) -> tuple[str, str, str]:
    today, days = rng.randrange(7), rng.randint(2, 9)
    return f"Which day of the week is {days} days after {DAYS[today]}?", "", DAYS[(today + days) % 7]


TASKS: tuple[Task, ...] = (
    *(sort_words, reverse_list, upper_case, count_vowels, count_words, sum_numbers, largest_number),
    *(longest_word, extract_number, first_letters, remove_word, convert_units, later_day),
)


def rows() -> list[dict[str, str]]:
    """`PER_KIND` different tasks of each kind, dealt in turn."""
    rng = random.Random(SEED)
    kinds: list[dict[tuple[str, str], str]] = []
    for task in TASKS:
        kind: dict[tuple[str, str], str] = {}
        while len(kind) < PER_KIND:
            instruction, text, output = task(rng)
            kind[instruction, text] = output
        kinds.append(kind)
    dealt = zip(*(kind.items() for kind in kinds), strict=True)
    return [
        {"instruction": instruction, "input": text, "output": output}
        for one_round in dealt
        for (instruction, text), output in one_round
    ]


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
