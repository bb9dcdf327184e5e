"""Words: a list of several thousand pronounceable ones, built here from syllables, and documents that spell them.

The list mixes common English words with made-up ones, so that spelling cannot be learned by heart. A tenth of it, told
by the word's hash, is for tests: these words occur in no document and no training file.
Sample: `The word lantern is spelled l a n t e r n.` and `strawberry: s t r a w b e r r y. Count r: s0 t0 r1 ... y3.`
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

from nanochat.pocket.draw import Deck, stream

MADE_UP = 6600  # how many invented words are built before test words that the world uses are dropped

COMMON = """
able about above across act add after again age air all alone along always angry animal answer apple april arm around
arrive art autumn away baby back bag ball banana basket bath bean bear beautiful because become bed bee before begin
behind believe bell below belt berry best better between big bird birthday black blanket blue board boat body bone
book boot bottle bottom bowl box boy branch brave bread breakfast bridge bright bring broken broom brother brown brush
bucket build butter button buy cabbage cake call camera candle cap car card careful carpet carrot carry castle catch
chair cheap cheese cherry chicken child chin chocolate choose circle city clean clear clever climb clock close cloth
cloud coat coffee coin cold collect colour come cook copper corner cotton count country cousin cover cream cross crowd
cry cup curtain dance danger dark daughter day dear december deep desert desk dinner dirty doctor dog door double
dragon draw dream dress drink drive drum dry duck dust each ear early earth east easy eat edge egg eight elbow
elephant empty enough enter evening every eye face fall family famous far farm fast father feather february fence
field finger finish fire first fish five flag floor flower fly foot forest forget fork forty forward four fox fresh
friday friend frog front fruit full funny garden garlic gate gentle gift girl give glad glass glove gold good goose
grandmother grass great green grey ground group grow guess guitar hair half hammer hand happy harbour hard hat head
heart heavy hello help hill hold hole holiday home honey honest hope horse hospital hot hotel house hundred hungry
hurry ice island january jacket jam jar join jump july june kettle key kind king kitchen kite knee knife ladder lady
lake lamp language lantern large last late laugh leaf learn leather leave left leg lemon lesson letter library light
lion little long look lost loud love lucky lunch machine make many map march market meadow meal meat medicine meet
metal middle milk mill minute mirror monday money monkey month moon morning mother mountain mouse mouth move much
music nail name narrow near neck needle neighbour nest never new night nine noise north nose nothing november number
nurse ocean october office often old onion open orange other owl page paint paper parrot party path pencil penny
people pepper person piano picture piece pillow pink plant plate play please pocket poor potato pretty promise proud
pull pumpkin purple push quarter queen question quick quiet rabbit rain rainbow ready red remember repeat rice rich
ribbon ride right ring river road rock roof room root rope rose round run sad safe sail salt sand saturday school sea
season seed seven shadow sharp sheep shelf shell ship shirt shoe shop short shoulder silver simple sing sister six sky
sleep slow small smile smoke snow soap sock soft soldier song soup south spider spoon spring square stable stairs star
station stone storm story straight strawberry street strong sugar summer sun sunday sunflower sweet swim table tail
tall tea teacher ten tent thank thick thin thing think thirsty thousand thread three thumb thunder thursday ticket
tiger time tired tomato tooth tower town toy train tree tuesday turn turtle twelve twenty umbrella uncle under valley
vase velvet village violin visit voice wagon wait walk wall warm wash water weather wednesday week west wet wheel
whistle white wide wild wind window wing winter wise wolf woman wonder wood wool word work world write yellow
yesterday young zebra
""".split()

STARTS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sn sp st str t th tr v w z"
).split()
VOWELS = "a a a e e e i i o o u ai ea ee ie oa oo ou".split()
MIDDLES = "b bb ck d dd f ff g gg l ll lt m mm mp n nd nn nt p pp r rd rr rt s ss st t tt v x z".split()
ENDS = "b ck d f g k l ll lt m mp n nd ng nt p r rk rn s sh sk st t th x".split()
TAILS = "er el en ing le ly y ow ful ness ish et o a um ard".split()


def is_test_word(word: str) -> bool:
    """A fixed tenth of all words. The same rule as `is_test_word` in tasks/spellingbee.py (which works on any list and
    so imports nothing from here); a test holds the two together."""
    return int(hashlib.sha256(word.encode()).hexdigest(), 16) % 10 == 0


def made_up_word(rng: random.Random) -> str:
    """One to three syllables: `"brinto"`, `"shalt"`, `"moolliner"`."""
    kind = rng.random()
    word = rng.choice(STARTS) + rng.choice(VOWELS)
    if kind < 0.15:
        return word + rng.choice(ENDS)
    word += rng.choice(MIDDLES)
    if kind < 0.5:
        return word + rng.choice(TAILS)
    word += rng.choice(VOWELS)
    return word + (rng.choice(ENDS) if kind < 0.85 else rng.choice(MIDDLES) + rng.choice(TAILS))


def build_words(seed: int = 0, without: Iterable[str] = ()) -> list[str]:
    """The sorted word list, all of 3 to 11 letters, no doubles, none of `without` (names, for instance)."""
    rng = stream(seed, "words")
    banned = set(without)
    words = {word for word in COMMON if 3 <= len(word) <= 11} - banned
    target = len(words) + MADE_UP
    while len(words) < target:
        word = made_up_word(rng)
        if 3 <= len(word) <= 11 and word not in banned:
            words.add(word)
    return sorted(words)


def count_trace(word: str, letter: str) -> str:
    """`("cabb", "b") -> "cabb: c a b b. Count b: c0 a0 b1 b2."`: what tasks/spellingbee.py asks for."""
    count, steps = 0, []
    for character in word:
        count += character == letter
        steps.append(f"{character}{count}")
    return f"{word}: {' '.join(word)}. Count {letter}: {' '.join(steps)}."


def _letter(word: str, rng: random.Random) -> str:
    """A letter to count: mostly one of the word's (doubled ones more often), sometimes any."""
    if rng.random() < 0.15:
        return rng.choice("abcdefghijklmnopqrstuvwxyz")
    return rng.choice(word)


ASK = (
    "How many {c} are in {w}?", "How many times is {c} in {w}?", "Count the letter {c} in {w}.",
    "How often is {c} in {w}?", "How many {c}s are there in the word {w}?", "Look at {w}. How many {c} do you see?",
    "Count the {c}s in {w}.",
)
SPELL = (
    "The word {w} is spelled {s}.", "How do you spell {w}? {w}: {s}", "{w}: {s}", "{w}: {s}", "Spell {w}: {s}.",
    "The letters of {w} are {s}.", "{s} spells {w}.", 'The word "{w}" has the letters {s}.', "'{w}': {s}",
    "You write {w} with the letters {s}.", "Spell the word {w}.\n{w}: {s}",
)


def spelling_document(deck: Deck[str], rng: random.Random) -> str:
    """A few words spelled, or counted letter by letter, in one of several layouts."""
    kind = rng.random()
    parts = []
    if kind < 0.5:
        for word in deck.hand(rng.randint(4, 8)):
            parts.append(rng.choice(SPELL).format(w=word, s=" ".join(word)))
        sentences = all(part.endswith(".") for part in parts)
        return (" " if sentences and rng.random() < 0.5 else "\n").join(parts)
    for word in deck.hand(rng.randint(2, 4)):
        letter = _letter(word, rng)
        trace, total = count_trace(word, letter), word.count(letter)
        if kind < 0.85:
            parts.append(rng.choice(ASK).format(w=word, c=letter) + f"\n{trace} '{word}'.count('{letter}') = {total}")
        else:
            parts.append(f"{trace} The word {word} has {len(word)} letters and {total} of them {_are(total)} {letter}.")
    return "\n".join(parts)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
