"""The invented world: who and what there is, and the facts about them, split into asked (train) and held out (test).

A fact is (entity, relation, value), for instance ("Mira", town, "Tarn"). All facts stand in documents; only those with
`asked=True` are ever asked in training. Entities, their order and the split depend on the seed alone.
Sample: `build_world(0)[0] -> Fact(entity="Mira", relation=<town>, value="Luntz", asked=False)`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat.pocket.draw import stream
from nanochat.pocket.relation import Relation
from nanochat.pocket.relations_people import PEOPLE
from nanochat.pocket.relations_places import PLACES

RELATIONS = PEOPLE + PLACES

HELD_OUT_SHARE = 0.41  # of the facts of each relation: leaves >= 220 for the tests and >= 12 of each for training

WOMEN = (
    "Mira Selda Oona Tavia Brenna Quilla Fenya Zora Pemla Ilka Wynna Junia Calla Doria Esmy Gilda Hesta Yula Kessa "
    "Lorna Nemi Orla Petra Runa Sunda Thessa Ulma Vanda Xela Ambra Alda Briony Cosima Dilys Edda Frida Hilma Insa "
    "Jolan Katla Lioba Maeve Nadia Paloma Romy Sigrid Tamsin Ursa Vesna Zinta"
).split()
MEN = (
    "Bram Corvin Edric Falko Garrin Hobart Ivo Jarek Kolby Lunden Marlo Nestor Ottmar Perrin Rufus Sorrel Tobin Ulrik "
    "Vesper Wendel Yorick Zebulo Anselm Boden Cyrus Dexter Elgin Fitch Gorm Quent Alaric Baldur Caspar Drogo Edmund "
    "Florin Gideon Harald Ingmar Jonas Klaus Lorcan Milo Norbert Olaf Piers Ragnar Stellan Torben Viggo"
).split()

ENTITIES = {
    "person": tuple(WOMEN + MEN),
    "town": tuple(
        "Tarn Oben Lisker Wolden Marrow Pellin Kestow Dunmere Farhold Grisk Hollin Ivenna Jorvale Krell Luntz Nembury "
        "Orsk Quarley Rimford Sandrow".split()
    ),
    "animal": tuple(
        "dorlin bramsel quiffle zubber gorrick lumpet tivvet narwick snorfle hobbin jellet krindle vossel wumpan "
        "yarrik fendle plonder chibbet mottrel ruggin".split()
    ),
    "dish": tuple(
        "Golmish Tarrik Bodda Pelluni Surkan Vimmel Ostrin Kavash Lembo Nurrit Chendo Fazzi Hurnel Jubba Ripsel "
        "Wexo Dabbel Ilvento Muska Tolpin".split()
    ),
    "thing": (
        "brass key", "blue kite", "golden cup", "glass ship", "wooden horse", "old map", "silver ring", "red lantern",
        "green umbrella", "iron crown", "paper dragon", "stone lion", "velvet coat", "copper kettle", "ivory comb",
        "tall mirror", "amber brooch", "leather purse", "woven rug", "pearl necklace",
    ),
}

VALUES = {
    "town": ENTITIES["town"],
    "job": tuple(
        "baker miller teacher tailor carpenter fisher gardener nurse painter potter singer blacksmith weaver farmer "
        "librarian cook sailor builder barber beekeeper".split()
    ),
    "pet": tuple(
        "cat dog rabbit parrot turtle goat pony duck hamster lizard frog goose mouse snail canary hedgehog raven "
        "ferret donkey spider".split()
    ),
    "food": tuple(
        "pancakes noodles dumplings porridge waffles olives cheese cherries mushrooms potatoes lentils peanuts carrots "
        "sausages pickles radishes muffins figs beets turnips".split()
    ),
    "music": tuple(
        "flute drum violin harp trumpet guitar piano cello banjo horn fiddle organ whistle lute tuba clarinet bagpipe "
        "trombone harmonica zither".split()
    ),
    "product": tuple(
        "glasses honeycombs blankets papers candles scarves salts boots ropes bells baskets teas soaps clocks hats "
        "carpets lamps wheels barrels knives".split()
    ),
    "landmark": tuple(
        "tower windmill lighthouse fountain castle statue garden temple waterfall harbour theatre palace museum "
        "bridge dam chapel maze wall zoo pyramid".split()
    ),
    # no value is the end of another: "7:20" stands in "17:20"
    "bus": tuple(
        "5:30 6:45 7:20 7:55 8:10 8:40 9:15 9:35 10:05 10:50 11:25 12:00 12:35 13:10 14:20 14:45 15:30 16:05 18:50 "
        "19:25".split()
    ),
    "diet": tuple(
        "berries moss beetles nuts fish leaves worms seeds roots clover crickets bark shrimps acorns grass "
        "petals snails honey lichen mice".split()
    ),
    "habitat": tuple(
        "caves reeds burrows swamps cliffs barns rooftops deserts ponds chimneys forests meadows dunes hedges glaciers "
        "orchards tunnels lagoons valleys marshes".split()
    ),
    "ingredient": tuple(
        "rice barley eggs onions cabbage chicken beans corn spinach apples garlic tomatoes lemons almonds coconut "
        "peppers pumpkin lamb oats ginger".split()
    ),
    "minutes": tuple("10 12 15 18 20 25 30 35 40 45 50 55 60 65 70 75 80 85 90 22".split()),
    "place": tuple(
        "attic cellar kitchen stable tent shed bakery church office garage cabin pantry boathouse greenhouse workshop "
        "hallway library dungeon balcony laundry".split()
    ),
}


@dataclass(frozen=True)
class Fact:
    """One thing that is so in the pocket world."""

    entity: str
    relation: Relation
    value: str
    asked: bool
    """True: training may ask it. False: it stands in documents, and only tests ask it."""

    def say(self, template: str) -> str:
        """`fact.say("{e} lives in {v}.") -> "Mira lives in Tarn."`, with a capital at the start."""
        text = template.replace("{e}", self.entity).replace("{v}", self.value)
        return text[0].upper() + text[1:]

    @property
    def answer(self) -> str:
        """The canonical sentence: `"Mira lives in Tarn."`"""
        return self.say(self.relation.answer)


def assign(entities: tuple[str, ...], values: tuple[str, ...], rng: random.Random) -> list[str]:
    """A value for each entity, every value equally often (100 people, 20 towns: 5 each), so that no guess pays."""
    assert len(entities) % len(values) == 0, "values must divide the entities: else some guess pays more"
    pool = list(values) * (len(entities) // len(values))
    rng.shuffle(pool)
    return pool


def build_world(seed: int = 0) -> list[Fact]:
    """All facts, relation by relation (660: 500 of people, 60 of towns, 40 of animals, 40 of dishes, 20 of things)."""
    facts = []
    for relation in RELATIONS:
        rng = stream(seed, "world/" + relation.key)
        entities = ENTITIES[relation.kind]
        values = assign(entities, VALUES[relation.key], rng)
        held_out = set(rng.sample(range(len(entities)), round(HELD_OUT_SHARE * len(entities))))
        for i, (entity, value) in enumerate(zip(entities, values)):
            facts.append(Fact(entity, relation, value, asked=i not in held_out))
    return facts


def pronoun(person: str) -> str:
    """`pronoun("Mira") -> "She"`."""
    return "She" if person in WOMEN else "He"
