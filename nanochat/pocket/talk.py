"""Small talk: short conversations of two to four turns, and documents about the everyday things they touch.

Greetings, thanks, repeat-after-me, lists, opposites, what comes next, and questions about facts that training may ask.
Sample row of sft/pocket_talk_train.jsonl:
    {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! How can I help you?"},
                  {"role": "user", "content": "What is the opposite of big?"},
                  {"role": "assistant", "content": "The opposite of big is small."}]}
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from nanochat.pocket.draw import casual, conversation, listing, normalise
from nanochat.pocket.problems import HER, HIM
from nanochat.pocket.world import Fact

Turn = tuple[str, str]

KINDS = {
    "animals": "cows horses birds tigers bears foxes wolves sheep lions zebras owls bees".split(),
    "fruits": "apples pears plums bananas grapes lemons cherries oranges melons peaches".split(),
    "colours": "red blue green yellow black white brown purple orange pink".split(),
    "drinks": "water milk tea coffee juice cocoa lemonade soup".split(),
    "tools": "hammers saws brushes spades needles knives ropes ladders".split(),
    "flowers": "roses tulips daisies violets poppies sunflowers".split(),
    "toys": "dolls balls kites puzzles blocks trains".split(),
    "clothes": "shirts hats coats socks shoes gloves scarves dresses".split(),
}
OPPOSITES = (
    "big small, hot cold, old new, fast slow, high low, long short, open closed, full empty, wet dry, light dark, "
    "happy sad, early late, good bad, left right, up down, day night, hard soft, thick thin, rich poor, loud quiet"
)
PAIRS = [tuple(pair.split()) for pair in OPPOSITES.split(", ")]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "one two three four five six seven eight nine ten".split()

GREETINGS = ("Hi", "Hello", "Hello!", "Hi!", "Hey", "Good morning!", "Good evening", "Hi there", "Hello there!",
             "hey there")
HELLO = "Hello! How can I help you?"
FEELINGS = ("How are you?", "How are you today?", "how is it going", "How do you do?", "Are you well?", "are you ok")
FINE = "I am fine, thank you. And you?"
THANKS = ("Thanks!", "Thank you.", "thank you very much", "Thanks a lot!", "thanks", "Great, thank you!")
WELCOME = "You are welcome!"
GOODBYES = ("Bye!", "Goodbye.", "bye", "See you later!", "Good night.", "see you tomorrow", "I have to go now.")
BYE = "Goodbye! Come back soon."
JOKES = (
    "Why did the clock go to school? It wanted to learn the time.",
    "What has four legs and cannot walk? A table.",
    "Why is the book so warm? It has so many covers.",
)


def repeat_turn(rng: random.Random) -> Turn:
    """`Repeat after me: seven green hats` -> `seven green hats`."""
    things = rng.choice([row for kind, row in KINDS.items() if kind not in ("colours", "drinks")])
    text = f"{rng.choice(NUMBERS[1:])} {rng.choice(KINDS['colours'])} {rng.choice(things)}"
    if rng.random() < 0.2:
        text = f"the {rng.choice(PAIRS)[0]} {rng.choice(DAYS)}"
    ask = rng.choice(("Repeat after me: {}", "Say {}", "Please say: {}", "Repeat: {}", "Write this: {}",
                      "say this again: {}"))
    return ask.format(text), text


def list_turn(rng: random.Random) -> Turn:
    """`Name three animals.` -> `Three animals are cows, owls and bees.`"""
    kind, n = rng.choice(list(KINDS)), rng.randint(2, 5)
    ask = rng.choice(("Name {n} {k}.", "List {n} {k}.", "Can you name {n} {k}?", "Tell me {n} {k}.", "Give me {n} {k}.",
                      "I need {n} {k}."))
    word = NUMBERS[n - 1]
    return ask.format(n=word, k=kind), f"{word.capitalize()} {kind} are {listing(rng.sample(KINDS[kind], n))}."


def opposite_turn(rng: random.Random) -> Turn:
    word, other = rng.choice(PAIRS)
    if rng.random() < 0.5:
        word, other = other, word
    ask = rng.choice(("What is the opposite of {}?", "Tell me the opposite of {}.", "opposite of {}",
                      "Which word is the opposite of {}?"))
    return ask.format(word), f"The opposite of {word} is {other}."


def next_turn(rng: random.Random) -> Turn:
    kind, row = rng.choice((("day", DAYS), ("month", MONTHS), ("number", NUMBERS)))
    i = rng.randrange(len(row) - 1)
    if rng.random() < 0.5:
        return f"What {kind} comes after {row[i]}?", f"After {row[i]} comes {row[i + 1]}."
    return f"What {kind} comes before {row[i + 1]}?", f"Before {row[i + 1]} comes {row[i]}."


def count_turn(rng: random.Random) -> Turn:
    n = rng.randint(3, 12)
    ask = rng.choice(("Count to {}.", "Please count to {}.", "Can you count to {}?", "Count from 1 to {}."))
    return ask.format(n), ", ".join(str(i) for i in range(1, n + 1)) + "."


def joke_turn(rng: random.Random) -> Turn:
    ask = rng.choice(("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "joke please", "A joke please."))
    return ask, rng.choice(JOKES)


def name_turns(rng: random.Random) -> list[Turn]:
    """The person says a name, and asks for it later: the answer is in the conversation."""
    name = rng.choice(HER + HIM)
    told = rng.choice(("My name is {}.", "I am {}.", "Hi, I am {}.", "Call me {}.")).format(name)
    asked = rng.choice(("What is my name?", "Do you know my name?", "What am I called?", "Tell me my name."))
    return [(told, f"Nice to meet you, {name}!"), (asked, f"Your name is {name}.")]


def fact_turn(facts: Sequence[Fact], rng: random.Random) -> Turn:
    fact = rng.choice(facts)
    return fact.say(fact.relation.question(rng)), fact.answer


EVERYDAY = (repeat_turn, list_turn, opposite_turn, next_turn, count_turn, joke_turn)


def talk_conversation(asked: Sequence[Fact], rng: random.Random) -> dict:
    """A conversation of two to four turns: perhaps a greeting, then questions, perhaps thanks or goodbye."""
    turns: list[Turn] = []
    if rng.random() < 0.4:
        turns.append((rng.choice(GREETINGS), HELLO))
    if rng.random() < 0.12:
        turns.append((rng.choice(FEELINGS), FINE))
    if rng.random() < 0.12:
        turns += name_turns(rng)
    while len(turns) < rng.choice((1, 2, 3)) or (len(turns) < 2 and rng.random() < 0.6):
        if rng.random() < 0.4:
            turns.append(fact_turn(asked, rng))
        else:
            turns.append(rng.choice(EVERYDAY)(rng))
    if len(turns) < 4 and (rng.random() < 0.35 or len(turns) < 2):
        turns.append((rng.choice(THANKS), WELCOME) if rng.random() < 0.6 else (rng.choice(GOODBYES), BYE))
    return conversation(*(text for user, answer in turns[:4] for text in (casual(user, rng, rate=0.25), answer)))


def talk_split(asked: Sequence[Fact], rng: random.Random, n_train: int, n_test: int) -> tuple[list[dict], list[dict]]:
    """Train and test conversations; no test conversation is, case and marks aside, among those of training."""
    seen: set[str] = set()
    rows: list[dict] = []
    while len(rows) < n_train + n_test:
        row = talk_conversation(asked, rng)
        plain = normalise(" ".join(m["content"] for m in row["messages"]))
        if plain not in seen:
            seen.add(plain)
            rows.append(row)
    return rows[n_test:], rows[:n_test]


def talk_document(rng: random.Random) -> str:
    """Everyday things in prose: opposites, days, kinds; or a talk between two people."""
    kind = rng.random()
    if kind < 0.4:
        turns = [rng.choice(EVERYDAY)(rng) for _ in range(rng.randint(3, 5))]
        return "\n".join(f"{question}\n{answer}" for question, answer in turns)
    if kind < 0.6:
        her, him = rng.choice(HER), rng.choice(HIM)
        turns = [rng.choice(EVERYDAY)(rng) for _ in range(2)]
        said = "\n".join(f"{her}: {question}\n{him}: {answer}" for question, answer in turns)
        start = f"{her}: Hello, {him}!\n{him}: Hello, {her}! How are you?"
        return f"{start}\n{said}\n{her}: Thank you. Goodbye!\n{him}: Goodbye!"
    sentences = []
    for _ in range(rng.randint(4, 8)):
        choice = rng.randrange(4)
        name = rng.choice(list(KINDS))
        if choice == 0:
            word, other = rng.choice(PAIRS)
            sentences.append(f"The opposite of {word} is {other}.")
        elif choice == 1:
            row = rng.choice((DAYS, MONTHS))
            i = rng.randrange(len(row) - 1)
            sentences.append(f"After {row[i]} comes {row[i + 1]}.")
        elif choice == 2:
            sentences.append(f"Some {name} are {listing(rng.sample(KINDS[name], 3))}.")
        else:
            person = rng.choice(HER + HIM)
            number, colour, day = rng.choice(NUMBERS[1:]), rng.choice(KINDS["colours"]), rng.choice(DAYS)
            sentences.append(f"{person} sees {number} {colour} birds on {day}.")
    return " ".join(sentences)
