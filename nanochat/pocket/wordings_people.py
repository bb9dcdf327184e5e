"""How training asks about people: whole questions, and the parts of which `Asking` makes more.

Sample: "Where does Mira live?" / "I forgot where Mira lives." / "Mira's town?" / "About Mira: which town is it?"
"""

from __future__ import annotations

from nanochat.pocket.draw import frames
from nanochat.pocket.relation import Asking

ASK_PEOPLE = {
    "town": Asking(
        frames("""Where does {e} live? | In which of the towns does {e} live? | What town does {e} live in? |
            Where is the home of {e}? | Which town is home to {e}? | Where can I find {e}? | Where is {e}'s house? |
            In what town is the house of {e}? | Where must I go to visit {e}? | {e} lives where? |
            {e} lives in which town? | Where does {e} stay? | Where does {e} sleep at night? |
            Where has {e} got a house? | Which town is {e} from? | Where is {e} from? |
            Where would a letter to {e} go? | Town of {e}? | {e}'s town? | {e} town? |
            Where do I knock if I want to see {e}? | Which of the towns is {e}'s? |
            I am looking for {e}. Where do I go? | I want to visit {e}. Which town is it? |
            Name the town where {e} lives. | Where has {e} settled? | What place is home for {e}? |
            Where do the neighbours of {e} live? | Where does one meet {e}? | {e} resides where? |
            Where does {e} dwell? | In which town can one find {e}? | Where's {e} living? |
            I want to send {e} a letter, to which town? | Where at home is {e}? | Who knows {e}'s town?"""),
        frames("""where {e} lives | which town {e} lives in | in which town {e} has a house | where {e} is at home |
            where the house of {e} stands | what town {e} belongs to | where to find {e}"""),
        frames("""the town of {e} | {e}'s town | the place where {e} lives | the home of {e} | {e}'s address |
            the town with the house of {e}"""),
        frames("which town is it | where is home | where is the house | what town"),
    ),
    "job": Asking(
        frames("""What does {e} do for a living? | What work does {e} do? | What is {e}'s job? |
            Which job does {e} have? | What does {e} work as? | How does {e} earn money? |
            What kind of work does {e} do? | What did {e} learn to be? | What job has {e} got? | {e} works as what? |
            {e}'s job? | {e}'s work? | {e} job? | Job of {e}? | Name the job of {e}. | As what is {e} known in town? |
            What trade is {e} in? | What's {e}'s profession? | Which profession has {e} chosen? |
            What is {e} by trade? | {e} is employed as what? | What does {e} do all day? | What does {e} do at work? |
            How does {e} make a living? | From what does {e} live? | What occupation does {e} have? |
            {e} earns a living how? | In what job is {e}? | What line of work is {e} in? |
            If {e} goes to work, what is it? | What is {e} paid for? | I met {e}. What is the job? |
            Which craft does {e} know? | For what work is {e} known? | What career has {e}?"""),
        frames("""what {e} does for a living | what {e} works as | which job {e} has | what job {e} does |
            how {e} earns money | what {e} is by trade | what kind of work {e} does"""),
        frames("""the job of {e} | {e}'s job | {e}'s profession | the profession of {e} | {e}'s trade |
            the occupation of {e}"""),
        frames("which job | what is the job | what profession is it | what kind of work"),
    ),
    "pet": Asking(
        frames("""What pet does {e} have? | Which pet does {e} have? | What animal does {e} own? |
            What is the pet of {e}? | What is {e}'s pet? | Which animal does {e} keep at home? |
            What animal does {e} feed every morning? | What pet does {e} own? | Which animal is the pet of {e}? |
            {e} has what pet? | {e} owns which animal? | {e}'s pet? | {e} pet? | Pet of {e}? | {e}'s animal? |
            Name the pet of {e}. | What creature lives with {e}? | With which animal does {e} live? |
            With what animal does {e} share a home? | What animal does {e} love? | What does {e} keep as a pet? |
            What does {e} feed in the morning? | Which animal belongs to {e}? | Has {e} a pet, and which? |
            Does {e} have an animal, and which one? | What animal is in the house of {e}? |
            Which animal does {e} play with after work? | What sits beside {e} in the evening? |
            I visit {e}. What animal do I see? | What has {e} got as a pet? | What little animal has {e} got? |
            What kind of animal is {e}'s? | For which animal does {e} buy food? | What is the animal of {e}?"""),
        frames("""which pet {e} has | what pet {e} owns | what animal {e} keeps | which animal belongs to {e} |
            what {e} has as a pet | which animal lives with {e} | what kind of pet {e} has"""),
        frames("""the pet of {e} | {e}'s pet | the animal that {e} keeps | {e}'s animal | the animal of {e} |
            the pet that {e} feeds"""),
        frames("which pet | what animal is at home | what is the pet | which animal is it"),
    ),
    "food": Asking(
        frames("""What is the favourite food of {e}? | What is {e}'s favourite food? | What food does {e} like best? |
            What does {e} like to eat? | Which food does {e} like most? | What does {e} want for dinner? |
            What would {e} eat every day? | Which food is the favourite of {e}? | What does {e} always ask for? |
            {e} likes to eat what? | {e} likes which food best? | {e}'s favourite food? | {e}'s food? | {e} food? |
            Favourite food of {e}? | Favourite dish of {e}? | Name the favourite food of {e}. |
            What should I cook for {e}? | What do I put on the table for {e}? | What does {e} prefer to eat? |
            What is on the plate when {e} eats? | What makes {e} hungry? | What does {e} enjoy eating? |
            What food is {e} fond of? | {e} is fond of which food? | What does {e} eat on a good day? |
            Dinner for {e}: what will it be? | What meal makes {e} smile? | What treat does {e} want? |
            If {e} could choose, what would be eaten? | Which meal is best for {e}? |
            {e} comes to dinner. What to cook? | Of all food, what does {e} like? | What is it that {e} loves to eat? |
            What snack is right for {e}?"""),
        frames("""what {e} likes to eat | which food {e} likes best | what {e} loves to eat | what food {e} prefers |
            what {e} wants for dinner | what {e} always asks for | what I should cook for {e}"""),
        frames("""the favourite food of {e} | {e}'s favourite food | the food that {e} likes best |
            the favourite meal of {e} | {e}'s favourite dish | {e}'s favourite"""),
        frames("which food is best | what is the favourite food | what to cook | what food"),
    ),
    "music": Asking(
        frames("""What instrument does {e} play? | Which instrument does {e} play? | What does {e} play in the band? |
            What is the instrument of {e}? | What is {e}'s instrument? | Which instrument did {e} learn as a child? |
            What instrument can {e} play? | What does {e} practice every week? | Which instrument is {e} good at? |
            {e} plays what? | {e} plays which instrument? | {e}'s instrument? | {e} instrument? | Instrument of {e}? |
            Name the instrument of {e}. | What does {e} play? | How does {e} make music? |
            With what does {e} make music? | What is {e} playing? | What can {e} play? | What did {e} learn to play? |
            On what does {e} give lessons? | {e} is in the band with which instrument? |
            What is in the music case of {e}? | Which musical instrument belongs to {e}? |
            What instrument does {e} hold? | {e} makes music with what? | Which instrument is {e}'s? |
            If {e} makes music, what do I hear? | What music lessons does {e} give? | What does {e} practice? |
            Is {e} a musician, and what is played? | What sound comes from the house of {e}? |
            What will {e} play for us tonight?"""),
        frames("""what instrument {e} plays | which instrument {e} plays | what {e} plays in the band |
            what {e} makes music with | which instrument {e} learned | what {e} can play | what {e} practices"""),
        frames("""the instrument of {e} | {e}'s instrument | the instrument that {e} plays |
            the musical instrument of {e} | {e}'s musical instrument"""),
        frames("which instrument | what is played | what is the instrument | what kind of music is made"),
    ),
}
