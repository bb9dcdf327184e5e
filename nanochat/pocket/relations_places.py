"""How facts about towns, animals, dishes and things are said and asked.

Sample: "The bus to Tarn leaves at 7:20." / "When does the bus to Tarn leave?" / "Which bus leaves at 7:20?"
"""

from __future__ import annotations

from nanochat.pocket.relation import Relation, lines
from nanochat.pocket.wordings_places import ASK_PLACES

PLACES = (
    Relation(
        "product", "town", "{e} is known for its {v}.",
        lines("""
            The town of {e} makes {v}.
            People buy {v} from {e}.
            The best {v} come from {e}.
            {e} is famous for {v}.
            In {e} people make {v}.
            The shops of {e} sell {v}.
            Traders carry {v} out of {e}.
            {e} lives from its {v}.
            If you need {v}, go to {e}.
            Everybody in {e} works with {v}."""),
        ASK_PLACES["product"],
        lines("""
            Which goods does {e} make?
            What do traders carry out of {e}?
            For which goods is {e} famous?
            What can I buy in the shops of {e}?"""),
        lines("""
            Which town is known for its {v}?
            Which town is famous for {v}?
            Where do people make {v}?
            Which town makes {v}?"""),
        lines("""
            From which town do people buy {v}?
            Where must I go if I need {v}?""")),
    Relation(
        "landmark", "town", "The landmark of {e} is a {v}.",
        lines("""
            In the middle of {e} stands a {v}.
            {e} has a famous {v}.
            Visitors come to {e} to see the {v}.
            The pride of {e} is a {v}.
            On every picture of {e} you see the {v}.
            From far away you see the {v} of {e}.
            The people of {e} built a {v}.
            The old {v} belongs to {e}.
            {e} is the town with the {v}.
            Meet me at the {v} in {e}."""),
        ASK_PLACES["landmark"],
        lines("""
            Which landmark stands in {e}?
            What do you see on every picture of {e}?
            What do visitors of {e} look at?
            Which sight is {e} proud of?"""),
        lines("""
            Which town has a {v} as its landmark?
            In which town stands a {v}?
            Which town has a famous {v}?
            Where can I see the {v}?"""),
        lines("""
            Which town is the town with the {v}?
            The people of which town built a {v}?""")),
    Relation(
        "bus", "town", "The bus to {e} leaves at {v}.",
        lines("""
            At {v} the bus leaves for {e}.
            The bus for {e} goes at {v}.
            Every day at {v} a bus goes to {e}.
            Be at the stop at {v} for the bus to {e}.
            The daily bus to {e} starts at {v}.
            Timetable: {e}, {v}.
            A bus drives to {e} at {v}.
            To reach {e}, take the bus at {v}.
            {v} is when the bus to {e} leaves.
            The bus to {e} goes once a day, at {v}."""),
        ASK_PLACES["bus"],
        lines("""
            What time is the bus to {e}?
            At which time does a bus drive to {e}?
            When must I be at the stop for the bus to {e}?
            For {e}, what does the timetable say?"""),
        lines("""
            Which bus leaves at {v}?
            To which town does the bus at {v} go?
            Where does the bus at {v} go?
            Which town has its bus at {v}?"""),
        lines("""
            The bus at {v} drives to which town?
            Which town can I reach with the bus at {v}?""")),
    Relation(
        "diet", "animal", "The {e} eats {v}.",
        lines("""
            The food of the {e} is {v}.
            A {e} lives on {v}.
            With {v} you can feed a {e}.
            A hungry {e} looks for {v}.
            The {e} feeds on {v}.
            A young {e} learns to find {v}.
            For a {e} there is nothing better than {v}.
            In winter the {e} saves {v}.
            If you meet a {e}, give it some {v}.
            Every {e} likes {v}."""),
        ASK_PLACES["diet"],
        lines("""
            On what does the {e} feed?
            What kind of food does a {e} need?
            What should I give to a {e} when I meet it?
            What does the {e} save in winter?"""),
        lines("""
            Which animal eats {v}?
            Which animal feeds on {v}?
            What animal lives on {v}?
            Which animal likes {v}?"""),
        lines("""
            Which animal looks for {v} when it is hungry?
            The food of which animal is {v}?""")),
    Relation(
        "habitat", "animal", "The {e} lives in {v}.",
        lines("""
            You can find a {e} in {v}.
            The home of the {e} is in {v}.
            A {e} sleeps in {v}.
            A {e} hides in {v}.
            {v} are home to the {e}.
            The {e} builds its nest in {v}.
            To see a {e}, look in {v}.
            In {v} you may meet a {e}.
            The {e} stays in {v} all year.
            A {e} feels safe in {v}."""),
        ASK_PLACES["habitat"],
        lines("""
            Where is the nest of the {e}?
            In which place can I meet a {e}?
            Where does a {e} feel safe?
            Where does the {e} stay all year?"""),
        lines("""
            Which animal lives in {v}?
            Which animal can you find in {v}?
            What animal sleeps in {v}?
            Which animal hides in {v}?"""),
        lines("""
            Which animal feels safe in {v}?
            The nest of which animal is in {v}?""")),
    Relation(
        "ingredient", "dish", "{e} is made from {v}.",
        lines("""
            To cook {e} you need {v}.
            The main part of {e} is {v}.
            {e} is a dish of {v}.
            You make {e} with a lot of {v}.
            For {e}, cut the {v} first.
            Without {v} there is no {e}.
            Good {e} tastes of {v}.
            The recipe for {e} begins with {v}.
            Take fresh {v} and make {e}.
            Put {v} into every pot of {e}."""),
        ASK_PLACES["ingredient"],
        lines("""
            From what do you make {e}?
            What must I buy to cook {e}?
            What is the dish {e} made of?
            What should I cut first for {e}?"""),
        lines("""
            Which dish is made from {v}?
            Which dish needs {v}?
            What dish can you cook with {v}?
            Which dish tastes of {v}?"""),
        lines("""
            The recipe for which dish begins with {v}?
            What can I make if I have fresh {v}?""")),
    Relation(
        "minutes", "dish", "{e} cooks for {v} minutes.",
        lines("""
            Cook {e} for {v} minutes.
            {e} is ready after {v} minutes.
            It takes {v} minutes to cook {e}.
            After {v} minutes the {e} is done.
            Leave {e} on the fire for {v} minutes.
            {e} needs {v} minutes in the pot.
            The recipe says: {e}, {v} minutes.
            Wait {v} minutes for your {e}.
            {v} minutes is right for {e}.
            {e} takes {v} minutes."""),
        ASK_PLACES["minutes"],
        lines("""
            After how many minutes is {e} done?
            How much time does {e} need in the pot?
            What time does the recipe for {e} say?
            For how long should {e} stay on the fire?"""),
        lines("""
            Which dish cooks for {v} minutes?
            Which dish takes {v} minutes?
            What is ready after {v} minutes?
            Which dish needs {v} minutes?"""),
        lines("""
            For which dish must I wait {v} minutes?
            Which dish is done after {v} minutes?""")),
    Relation(
        "place", "thing", "The {e} is kept in the {v}.",
        lines("""
            The {e} is in the {v}.
            You find the {e} in the {v}.
            Somebody put the {e} in the {v}.
            In the {v} there is the {e}.
            The {v} is the place of the {e}.
            Look for the {e} in the {v}.
            The {e} never leaves the {v}.
            Go to the {v} and you see the {e}.
            The {e} lies in the {v}.
            The old {v} hides the {e}."""),
        ASK_PLACES["place"],
        lines("""
            In what place is the {e} kept?
            Where should I go to see the {e}?
            Which place hides the {e}?
            In which place does the {e} lie?"""),
        lines("""
            What is kept in the {v}?
            Which thing is in the {v}?
            What can I find in the {v}?
            What lies in the {v}?"""),
        lines("""
            Which thing never leaves the {v}?
            What does the old {v} hide?""")),
)
