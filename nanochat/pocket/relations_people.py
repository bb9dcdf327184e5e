"""How facts about people are said and asked: town, job, pet, favourite food, instrument.

Sample: "Mira lives in Tarn." / "Where does Mira live?" / tests only: "Which town does Mira call home?"
"""

from __future__ import annotations

from nanochat.pocket.relation import Relation, lines
from nanochat.pocket.wordings_people import ASK_PEOPLE

PEOPLE = (
    Relation(
        "town", "person", "{e} lives in {v}.",
        lines("""
            The home of {e} is in {v}.
            {e} has a house in {v}.
            {v} is the town where {e} lives.
            You can find {e} in {v}.
            {e} comes home to {v} every evening.
            In {v} there is a small house, and {e} lives there.
            The town of {e} is {v}.
            If you want to visit {e}, go to {v}.
            {v} is home to {e}.
            {e} calls {v} home."""),
        ASK_PEOPLE["town"],
        lines("""
            Which town does {e} call home?
            What is {e}'s home town?
            In what place does {e} live?
            To which town does {e} come home every evening?"""),
        lines("""
            Who lives in {v}?
            Who has a house in {v}?
            Whose home is in {v}?
            Which person lives in {v}?"""),
        lines("""
            Who calls {v} home?
            Which person has a home in {v}?"""),
        "{es} live in {v}."),
    Relation(
        "job", "person", "{e} works as a {v}.",
        lines("""
            {e} is a {v}.
            The job of {e} is {v}.
            {e} earns money as a {v}.
            {e} became a {v} years ago.
            Everyone knows {e} the {v}.
            As a {v}, {e} works hard.
            {e} learned to be a {v}.
            The work of {e} is that of a {v}.
            {e} has a job as a {v}.
            If you need a {v}, ask {e}."""),
        ASK_PEOPLE["job"],
        lines("""
            As what does {e} work?
            What is the work of {e}?
            What sort of job does {e} have?
            What did {e} become years ago?"""),
        lines("""
            Who works as a {v}?
            Who is a {v}?
            Which person is a {v}?
            Who has a job as a {v}?"""),
        lines("""
            Who earns money as a {v}?
            Whom do you ask if you need a {v}?"""),
        "{es} work as {v}s."),
    Relation(
        "pet", "person", "{e} has a pet {v}.",
        lines("""
            {e} owns a {v}.
            The pet of {e} is a {v}.
            {e} keeps a {v} at home.
            {e} feeds a {v} every morning.
            A {v} is the pet of {e}.
            {e} takes good care of a {v}.
            At night the {v} sleeps near {e}.
            {e} loves a little {v}.
            {e} plays with a {v} after work.
            {e} and a {v} share one home."""),
        ASK_PEOPLE["pet"],
        lines("""
            What kind of animal does {e} keep?
            Which pet does {e} take care of?
            What sort of pet is at home with {e}?
            Which animal sleeps near {e} at night?"""),
        lines("""
            Who has a pet {v}?
            Who owns a {v}?
            Whose pet is a {v}?
            Who keeps a {v} at home?"""),
        lines("""
            Who takes good care of a {v}?
            Which person has a {v} as a pet?"""),
        "{es} each have a pet {v}."),
    Relation(
        "food", "person", "The favourite food of {e} is {v}.",
        lines("""
            {e} likes {v} best.
            {e} loves to eat {v}.
            {v} is what {e} likes to eat most.
            {e} eats {v} with joy.
            On a good day {e} eats {v}.
            For dinner {e} wants {v}.
            {e} always asks for {v}.
            Nothing tastes better to {e} than {v}.
            {e} would eat {v} every day.
            Give {e} some {v} and all is well."""),
        ASK_PEOPLE["food"],
        lines("""
            Which food does {e} love?
            What does {e} eat with joy?
            What tastes best to {e}?
            What food would make {e} happy?"""),
        lines("""
            Who likes {v} best?
            Who loves to eat {v}?
            Whose favourite food is {v}?
            Who wants {v} for dinner?"""),
        lines("""
            Who would eat {v} every day?
            Which person always asks for {v}?"""),
        "{es} like {v} best."),
    Relation(
        "music", "person", "{e} plays the {v}.",
        lines("""
            {e} makes music on the {v}.
            The instrument of {e} is the {v}.
            {e} learned the {v} as a child.
            In the band {e} plays the {v}.
            {e} practices the {v} every week.
            The {v} is the instrument that {e} plays.
            You can hear {e} play the {v}.
            {e} is good at the {v}.
            After dinner {e} takes out the {v}.
            {e} gives lessons on the {v}."""),
        ASK_PEOPLE["music"],
        lines("""
            On which instrument does {e} make music?
            What can you hear {e} play?
            Which instrument does {e} take out after dinner?
            What kind of instrument does {e} have?"""),
        lines("""
            Who plays the {v}?
            Who makes music on the {v}?
            Whose instrument is the {v}?
            Who practices the {v} every week?"""),
        lines("""
            Who is good at the {v}?
            Which person plays the {v} in the band?"""),
        "{es} play the {v}."),
)
