"""The families of word problems: 34 that training uses, 8 that only the test of new templates uses.

Those of reinforcement learning stand in rl_families.py.

Sample: `Family("gain", ("{n} has {a} {t}. {N} <gains> {b} more ...",), ("{n} has [x=a+b] {t} now.",), ranges)`.
"""

from __future__ import annotations

from nanochat.pocket.problems import EDIBLE, Family

VERBS = {
    "gains": "buys finds gets collects picks wins receives earns makes gathers".split(),
    "loses": ["gives away", "loses", "sells", "drops", "throws away", "breaks", "uses", "hands out", "lends out"],
    "eats": ["eats", "cooks", "gives away", "sells", "shares out"],
    "makes": "makes packs sells counts cleans sorts carries orders".split(),
    "puts": ["puts", "packs", "places", "sorts", "lays"],
    "shares": ["shares", "divides", "splits", "deals out"],
}

SMALL, MIDDLE, LARGE = (2, 12), (5, 99), (20, 999)

TRAIN_FAMILIES = (
    Family("gain", (
        "{n} has {a} {t}. {N} <gains> {b} more {t}. How many {t} does {n} have now?",
        "{n} <gains> {a} {t} in the morning and {b} {t} in the evening. How many {t} is that in all?",
        "There are {a} {t} on the table. {n} adds {b} more. How many {t} are on the table now?",
        "On Monday {n} <gains> {a} {t}. On Tuesday {ne} <gains> {b} {t}. How many {t} does {n} have?"),
        ("The total is [x=a+b] {t}.",), {"a": LARGE, "b": MIDDLE}),
    Family("lose", (
        "{n} has {a} {t}. {N} <loses> {b} of them. How many {t} does {n} have left?",
        "There are {a} {t} in a box. {n} takes out {b}. How many {t} stay in the box?",
        "{n} had {a} {t} and <loses> {b}. How many {t} are left?",
        "{n} owns {a} {t}. After {ne} <loses> {b} {t}, how many remain?"),
        ("There are [x=a-b] {t} left.",), {"a": LARGE, "b": MIDDLE}),
    Family("gain_lose", (
        "{n} has {a} {t}. {N} <gains> {b} more and then <loses> {c}. How many {t} does {n} have now?",
        "{n} starts with {a} {t}, <gains> {b} {t} and <loses> {c} {t}. How many {t} are left?"),
        ("First there are [x=a+b] {t}.", "Then there are [y=x-c] {t}."), {"a": LARGE, "b": MIDDLE, "c": MIDDLE}),
    Family("lose_gain", (
        "{n} has {a} {t}. {N} <loses> {b} and then <gains> {c}. How many {t} does {n} have now?",
        "Of {a} {t} {n} <loses> {b}. Later {ne} <gains> {c} more. How many {t} is that?"),
        ("First there are [x=a-b] {t}.", "Then there are [y=x+c] {t}."), {"a": LARGE, "b": MIDDLE, "c": MIDDLE}),
    Family("lose_twice", (
        "{n} has {a} {t}. {N} <loses> {b} on Monday and {c} on Tuesday. How many {t} are left?",
        "{n} gives {b} of {ns} {a} {t} to {m} and {c} to a friend. How many {t} does {n} keep?"),
        ("First there are [x=a-b] {t}.", "Then there are [y=x-c] {t}."), {"a": LARGE, "b": MIDDLE, "c": MIDDLE}),
    Family("groups", (
        "{n} has {a} {h} with {b} {t} in each. How many {t} does {n} have?",
        "There are {a} {h}. Each of them holds {b} {t}. How many {t} are there?",
        "{n} <puts> {b} {t} in each of {a} {h}. How many {t} does {ne} need?"),
        ("There are [x=a*b] {t}.",), {"a": (3, 60), "b": (3, 60)}),
    Family("share", (
        "{n} <shares> {p} {t} among {b} friends. How many {t} does each friend get?",
        "{b} children share {p} {t} equally. How many {t} does each child get?",
        "{n} <puts> {p} {t} into {b} {h} with the same number in each. How many {t} are in each?"),
        ("Each gets [x=p/b] {t}.",), {"a": (2, 60), "b": SMALL}, "p=a*b"),
    Family("packs", (
        "{n} has {p} {t}. {b} {t} fit in a box. How many boxes does {n} need?",
        "{n} ties {p} {t} into bunches of {b}. How many bunches are there?"),
        ("The number is [x=p/b].",), {"a": (2, 60), "b": SMALL}, "p=a*b"),
    Family("two_people", (
        "{n} has {a} {t} and {m} has {b} {t}. How many {t} do they have together?",
        "{n} <gains> {a} {t}. {m} <gains> {b} {t}. How many {t} do both have in total?"),
        ("Together they have [x=a+b] {t}.",), {"a": LARGE, "b": LARGE}),
    Family("difference", (
        "{n} has {a} {t} and {m} has {b} {t}. How many more {t} does {n} have than {m}?",
        "{n} <gains> {a} {t}, but {m} <gains> only {b}. What is the difference?"),
        ("The difference is [x=a-b].",), {"a": LARGE, "b": MIDDLE}),
    Family("more_than", (
        "{n} has {a} {t}. {m} has {b} {t} more than {n}. How many {t} do they have together?",
        "{m} has {b} more {t} than {n}, who has {a}. How many {t} is that for both?"),
        ("{m} has [x=a+b] {t}.", "Together they have [y=a+x] {t}."), {"a": LARGE, "b": MIDDLE}),
    Family("fewer_than", (
        "{n} has {a} {t}. {m} has {b} {t} fewer than {n}. How many {t} do they have together?",
        "{m} has {b} fewer {t} than {n}, who has {a}. How many {t} is that for both?"),
        ("{m} has [x=a-b] {t}.", "Together they have [y=a+x] {t}."), {"a": LARGE, "b": MIDDLE}),
    Family("times", (
        "{n} has {a} {t}. {m} has {b} times as many. How many {t} does {m} have?",
        "{n} <gains> {a} {t}. {m} <gains> {b} times as many {t} as {n}. How many {t} does {m} have?"),
        ("{m} has [x=a*b] {t}.",), {"a": MIDDLE, "b": (3, 9)}),
    Family("times_total", (
        "{n} has {a} {t}. {m} has {b} times as many. How many {t} do they have together?",
        "{m} has {b} times as many {t} as {n}, who has {a}. How many {t} do both have in total?"),
        ("{m} has [x=a*b] {t}.", "Together they have [y=a+x] {t}."), {"a": MIDDLE, "b": (3, 9)}),
    Family("twice", (
        "{n} has {a} {t}. {m} has twice as many. How many {t} does {m} have?",
        "{n} doubles {ns} {a} {t}. How many {t} does {ne} have now?"),
        ("The number is [x=a*2] {t}.",), {"a": (5, 999)}),
    Family("half", (
        "{n} has {p} {t}. {N} <loses> half of them. How many {t} are left?",
        "{n} has {p} {t}. {m} has half as many. How many {t} does {m} have?"),
        ("Half is [x=p/2] {t}.",), {"a": (3, 400), "b": (2, 2)}, "p=a*b"),
    Family("half_gain", (
        "{n} has {p} {t}. {N} <loses> half of them and then <gains> {c} more. How many {t} does {n} have now?",
        "Half of the {p} {t} of {n} are gone. Then {ne} <gains> {c} {t}. How many {t} is that?"),
        ("Half is [x=p/2] {t}.", "Then there are [y=x+c] {t}."), {"a": (3, 400), "b": (2, 2), "c": MIDDLE}, "p=a*b"),
    Family("price", (
        "{n} buys {a} {t}. Each costs {b} dollars. How much does {n} pay?",
        "One ticket costs {b} dollars. What is the price of {a} tickets?",
        "{n} sells {a} {t} for {b} dollars each. How much money does {n} get?"),
        ("The price is [x=a*b] dollars.",), {"a": (3, 60), "b": (2, 60)}),
    Family("change", (
        "{n} buys {a} {t} for {b} dollars each and pays with {c} dollars. How much money does {n} get back?",
        "{n} has {c} dollars. {N} buys {a} {t} at {b} dollars each. How many dollars are left?"),
        ("The price is [x=a*b] dollars.", "What is left is [y=c-x] dollars."),
        {"a": SMALL, "b": SMALL, "c": (20, 500)}),
    Family("two_prices", (
        "{n} buys {a} cups for {b} dollars each and {c} plates for {d} dollars each. How much does {n} pay?",
        "A pen costs {b} dollars and a book costs {d} dollars. {n} buys {a} pens and {c} books. What is the price?"),
        ("The first part is [x=a*b] dollars.", "The second part is [y=c*d] dollars.", "The price is [z=x+y] dollars."),
        {"a": SMALL, "b": SMALL, "c": SMALL, "d": SMALL}),
    Family("rate", (
        "{n} <makes> {a} {t} every day. How many {t} is that in {b} days?",
        "A machine makes {a} {t} an hour. How many {t} does it make in {b} hours?",
        "{n} reads {a} pages a day. How many pages does {ne} read in {b} days?"),
        ("The total is [x=a*b].",), {"a": MIDDLE, "b": (3, 30)}),
    Family("rate_minus", (
        "{n} <makes> {a} {t} every day for {b} days. Then {ne} <loses> {c}. How many {t} are left?",
        "For {b} days {n} <gains> {a} {t} a day. {m} takes {c} of them. How many {t} are left?"),
        ("First there are [x=a*b] {t}.", "Then there are [y=x-c] {t}."), {"a": MIDDLE, "b": (3, 20), "c": MIDDLE}),
    Family("groups_plus", (
        "{n} has {a} {h} with {b} {t} in each and {c} single {t}. How many {t} does {n} have?",
        "There are {b} {t} in each of {a} {h}. {n} finds {c} more {t}. How many {t} are there now?"),
        ("In the {h} there are [x=a*b] {t}.", "In all there are [y=x+c] {t}."),
        {"a": (3, 20), "b": (3, 40), "c": MIDDLE}),
    Family("groups_share", (
        "{n} has {a} {h} with {p} {t} in each. {N} <shares> them among {b} friends. How many {t} does each get?",
        "There are {p} {t} in each of {a} {h}. {b} children share all of them. How many {t} does each child get?"),
        ("There are [x=a*p] {t}.", "Each gets [y=x/b] {t}."), {"a": (3, 20), "b": (3, 9), "c": (2, 9)}, "p=b*c"),
    Family("lose_share", (
        "{n} has {a} {t}. {N} keeps {b} and gives the rest to {c} friends in equal parts. How many does each get?",
        "Of {a} {t}, {b} are bad. {n} <shares> the others among {c} friends. How many does each friend get?"),
        ("There are [x=a-b] {t} to share.", "Each gets [y=x/c] {t}."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("speed", (
        "{n} drives {a} miles an hour for {b} hours. How many miles does {ne} drive?",
        "A train goes {a} miles in an hour. How many miles does it go in {b} hours?"),
        ("The way is [x=a*b] miles.",), {"a": MIDDLE, "b": (2, 24)}),
    Family("trip", (
        "{n} wants to go {a} miles. {N} goes {b} miles an hour for {c} hours. How many miles are left?",
        "The way to the sea is {a} miles. {n} walks {b} miles a day for {c} days. How far is it then?"),
        ("{n} goes [x=b*c] miles.", "There are [y=a-x] miles left."), {"a": (50, 900), "b": MIDDLE, "c": SMALL}),
    Family("age_later", (
        "{n} is {a} years old. How old is {ne} in {b} years?",
        "{n} is {a} years old. {m} is {b} years older. How old is {m}?"),
        ("The age is [x=a+b] years.",), {"a": MIDDLE, "b": (2, 40)}),
    Family("age_before", (
        "{n} is {a} years old. How old was {ne} {b} years ago?",
        "{n} is {a} years old. {m} is {b} years younger. How old is {m}?"),
        ("The age is [x=a-b] years.",), {"a": (20, 99), "b": (2, 40)}),
    Family("pages", (
        "A book has {a} pages. {n} reads {b} pages a day for {c} days. How many pages are left?",
        "{n} must write {a} letters. {N} writes {b} a day. How many are left after {c} days?"),
        ("The part that is done is [x=b*c].", "The part that is left is [y=a-x]."),
        {"a": LARGE, "b": (3, 40), "c": SMALL}),
    Family("three_sums", (
        "{n} has {a} red, {b} blue and {c} green {t}. How many {t} does {n} have?",
        "{n} <gains> {a} {t} on Friday, {b} on Saturday and {c} on Sunday. How many {t} is that in all?"),
        ("The first two make [x=a+b] {t}.", "In all there are [y=x+c] {t}."), {"a": MIDDLE, "b": MIDDLE, "c": MIDDLE}),
    Family("bus", (
        "A bus has {a} people in it. At the stop {b} get off and {c} get on. How many people are in the bus now?",
        "There are {a} guests in a house. {b} leave and {c} arrive. How many guests are there now?"),
        ("First there are [x=a-b] people.", "Then there are [y=x+c] people."),
        {"a": MIDDLE, "b": MIDDLE, "c": MIDDLE}),
    Family("wage", (
        "{n} earns {a} dollars an hour and works {b} hours. {N} spends {c} dollars. How many dollars are left?",
        "For {b} hours of work at {a} dollars an hour {n} gets paid. Then {ne} spends {c} dollars. What is left?"),
        ("The pay is [x=a*b] dollars.", "What is left is [y=x-c] dollars."), {"a": MIDDLE, "b": SMALL, "c": MIDDLE}),
    Family("saving", (
        "{n} wants to buy a bike for {p} dollars. {N} saves {b} dollars a week. How many weeks does it take?",
        "A pump moves {b} cups of water a minute. How many minutes does it need for {p} cups?"),
        ("It takes [x=p/b].",), {"a": (3, 60), "b": (2, 50)}, "p=a*b"),
    Family("eat", (
        "{n} bakes {a} {t}. {m} <eats> {b} and {n} <eats> {c}. How many {t} are left?",
        "There are {a} {t} in the kitchen. In the morning {n} <eats> {b}, at night {c}. How many {t} are left?"),
        ("First there are [x=a-b] {t}.", "Then there are [y=x-c] {t}."), {"a": MIDDLE, "b": SMALL, "c": SMALL},
        things=tuple(EDIBLE)),
)

NEW_FAMILIES = (
    Family("seats", (
        "A theatre has {a} rows of {b} seats. {c} seats are empty. How many seats are taken?",),
        ("There are [x=a*b] seats.", "There are [y=x-c] seats taken."), {"a": (4, 30), "b": (5, 40), "c": MIDDLE}),
    Family("gift", (
        "{n} gives {a} {t} to {m}, who already had {b}. How many {t} does {m} own after that?",),
        ("{m} has [x=b+a] {t}.",), {"a": MIDDLE, "b": LARGE}),
    Family("sale", (
        "A shop sells {a} {t} on the first day and {b} on the second, all at {c} dollars. How much money comes in?",),
        ("There are [x=a+b] {t}.", "The price is [y=x*c] dollars."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("leak", (
        "A tank holds {a} cups of water. It loses {b} cups every hour. How many cups remain after {c} hours?",),
        ("It loses [x=b*c] cups.", "There are [y=a-x] cups left."), {"a": (50, 900), "b": SMALL, "c": SMALL}),
    Family("climb", (
        "A snail climbs {a} steps, slips back {b} and climbs {c} again. On which step does it sit?",),
        ("First it is on step [x=a-b].", "Then it is on step [y=x+c]."), {"a": MIDDLE, "b": MIDDLE, "c": MIDDLE}),
    Family("pool", (
        "{n} and {m} put {a} and {b} {t} together and share all with {c} people equally. What does each one get?",),
        ("There are [x=a+b] {t}.", "Each gets [y=x/c] {t}."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("double_minus", (
        "The {a} {t} of {n} become twice as many. After that {b} go missing. How many {t} are there?",),
        ("First there are [x=a*2] {t}.", "Then there are [y=x-b] {t}."), {"a": MIDDLE, "b": MIDDLE}),
    Family("team", (
        "Each of {a} teams scores {b} points, and {n} alone scores {c}. How many points is that altogether?",),
        ("The teams have [x=a*b] points.", "In all there are [y=x+c] points."), {"a": SMALL, "b": MIDDLE, "c": MIDDLE}),
)
