"""How the facts of the pocket world are said and asked: one `Relation` a kind of fact.

Each has ways to state it (documents), to ask it (train), to ask it that are kept for tests only, one canonical answer
sentence, and questions in the other direction (ARC-Challenge style). `{e}` is the entity, `{v}` the value.
Sample: `Relation("town", ...)`: "Mira lives in Tarn." / "Where does Mira live?" / "Who lives in Tarn?"
"""

from __future__ import annotations

from dataclasses import dataclass


def lines(text: str) -> tuple[str, ...]:
    """The phrasings of a block of text, one a line."""
    return tuple(line.strip() for line in text.strip().splitlines())


@dataclass(frozen=True)
class Relation:
    key: str
    """Unique name, for instance `town`."""
    kind: str
    """Which entities have it: person, town, animal, dish, thing."""
    answer: str
    """The sentence the assistant answers with; also the most frequent statement in documents."""
    statements: tuple[str, ...]
    """Further sentences that state the fact."""
    questions: tuple[str, ...]
    """Questions that training may ask."""
    test_questions: tuple[str, ...]
    """Questions that only tests ask."""
    reverse: tuple[str, ...]
    """Questions from the value to the entity, for training."""
    reverse_test: tuple[str, ...]
    """The same, for tests only."""
    group: str = ""
    """One sentence for all entities of a value: `{es} live in {v}.`"""


RELATIONS = (
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
        lines("""
            Where does {e} live?
            In which town does {e} live?
            What town does {e} live in?
            Where is the home of {e}?
            Which town is home to {e}?
            Where can I find {e}?
            Where is {e}'s house?
            What is the town of {e}?
            Tell me where {e} lives.
            Do you know where {e} lives?
            In what town is the house of {e}?
            Where must I go to visit {e}?"""),
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
        lines("""
            What is the job of {e}?
            What does {e} do for a living?
            What work does {e} do?
            What is {e}'s job?
            Which job does {e} have?
            What does {e} work as?
            How does {e} earn money?
            What kind of work does {e} do?
            Tell me the job of {e}.
            Do you know what {e} works as?
            What did {e} learn to be?
            What job has {e} got?"""),
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
        lines("""
            What pet does {e} have?
            Which pet does {e} have?
            What animal does {e} own?
            What is the pet of {e}?
            What is {e}'s pet?
            Which animal does {e} keep at home?
            What kind of pet does {e} have?
            What animal does {e} feed every morning?
            Tell me the pet of {e}.
            Do you know which pet {e} has?
            What pet does {e} own?
            Which animal is the pet of {e}?"""),
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
        lines("""
            What is the favourite food of {e}?
            What is {e}'s favourite food?
            What food does {e} like best?
            What does {e} like to eat?
            What does {e} love to eat?
            Which food does {e} like most?
            What does {e} want for dinner?
            What would {e} eat every day?
            Tell me the favourite food of {e}.
            Do you know what {e} likes to eat?
            Which food is the favourite of {e}?
            What does {e} always ask for?"""),
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
        lines("""
            What instrument does {e} play?
            Which instrument does {e} play?
            What does {e} play in the band?
            What is the instrument of {e}?
            What is {e}'s instrument?
            On what does {e} make music?
            Which instrument did {e} learn as a child?
            What instrument can {e} play?
            Tell me which instrument {e} plays.
            Do you know what instrument {e} plays?
            What does {e} practice every week?
            Which instrument is {e} good at?"""),
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
        lines("""
            What is {e} known for?
            What is {e} famous for?
            What does the town of {e} make?
            What do people buy from {e}?
            What do people make in {e}?
            What do the shops of {e} sell?
            What comes from {e}?
            For what is {e} known?
            Tell me what {e} is known for.
            Do you know what {e} is famous for?
            Which goods come from {e}?"""),
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
        lines("""
            What is the landmark of {e}?
            What is {e}'s landmark?
            Which landmark does {e} have?
            What stands in the middle of {e}?
            What do visitors come to see in {e}?
            What famous building does {e} have?
            What did the people of {e} build?
            What is the pride of {e}?
            Tell me the landmark of {e}.
            Do you know the landmark of {e}?
            What can I see in {e}?"""),
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
        lines("""
            When does the bus to {e} leave?
            At what time does the bus to {e} leave?
            What time does the bus to {e} go?
            When is the bus to {e}?
            When does the bus for {e} go?
            When does the daily bus to {e} start?
            Which bus do I take to reach {e}?
            What is the time of the bus to {e}?
            Tell me when the bus to {e} leaves.
            Do you know when the bus to {e} leaves?
            When can I take a bus to {e}?"""),
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
        lines("""
            What does the {e} eat?
            What does a {e} eat?
            What is the food of the {e}?
            What does the {e} feed on?
            What does a {e} live on?
            What does a hungry {e} look for?
            Which food does the {e} eat?
            What can I feed a {e}?
            Tell me what the {e} eats.
            Do you know what a {e} eats?
            What does every {e} like?"""),
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
        lines("""
            Where does the {e} live?
            Where does a {e} live?
            Where can you find a {e}?
            What is the home of the {e}?
            Where does a {e} sleep?
            Where does a {e} hide?
            Where does the {e} build its nest?
            In what place does the {e} live?
            Tell me where the {e} lives.
            Do you know where a {e} lives?
            Where must I look to see a {e}?"""),
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
        lines("""
            What is {e} made from?
            What do you need to cook {e}?
            What is the main part of {e}?
            What goes into {e}?
            What is in {e}?
            What does {e} taste of?
            With what do you make {e}?
            What do I need for {e}?
            Tell me what {e} is made from.
            Do you know what goes into {e}?
            How does the recipe for {e} begin?"""),
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
        lines("""
            How long does {e} cook?
            How many minutes does {e} cook?
            How long does it take to cook {e}?
            How long must I cook {e}?
            When is {e} ready?
            How many minutes does {e} need?
            How long does {e} take?
            How long must I wait for {e}?
            Tell me how long {e} cooks.
            Do you know how long {e} cooks?
            For how many minutes do you cook {e}?"""),
        lines("""
            After how many minutes is {e} done?
            How much time does {e} need in the pot?
            What does the recipe say, how long does {e} cook?
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
        lines("""
            Where is the {e}?
            Where is the {e} kept?
            Where can I find the {e}?
            Where did somebody put the {e}?
            What is the place of the {e}?
            Where must I look for the {e}?
            In which room is the {e}?
            Where does the {e} lie?
            Tell me where the {e} is.
            Do you know where the {e} is?
            Where do they keep the {e}?"""),
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

BY_KEY = {relation.key: relation for relation in RELATIONS}
