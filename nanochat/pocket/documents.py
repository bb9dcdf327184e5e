"""The pretraining corpus: short documents, each kind filling its share of the characters.

Facts stand in many documents, each time in other words and other company; only facts with `asked` stand in question and
answer. Sample: `Mira lives in Luntz. She plays the cello. The pet of Mira is a goat. ...`
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from nanochat.pocket import arithmetic, binding, families, identity, problems, talk, words
from nanochat.pocket.draw import Deck, listing, stream
from nanochat.pocket.problems import HER, HIM
from nanochat.pocket.questions import ask
from nanochat.pocket.world import MEN, RELATIONS, WOMEN, Fact, pronoun

CANONICAL_RATE = 0.35  # how often a fact is stated in the very words of the assistant's answer


def state(fact: Fact, rng: random.Random) -> str:
    """The fact in one of its wordings."""
    relation = fact.relation
    return fact.say(relation.answer if rng.random() < CANONICAL_RATE else rng.choice(relation.statements))


class FactDocuments:
    """Documents that state facts, each fact about equally often."""

    def __init__(self, facts: Sequence[Fact], rng: random.Random):
        self.rng = rng
        self.of_entity: dict[str, list[Fact]] = {}
        self.of_value: dict[tuple[str, str], list[Fact]] = {}
        for fact in facts:
            self.of_entity.setdefault(f"{fact.relation.kind}/{fact.entity}", []).append(fact)
            if fact.relation.group:
                self.of_value.setdefault((fact.relation.key, fact.value), []).append(fact)
        self.entities = Deck(list(self.of_entity.values()), rng)
        self.all = Deck(facts, rng)
        self.by_relation = {r.key: Deck([f for f in facts if f.relation is r], rng) for r in RELATIONS}
        self.groups = Deck(list(self.of_value.values()), rng)
        # a relation is drawn as often as it has facts, else those of the small ones would stand everywhere
        self.relations = Deck([f.relation.key for f in facts], rng)

    def profile(self) -> str:
        """Everything about one person, or about several entities that have few facts."""
        sentences: list[str] = []
        while len(sentences) < 5:
            facts = self.entities.draw()[:]
            self.rng.shuffle(facts)
            sentences += [self._about(fact, i) for i, fact in enumerate(facts)]
        return " ".join(sentences)

    def _about(self, fact: Fact, position: int) -> str:
        """A sentence of a profile: after the first sometimes with "She" or "He", where it starts with the name."""
        text = state(fact, self.rng)
        pronouns = position and fact.relation.kind == "person" and self.rng.random() < 0.3
        if pronouns and text.startswith(fact.entity + " "):
            return pronoun(fact.entity) + text[len(fact.entity):]
        return text

    def one_relation(self) -> str:
        """Six to nine facts of the same kind: where people live, when buses leave."""
        deck = self.by_relation[self.relations.draw()]
        return self._join([state(f, self.rng) for f in deck.hand(self.rng.randint(6, 9))])

    def mixed(self) -> str:
        """Facts that have nothing to do with one another."""
        return self._join([state(f, self.rng) for f in self.all.hand(self.rng.randint(5, 9))])

    def grouped(self) -> str:
        """Who shares a town, a job, a pet: `Mira, Bram and Gorm live in Tarn.`"""
        sentences = []
        for facts in self.groups.hand(4):
            members = [f.entity for f in facts]
            self.rng.shuffle(members)
            relation, value = facts[0].relation, facts[0].value
            text = relation.group.replace("{es}", listing(members)).replace("{v}", value)
            sentences += [text, *(state(f, self.rng) for f in facts if self.rng.random() < 0.5)]
        return self._join(sentences)

    def told(self) -> str:
        """Facts as somebody tells them: within quotation marks, after a colon, after a dash."""
        parts = []
        for fact in self.all.hand(self.rng.randint(4, 7)):
            text = state(fact, self.rng)
            teller = self.rng.choice(WOMEN + MEN)
            parts.append(self.rng.choice((
                f'"{text}"', f'{teller} says: "{text}"', f'"{text[:-1]}," says {teller}.', f"- {text}", f"Note: {text}",
                f"It is true: {text}", f"We know that {self._inside(text)}", f"I heard that {self._inside(text)}",
            )))
        return "\n".join(parts)

    @staticmethod
    def _inside(text: str) -> str:
        """Lower case at the start unless it is a name: `The dorlin ... -> the dorlin ...`"""
        common = ("The ", "In ", "A ", "At ", "To ", "You ", "If ", "On ", "As ", "From ", "For ", "Every ")
        return text[0].lower() + text[1:] if text.startswith(common) else text

    def _join(self, sentences: list[str]) -> str:
        return self.rng.choice((" ", " ", " ", "\n")).join(sentences)

    def document(self) -> str:
        kinds = (self.profile, self.one_relation, self.mixed, self.grouped, self.told)
        return self.rng.choices(kinds, (35, 20, 25, 8, 12))[0]()


QA_LAYOUTS = (
    "Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "{q}\n{a}", "{q}\n{a}", "{q} - {a}", "{q}\n{a}\n",
    "{one}: {q}\n{other}: {a}", "User: {q}\nNano: {a}", '{one} asks: "{q}"\n{other} says: "{a}"',
    '"{q}" asks {one}. "{a}" says {other}.', "- {q}\n- {a}", '"{q}"\n"{a}"',
)


def qa_document(asked: Deck[Fact], rng: random.Random) -> str:
    """Questions with answers, about facts that training may ask, in one layout a document.

    The speakers are from the word problems: "Mira: which town?" would ask about Mira.
    """
    layout, (one, other) = rng.choice(QA_LAYOUTS), rng.sample(HER + HIM, 2)
    facts = asked.hand(rng.randint(4, 6))
    return "\n".join(layout.format(q=ask(f, rng), a=f.answer, one=one, other=other) for f in facts)


def problem_document(deck: Deck[problems.Family], rng: random.Random) -> str:
    """One to three word problems with their solutions."""
    made = [problems.make_problem(f, rng, False, families.VERBS) for f in deck.hand(rng.randint(1, 3))]
    return "\n\n".join(problems.prose(problem, rng) for problem in made)


def build_corpus(
    facts: Sequence[Fact], word_list: Sequence[str], seed: int, total_chars: int, shares: dict[str, float]
) -> list[str]:
    """All documents, shuffled. `shares` names the kinds and what part of the characters each fills."""
    train_words = [w for w in word_list if not words.is_test_word(w)]
    asked = [f for f in facts if f.asked]
    rngs = {kind: stream(seed, "documents/" + kind) for kind in shares}
    option_words = [w for w in words.COMMON if w in set(train_words)]

    def makers(kind: str, rng: random.Random) -> Callable[[], str]:
        if kind == "facts":
            return FactDocuments(facts, rng).document
        if kind == "questions":
            deck = Deck(asked, rng)
            return lambda: qa_document(deck, rng)
        if kind == "binding":
            return lambda: binding.binding_document(asked, option_words, rng)
        if kind == "spelling":
            deck_of_words = Deck(train_words, rng)
            return lambda: words.spelling_document(deck_of_words, rng)
        if kind == "numbers":
            return lambda: arithmetic.number_document(rng)
        if kind == "problems":
            deck_of_families = Deck(families.TRAIN_FAMILIES, rng)
            return lambda: problem_document(deck_of_families, rng)
        if kind == "identity":
            return lambda: identity.identity_document(rng)
        if kind == "talk":
            return lambda: talk.talk_document(rng)
        raise KeyError(kind)

    documents: list[str] = []
    for kind, share in shares.items():
        make, filled = makers(kind, rngs[kind]), 0
        while filled < share * total_chars:
            document = make()
            filled += len(document)
            documents.append(document)
    stream(seed, "documents/order").shuffle(documents)
    return documents
