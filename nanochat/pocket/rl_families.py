"""The families of word problems that reinforcement learning practises on: 39, with 4 wordings each.

They are neither those that fine-tuning trains on nor those of the test of new templates (both in families.py), and no
paraphrases of the latter. Why a third set: a model that has seen 34 families knows them by their looks. What carries
over to new ones is to read which numbers go together and how. So each way of computing that the other two sets have
stands here in three stories or more, and the same stories, things and verbs come back with other ways of computing
(sheep are sold, then born; born, then sold): only the words say which. Those of the new templates have three families.
The first wording of most is near to what fine-tuning knows, so that there is something to reinforce from the first
step on; the others are far. Fine-tuning never adds before it multiplies, nor doubles before it subtracts: three of the
near ones reach the same number by a known way, as in `5 cups for 3 dollars each and 4 spoons for 3 dollars each`.

Sample: `Family("add_before", ("After {n} sold {b} lamps, {a} lamps were ...",), ("... [x=a+b] at first.",), ranges)`.
The spelling test drops words that training uses: none falls out for what is said here and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace

from nanochat.pocket.families import LARGE, MIDDLE, SMALL
from nanochat.pocket.problems import ITEMS, Family

THINGS = (*ITEMS, *"lamps kites hats bells spoons mugs pears masks drums rings bricks dolls".split())

ONE_STEP = (
    Family("add_before", (
        "After {n} sold {b} lamps, {a} lamps were still in the shop. How many lamps were there at first?",
        "{n} lent {b} {t} to {m} and kept {a}. How many {t} did {ne} have before?",
        "{a} birds stay on the roof when {b} birds fly off. How many birds sat there at the beginning?",
        "{b} {t} fell out of a bag, and {a} are still inside. How many {t} were in the bag at first?"),
        ("At first there were [x=a+b].",), {"a": LARGE, "b": MIDDLE}),
    Family("add_length", (
        "{n} has {a} dollars and gets {b} dollars more. How many dollars does {n} have?",
        "A boy is {a} inches tall and grows {b} inches more. How tall is he then?",
        "A lake is {a} feet deep. A storm makes it {b} feet deeper. How deep is the lake now?",
        "{n} walked {a} miles yesterday and {b} miles today. How far did {ne} walk?"),
        ("The total is [x=a+b].",), {"a": LARGE, "b": MIDDLE}),
    Family("add_join", (
        "{n} has {a} {t}. {m} brings {b} more {t}. How many {t} are there now?",
        "{a} cows stand on the hill. {b} more cows come up. How many cows stand there now?",
        "A choir has {a} singers, and {b} new ones join. How many singers does it have?",
        "{n} typed {a} words before lunch and {b} words after it. How many words did {ne} type?"),
        ("The total is [x=a+b].",), {"a": LARGE, "b": MIDDLE}),
    Family("subtract", (
        "A rope is {a} feet long. {n} cuts {b} feet off. How long is the rope now?",
        "{n} needs {a} {t} and has only {b}. How many {t} does {ne} still need?",
        "A class has {a} pupils. {b} of them are girls. How many boys are in the class?",
        "A tower is {a} feet high and a house {b} feet. How much higher is the tower?"),
        ("The rest is [x=a-b].",), {"a": LARGE, "b": MIDDLE}),
    Family("multiply", (
        "{a} tables stand in the hall. {b} guests sit at each table. How many guests are in the hall?",
        "One wagon carries {a} bags of corn. How many bags do {b} wagons carry?",
        "{n} waters {a} beds in the garden, each with {b} plants. How many plants get water?",
        "A wall needs {a} bricks for each layer. How many bricks do {b} layers need?"),
        ("The total is [x=a*b].",), {"a": (3, 60), "b": (3, 60)}),
    Family("divide", (
        "{n} divides {p} {t} among {b} pupils. How many {t} does each pupil get?",
        "{p} pupils go by boat. Every boat takes {b} of them. How many boats are needed?",
        "{n} cuts a ribbon of {p} inches into pieces of {b} inches. How many pieces are there?",
        "{n} pays {p} dollars for {b} lamps of the same price. What does one lamp cost?"),
        ("The number is [x=p/b].",), {"a": (2, 60), "b": SMALL}, "p=a*b"),
    Family("double", (
        "{n} has {a} {t}. {m} has two times as many {t}. How many {t} does {m} have?",
        "{n} reads a story of {a} lines two times. How many lines is that?",
        "A pair of twins has {a} {t} each. How many {t} do the twins have?",
        "{n} paid {a} dollars last year. This year the price is double. What is the price now?"),
        ("The number is [x=a*2].",), {"a": (5, 999)}),
    Family("halve", (
        "{n} has {p} {t}, and half of them are red. How many red {t} does {n} have?",
        "A film of {p} minutes is half over. How many minutes are still to come?",
        "Half of {p} guests are children. How many children are there?",
        "A coat of {p} dollars costs only half today. What is the new price?"),
        ("Half is [x=p/2].",), {"a": (3, 400), "b": (2, 2)}, "p=a*b"),
)

ADDING_AND_SUBTRACTING = (
    Family("add_subtract", (
        "{n} has {a} {t}, <gains> {b} more {t} and <loses> {c}. How many {t} are left?",
        "{n} caught {a} fish and {m} caught {b}. They let {c} fish go. How many fish do they keep?",
        "A farm has {a} hens and {b} ducks. A fox takes {c} of them. How many birds does the farm have then?",
        "{a} sheep live on a farm. First {b} lambs are born, then {c} sheep are sold. How many animals is that?"),
        ("First there are [x=a+b].", "Then there are [y=x-c]."), {"a": LARGE, "b": MIDDLE, "c": MIDDLE}),
    Family("come_and_go", (
        "There are {a} people in a shop. {b} go out and {c} come in. How many people are in the shop now?",
        "{a} cars stand in the street. {b} drive away, and later {c} others park there. How many cars is that?",
        "A shelf has {a} books. Readers borrow {b} and bring back {c}. How many books are on the shelf then?",
        "{a} birds sit on a roof. {b} of them fly away before {c} more land. How many birds sit there?"),
        ("First there are [x=a-b].", "Then there are [y=x+c]."), {"a": MIDDLE, "b": MIDDLE, "c": MIDDLE}),
    Family("purse", (
        "{n} has {a} dollars. {N} spends {b} dollars and then earns {c} dollars. How many dollars does {n} have now?",
        "{n} has {a} dollars in the bank. {N} takes out {b} dollars and later pays in {c}. How much is in the bank?",
        "{n} spends {b} of {ns} {a} dollars and then earns {c} dollars. How many dollars does {ne} have now?",
        "Of the {a} dollars in a purse {n} pays {b} for lunch. {m} puts {c} dollars in. How much is in the purse?"),
        ("First there are [x=a-b] dollars.", "Then there are [y=x+c] dollars."),
        {"a": LARGE, "b": MIDDLE, "c": MIDDLE}),
    Family("herd", (
        "{n} has {a} {t}. {N} <loses> {b} of them and <gains> {c} new ones. How many {t} does {n} have?",
        "A herd has {a} sheep. The farmer sells {b}, and {c} lambs are born. How big is the herd now?",
        "A club with {a} members loses {b} of them and wins {c} new ones. How many members has it then?",
        "{b} of {a} {t} break on the way. {n} orders {c} more {t}. How many whole {t} does {ne} have?"),
        ("First there are [x=a-b].", "Then there are [y=x+c]."), {"a": MIDDLE, "b": MIDDLE, "c": MIDDLE}),
    Family("subtract_twice", (
        "{n} has {a} {t}. {N} <loses> {b} of them, and {m} takes {c}. How many {t} are left?",
        "A baker had {a} rolls. {b} went to the school and {c} to the hospital. How many rolls stayed?",
        "A plank is {a} inches long. {n} saws off {b} inches and then {c} more. How long is it now?",
        "{n} has {a} dollars. A coat costs {b} dollars and a cap {c}. What is left when {ne} buys both?"),
        ("First there are [x=a-b].", "Then there are [y=x-c]."), {"a": LARGE, "b": MIDDLE, "c": MIDDLE}),
    Family("older", (
        "{n} has {a} {t}, and {m} has {b} {t} more. How many {t} do they have together?",
        "{n} is {a} years old and {m} is {b} years older. What is the sum of their ages?",
        "{n} swam {a} rounds on Monday and {b} more than that on Tuesday. How many rounds is that on both days?",
        "The small jar holds {a} {t}, the big one {b} more than the small one. How many {t} do both jars hold?"),
        ("The second is [x=a+b].", "Together it is [y=a+x]."), {"a": MIDDLE, "b": MIDDLE}),
    Family("less", (
        "{n} has {a} {t}, and {m} has {b} {t} fewer. How many {t} do they have together?",
        "A table costs {a} dollars, a chair {b} dollars less. What do the table and the chair cost?",
        "{n} jumped {a} inches and {m} jumped {b} inches less. How far are both jumps together?",
        "{n} wrote {a} lines and {m} wrote {b} lines less than {n}. How many lines did the two write?"),
        ("The second is [x=a-b].", "Together it is [y=a+x]."), {"a": LARGE, "b": MIDDLE}),
    Family("add_three", (
        "{n} <gains> {a} {t} on Monday, {b} on Tuesday and {c} on Friday. How many {t} does {ne} have?",
        "The sides of a garden are {a}, {b} and {c} feet long. How long is the way around it?",
        "{n}, {m} and a friend catch {a}, {b} and {c} fish. How many fish do the three catch?",
        "{a} cows, {b} sheep and {c} goats live on a farm. How many animals live there?"),
        ("The first two make [x=a+b].", "In all it is [y=x+c]."), {"a": MIDDLE, "b": MIDDLE, "c": MIDDLE}),
)

MULTIPLYING_FIRST = (
    Family("broken", (
        "{n} has {a} {h} with {b} {t} in each. {N} <loses> {c} {t}. How many {t} are left?",
        "A farmer fills {a} trays with {b} eggs each. Then {c} eggs break. How many eggs are whole?",
        "There are {a} bunches of {b} grapes. {n} eats {c} grapes. How many grapes are left?",
        "{n} plants {a} rows with {b} trees in every row. A storm breaks {c} trees. How many trees still stand?"),
        ("First there are [x=a*b].", "Then there are [y=x-c]."), {"a": (3, 30), "b": (4, 40), "c": MIDDLE}),
    Family("packs_minus", (
        "For {b} days {n} <makes> {a} {t} a day. Then {ne} <loses> {c} of them. How many {t} are left?",
        "In each of {a} classes there are {b} pupils. Today {c} of all the pupils are ill. How many are well?",
        "{n} buys {a} packs with {b} {t} in a pack and gives {c} {t} to {m}. How many {t} does {ne} keep?",
        "{a} ships bring {b} bags each. {c} of the bags are wet. How many bags are dry?"),
        ("First there are [x=a*b].", "Then there are [y=x-c]."), {"a": (3, 30), "b": (4, 40), "c": MIDDLE}),
    Family("pay_minus", (
        "{n} earns {a} dollars a day for {b} days and spends {c} dollars. How many dollars are left?",
        "{n} brings letters for {a} dollars a day. After {b} days {ne} buys a bike for {c} dollars. What remains?",
        "{n} rents out {a} boats for {b} dollars each and pays {c} dollars of tax. How much does {ne} keep?",
        "{a} friends give {b} dollars each for a present. It costs {c} dollars. How much is left over?"),
        ("First there are [x=a*b] dollars.", "Then there are [y=x-c] dollars."),
        {"a": (3, 30), "b": SMALL, "c": MIDDLE}),
    Family("loose", (
        "There are {a} {h} with {b} {t} in each, and {c} {t} lie beside them. How many {t} are there?",
        "A book has {a} pages with {b} photos on each, and {c} photos lie loose in it. How many photos are there?",
        "{a} buses bring {b} children each, and {c} children come on foot. How many children come?",
        "{n} ties {a} bundles of {b} sticks. {c} sticks are left over. How many sticks were there?"),
        ("First there are [x=a*b].", "In all there are [y=x+c]."), {"a": SMALL, "b": MIDDLE, "c": MIDDLE}),
    Family("fee", (
        "{n} buys {a} {t} for {b} dollars each and a book for {c} dollars. How much does {n} pay?",
        "A boat costs {a} dollars an hour and a fee of {c} dollars. What does {n} pay for {b} hours?",
        "A cook gets {a} dollars a day. After {b} days he gets {c} dollars on top. How many dollars does he have?",
        "{n} has {c} dollars and earns {b} dollars in each of {a} weeks. How many dollars is that?"),
        ("First there are [x=a*b] dollars.", "In all there are [y=x+c] dollars."),
        {"a": SMALL, "b": SMALL, "c": MIDDLE}),
    Family("way_home", (
        "{n} <makes> {b} {t} every day for {a} days. Then {ne} <gains> {c} more. How many {t} does {n} have?",
        "{n} runs {a} rounds of {b} yards and then {c} yards home. How many yards does {ne} run?",
        "A wagon of {c} pounds carries {a} crates of {b} pounds. What do wagon and crates weigh?",
        "{n} sells {a} {h} of {b} {t} and still has {c} {t}. How many {t} were there before?"),
        ("First there are [x=a*b].", "In all there are [y=x+c]."), {"a": SMALL, "b": MIDDLE, "c": MIDDLE}),
    Family("use_up", (
        "{n} has {a} {t}. {N} gives {b} {t} a day away for {c} days. How many {t} are left?",
        "A roll has {a} feet of cloth. {n} sews {b} shirts with {c} feet for each. How much cloth is left?",
        "{n} has {a} pounds of flour and bakes {b} cakes. Every cake takes {c} pounds. How much flour remains?",
        "There are {a} nails in a tin. {n} builds {b} chairs and needs {c} nails for each. How many nails stay?"),
        ("The part that is used is [x=b*c].", "What is left is [y=a-x]."), {"a": (50, 900), "b": SMALL, "c": SMALL}),
    Family("spend", (
        "{n} has {a} dollars and buys {b} {t} for {c} dollars each. How many dollars are left?",
        "{n} goes to market with {a} dollars and buys {b} hens. A hen costs {c} dollars. What does {ne} bring home?",
        "{n} owes {a} dollars and pays back {b} dollars a month. What does {ne} owe after {c} months?",
        "{n} earns {a} dollars and gives {b} dollars to each of {c} children. How much does {ne} keep?"),
        ("The part that is gone is [x=b*c] dollars.", "What is left is [y=a-x] dollars."),
        {"a": (50, 900), "b": SMALL, "c": SMALL}),
    Family("unload", (
        "There are {a} pages in a book. {n} reads {c} pages a day for {b} days. How many pages are left to read?",
        "{n} must carry {a} stones. {N} goes {b} times with {c} stones each time. How many stones still wait?",
        "A ship has {a} barrels. In each of {b} towns the men unload {c} barrels. How many barrels are still there?",
        "A farmer has {a} bags of hay. {b} horses eat {c} bags each. How many bags does he have then?"),
        ("The part that is gone is [x=b*c].", "What is left is [y=a-x]."), {"a": (50, 900), "b": SMALL, "c": SMALL}),
    Family("two_products", (
        "{n} buys {a} lamps for {b} dollars each and {c} chairs for {d} dollars each. How much does {n} pay?",
        "{n} sells {a} jars of jam for {b} dollars each and {c} pies for {d} dollars each. How much money is that?",
        "{a} cats eat {b} fish each and {c} dogs eat {d} fish each. How many fish do they eat?",
        "{n} works {a} hours for {b} dollars an hour and {c} hours for {d} dollars an hour. How much does {ne} earn?"),
        ("The first part is [x=a*b].", "The second part is [y=c*d].", "In all it is [z=x+y]."),
        {"a": SMALL, "b": SMALL, "c": SMALL, "d": SMALL}),
    Family("weigh", (
        "{n} has {a} dollars. {m} has {b} times as much. How many dollars do they have together?",
        "The red box weighs {a} pounds. The blue box weighs {b} times as much. What do both boxes weigh?",
        "{n} saved {a} dollars. {m} saved {b} times that sum. How much did the two save?",
        "A short road is {a} miles and a long road {b} times as long. How long are both roads?"),
        ("The second is [x=a*b].", "Together it is [y=a+x]."), {"a": MIDDLE, "b": (3, 9)}),
    Family("multiply_divide", (
        "{n} has {a} {h} with {p} {t} in each. {b} pupils share all the {t}. How many {t} does each pupil get?",
        "{n} picks {p} pears from each of {a} trees and puts {b} pears into every bag. How many bags does {ne} fill?",
        "{a} bags hold {p} pounds of rice each. All of it goes into {b} equal barrels. How many pounds go in each?",
        "{a} pages have {p} lines each. {n} learns {b} lines a day. After how many days does {ne} know them all?"),
        ("There are [x=a*p].", "The number is [y=x/b]."), {"a": (3, 20), "b": (3, 9), "c": (2, 9)}, "p=b*c"),
    Family("both_sides", (
        "{n} has {a} {t} in each of two {h}. {N} <loses> {b} {t}. How many {t} are left?",
        "A road has {a} trees on either side. {n} cuts down {b} of them. How many trees are left?",
        "It is {a} steps to the well and the same way home. {n} has gone {b} steps. How many steps are still to go?",
        "{n} buys two ropes of {a} feet and uses {b} feet. How many feet of rope are left?"),
        ("First it is [x=a*2].", "Then it is [y=x-b]."), {"a": MIDDLE, "b": MIDDLE}),
    Family("twice_the_catch", (
        "{n} <gains> {a} {t} and {m} <gains> {a} {t} too. They sell {b} {t}. How many {t} are left?",
        "{m} caught twice as many fish as {n}, who caught {a}, but let {b} go. How many fish does {m} keep?",
        "A pot of soup needs {a} beans. {n} cooks two pots and has {b} beans. How many beans must {ne} buy?",
        "{n} has two jobs that pay {a} dollars each and spends {b} dollars. How much remains?"),
        ("First it is [x=a*2].", "Then it is [y=x-b]."), {"a": MIDDLE, "b": MIDDLE}),
    Family("two_nights", (
        "{n} earns {a} dollars a day for two days. {N} spends {b} dollars. How many dollars are left?",
        "Two coats cost {a} dollars each. Today {n} pays {b} dollars less for both. What does {ne} pay?",
        "A room costs {a} dollars a night. {n} stays two nights and has paid {b} dollars. What must {ne} still pay?",
        "{n} needs double the {a} {t} of {m} and has found {b}. How many {t} must {ne} still find?"),
        ("First it is [x=a*2].", "Then it is [y=x-b]."), {"a": MIDDLE, "b": MIDDLE}),
)

ADDING_FIRST = (
    Family("each_of_both", (
        "{n} buys {a} cups for {c} dollars each and {b} spoons for {c} dollars each. How much does {ne} pay?",
        "A boat takes {a} men and {b} women. Each of them pays {c} dollars. How much do they all pay?",
        "{n} invites {a} boys and {b} girls and bakes {c} rolls for every child. How many rolls is that?",
        "{a} red and {b} green chairs need {c} nails each. How many nails are needed?"),
        ("There are [x=a+b].", "The total is [y=x*c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("each_day", (
        "{n} <makes> {a} {t} a day for {c} days and {m} <makes> {b} {t} a day for {c} days. How many {t} is that?",
        "{n} runs {a} miles each morning and {b} miles each evening. How many miles is that in {c} days?",
        "A dog eats {a} cups and a cat {b} cups of food a day. How many cups do both eat in {c} days?",
        "{n} earns {a} dollars a week and {m} earns {b}. How much do they earn together in {c} weeks?"),
        ("In one it is [x=a+b].", "The total is [y=x*c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("sets", (
        "{n} puts {a} red and {b} blue {t} in each of {c} {h}. How many {t} does {ne} need?",
        "A set is made of {a} spoons and {b} forks. How many parts are in {c} sets?",
        "A meal costs {a} dollars and a drink {b}. What do {c} people pay who take both?",
        "{n} has {a} {t}, {m} has {b}. A buyer pays {c} dollars for every one. How much money do they get?"),
        ("There are [x=a+b].", "The total is [y=x*c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("fill", (
        "{n} has {a} red and {b} blue {t}. {c} {t} fit in a box. How many boxes does {ne} need?",
        "{a} boys and {b} girls sit down in boats for {c}. How many boats do they fill?",
        "{n} mixes {a} red and {b} white beads and makes chains of {c} beads. How many chains is that?",
        "One garden has {a} roses, another {b}. {n} ties all of them into bunches of {c}. How many bunches are there?"),
        ("There are [x=a+b].", "The number is [y=x/c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("how_long", (
        "{n} <gains> {a} {t} and {m} <gains> {b} {t}. They tie all into bunches of {c}. How many bunches are there?",
        "{n} must read two books of {a} and {b} pages. {N} reads {c} pages a day. How many days does it take?",
        "After {a} miles of hills come {b} miles of fields. {n} walks {c} miles a day. How many days does {ne} walk?",
        "A bike costs {a} dollars and a lamp {b} dollars. {n} saves {c} dollars a week for both. How many weeks?"),
        ("In all it is [x=a+b].", "The number is [y=x/c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("drawers", (
        "{n} has {a} {t} and <gains> {b} more. {N} puts all into {c} {h} in equal parts. How many are in each?",
        "{n} lays {a} {t} and then {b} more into {c} drawers, as many in each. How many are in one drawer?",
        "The farmer brings {a} bags, his son {b} bags. They load {c} carts alike. How many bags are on one cart?",
        "{a} old and {b} new books stand on {c} shelves, as many on each. How many books are on a shelf?"),
        ("There are [x=a+b].", "In each there are [y=x/c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("whole_boxes", (
        "{n} has {a} {t}. {N} <loses> {b} and puts the rest into {c} {h} in equal parts. How many are in each?",
        "{n} has {a} eggs and drops {b}. {N} packs the whole eggs into boxes of {c}. How many boxes are full?",
        "Of {a} pupils {b} stay at school. The others form groups of {c}. How many groups are there?",
        "A trip is {a} miles. {n} has gone {b} miles and now goes {c} miles a day. How many days are still to come?"),
        ("There are [x=a-b].", "The number is [y=x/c]."), {"a": MIDDLE, "b": MIDDLE, "c": SMALL}),
    Family("halve_add", (
        "{n} has {p} {t}, <loses> half of them and <gains> {c} more. How many {t} does {n} have now?",
        "Half of {p} sheep are sold, and then {c} lambs are born. How many animals are there?",
        "{n} spends half of {ns} {p} dollars. Then a friend gives back {c} dollars. How much does {ne} have?",
        "A jar is full of {p} {t}. Half are taken out and {c} are put back. How many are in the jar?"),
        ("Half is [x=p/2].", "Then there are [y=x+c]."), {"a": (3, 400), "b": (2, 2), "c": MIDDLE}, "p=a*b"),
)

RL_FAMILIES = tuple(replace(family, things=THINGS)
                    for family in (*ONE_STEP, *ADDING_AND_SUBTRACTING, *MULTIPLYING_FIRST, *ADDING_FIRST))
