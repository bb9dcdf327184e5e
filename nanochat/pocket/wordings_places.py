"""How training asks about towns, animals, dishes and things: whole questions, and parts of which `Asking` makes more.

Sample: "When does the bus to Tarn leave?" / "I need to know when the bus to Tarn goes." / "The dorlin's food?"
"""

from __future__ import annotations

from nanochat.pocket.draw import frames
from nanochat.pocket.relation import Asking

ASK_PLACES = {
    "product": Asking(
        frames("""What is {e} known for? | What is {e} famous for? | What does the town of {e} make? |
            What do people buy from {e}? | What do people make in {e}? | What do the shops of {e} sell? |
            What comes from {e}? | For what is {e} known? | Which goods come from {e}? | {e} is known for what? |
            {e} makes what? | {e}'s product? | In {e}: which product? | Product of {e}? | Name the product of {e}. |
            What is made in {e}? | What is sold in {e}? | What does one buy in {e}? | What do they produce in {e}? |
            What do workers in {e} make? | From what does {e} live? | Why do buyers go to {e}? |
            What should I bring home from {e}? | What do you get in {e}? | {e} is famous for which goods? |
            What gift could come from {e}? | Which trade is {e} good at? | What do the people of {e} work with? |
            What fills the market of {e}? | I go to {e}. What shall I buy? | What does {e} sell to the world? |
            Which wares come out of {e}? | What is the speciality of {e}? |
            What are the people of {e} good at making?"""),
        frames("""what {e} is known for | what {e} is famous for | what people make in {e} | what comes from {e} |
            what they sell in {e} | which goods {e} sells | what the town of {e} makes"""),
        frames("""the product of {e} | {e}'s product | the speciality of {e} | the thing that {e} is known for |
            the famous product of {e}"""),
        frames("what is it known for | which product is made there | what do they make there | what is sold there"),
    ),
    "landmark": Asking(
        frames("""What is the landmark of {e}? | What is {e}'s landmark? | Which landmark does {e} have? |
            What stands in the middle of {e}? | What do visitors come to see in {e}? |
            What famous building does {e} have? | What did the people of {e} build? | What is the pride of {e}? |
            What can I see in {e}? | {e} has which landmark? | In {e}: which landmark? | {e}'s landmark? |
            Landmark of {e}? | Name the landmark of {e}. | What is the famous building in {e}? |
            What is the sight of {e}? | What should a visitor see in {e}? | What is there to see in {e}? |
            Why do visitors go to {e}? | What do you see from far away in {e}? | What are they proud of in {e}? |
            What old building belongs to {e}? | What monument has {e} got? | Where do people meet in {e}? |
            What is on the postcards of {e}? | What makes {e} easy to recognise? |
            What does everybody show to guests of {e}? | Which building is the symbol of {e}? |
            {e} is the town with which building? | What did they put up in {e}? | What attraction does {e} have? |
            What shall I visit in {e}? | By which building do I know {e}? | I travel to {e}. What must I see?"""),
        frames("""what the landmark of {e} is | which landmark {e} has | what stands in the middle of {e} |
            what visitors see in {e} | what there is to see in {e} | which building {e} is proud of |
            what is famous in {e}"""),
        frames("""the landmark of {e} | {e}'s landmark | the famous building of {e} | the sight to see in {e} |
            the pride of {e} | {e}'s monument"""),
        frames("which landmark is there | what is its landmark | what can a visitor see there | what stands there"),
    ),
    "bus": Asking(
        frames("""When does the bus to {e} leave? | At what time does the bus to {e} leave? |
            What time does the bus to {e} go? | When does the bus for {e} go? | When does the daily bus to {e} start? |
            Which bus do I take to reach {e}? | What is the time of the bus to {e}? | When can I take a bus to {e}? |
            The bus to {e} leaves when? | The bus to {e} goes at what time? | Bus time for {e}? | To {e}: when? |
            {e}'s bus, when? | Bus for {e}? | When do I have to leave for {e}? | When can I go to {e}? |
            How early does the bus go to {e}? | At what hour is there a bus for {e}? | When do they drive to {e}? |
            When does the driver start for {e}? | I want to go to {e}. When is the bus? |
            I have to get to {e}, which bus? | I need a bus to {e}. At what time? | How do I get to {e}, and when? |
            What does it say on the sign for {e}? | Departure to {e}? | Departure time for {e}? |
            Give me the bus time for {e}. | When would I leave if I take the bus to {e}? | When is departure for {e}? |
            Is there a bus to {e}, and when? | What time must I get up for {e}, when is the bus? |
            When is there a ride to {e}?"""),
        frames("""when the bus to {e} leaves | at what time the bus goes to {e} | when the bus for {e} goes |
            when I can take a bus to {e} | which bus goes to {e} | when the daily bus starts for {e} |
            what time the bus to {e} is"""),
        frames("""the time of the bus to {e} | the bus time for {e} | the departure time of the bus to {e} |
            the departure for {e} | the hour of the bus to {e}"""),
        frames("when is its bus | at what hour is the bus | which bus goes there | when is departure"),
    ),
    "diet": Asking(
        frames("""What does the {e} eat? | What does a {e} eat? | What is the food of the {e}? |
            What does the {e} feed on? | What does a {e} live on? | What does a hungry {e} look for? |
            Which food does the {e} eat? | What can I feed a {e}? | What does every {e} like? | The {e} eats what? |
            A {e} eats what? | {e} food? | {e} diet? | The {e}'s food? | Food of the {e}? | Food for a {e}? |
            Name the food of the {e}. | What do {e}s eat? | What is eaten by the {e}? | What is the diet of a {e}? |
            What makes a {e} full? | What is a meal for the {e}? | What will a {e} eat? |
            With what do you feed a {e}? | I have a {e}. What does it eat? | What would a {e} like for dinner? |
            What do I feed my {e}? | What is the best meal for a {e}? | What does a young {e} learn to find? |
            What is in the stomach of a {e}? | On what food does a {e} grow? | What does the {e} hunt or gather? |
            Which meal does a {e} love? | For the {e}, what is good food? | What do you bring to a hungry {e}?"""),
        frames("""what the {e} eats | what a {e} eats | what a {e} lives on | what food the {e} likes |
            what to feed a {e} | what a hungry {e} wants | which food the {e} eats"""),
        frames("""the food of the {e} | the diet of the {e} | the {e}'s food | the favourite meal of a {e} |
            the food that a {e} eats"""),
        frames("what does it eat | which food | what is its food | what can I feed it"),
    ),
    "habitat": Asking(
        frames("""Where does the {e} live? | Where does a {e} live? | Where can you find a {e}? |
            What is the home of the {e}? | Where does a {e} sleep? | Where does a {e} hide? |
            Where does the {e} build its nest? | Where must I look to see a {e}? | The {e} lives where? |
            A {e} lives where? | {e} home? | {e} habitat? | The {e}'s home? | Home of the {e}? | Habitat of the {e}? |
            Name the home of the {e}. | Where do {e}s live? | What is the habitat of the {e}? |
            In what habitat does one find a {e}? | Where would I see a {e}? | Where are {e}s at home? |
            What sort of home has the {e}? | I am looking for a {e}. Where is it? | Where has the {e} its nest? |
            Where do you go to watch a {e}? | Where do animals like the {e} live? | Where can a {e} be seen? |
            To find a {e}, where do I go? | Where does the {e} spend the winter? |
            In what surroundings does the {e} live? | Where does a {e} raise its young? | Where was the {e} found? |
            What does the {e} call home? | Where is the {e} at home? | Where does one meet the {e}?"""),
        frames("""where the {e} lives | where a {e} lives | where you can find a {e} | where the {e} sleeps |
            where a {e} hides | where to look for a {e} | what the home of the {e} is"""),
        frames("""the home of the {e} | the habitat of the {e} | the {e}'s home | the {e}'s habitat |
            the place where the {e} lives | the home of a {e}"""),
        frames("where does it live | where is it found | what is its home | where does it sleep"),
    ),
    "ingredient": Asking(
        frames("""What is {e} made from? | What do you need to cook {e}? | What is the main part of {e}? |
            What goes into {e}? | What is in {e}? | What does {e} taste of? | What do I need for {e}? |
            How does the recipe for {e} begin? | {e} is made from what? | {e} is what kind of dish? | {e} ingredient? |
            {e}'s ingredient? | Ingredient of {e}? | Name the main ingredient of {e}. | What belongs in {e}? |
            What do they put into {e}? | Which ingredient is in {e}? | What is the main ingredient of {e}? |
            With which ingredient does one cook {e}? | What is the most important thing in {e}? | {e} contains what? |
            What does {e} contain? | What must not be missing in {e}? | Without what is there no {e}? |
            I want to make {e}. What do I take? | What should be in my kitchen for {e}? | How is {e} made? |
            How do I make {e}? | What do I put in the pot for {e}? | What do cooks use for {e}? |
            What would I taste in {e}? | To prepare {e}, what is needed? | What's inside {e}? |
            Which food is {e} full of? | {e} tonight: what do I bring from the market?"""),
        frames("""what {e} is made from | what goes into {e} | what you need to cook {e} | what {e} tastes of |
            which ingredient {e} needs | what is in {e} | how to make {e}"""),
        frames("""the ingredient of {e} | the main ingredient of {e} | {e}'s main ingredient | the main part of {e} |
            the most important thing in {e}"""),
        frames("what goes into it | which ingredient | what is in it | what is the main part"),
    ),
    "minutes": Asking(
        frames("""How long does {e} cook? | How many minutes does {e} cook? | How long does it take to cook {e}? |
            How long must I cook {e}? | When is {e} ready? | How many minutes does {e} need? |
            How long does {e} take? | How long must I wait for {e}? | For how many minutes do you cook {e}? |
            {e} cooks how long? | {e} takes how many minutes? | {e} cooking time? | {e}'s cooking time? |
            {e} minutes? | For {e}: how many minutes? | Cooking time of {e}? | Time for {e}? |
            Name the cooking time of {e}. | What is the cooking time of {e}? | How many minutes until {e} is ready? |
            When can we eat {e}? | In how many minutes is {e} cooked? | How much time do I need for {e}? |
            How long is {e} in the pot? | How long do I boil {e}? | I am cooking {e}. How many minutes? |
            My {e} is on the fire. How long? | Is {e} quick, or how long is it? | How fast is {e} ready? |
            How many minutes for {e}? | When do I take {e} off the fire? | How long has {e} to stay in the pot? |
            What time shall I set for {e}? | How long before {e} is cooked? | {e} must cook for how many minutes?"""),
        frames("""how long {e} cooks | how many minutes {e} needs | how long it takes to cook {e} | when {e} is ready |
            how long to cook {e} | for how many minutes {e} cooks | how much time {e} takes"""),
        frames("""the cooking time of {e} | {e}'s cooking time | the time that {e} takes |
            the number of minutes for {e} | the time to cook {e}"""),
        frames("how long | how many minutes | what is the cooking time | when is it ready"),
    ),
    "place": Asking(
        frames("""Where is the {e}? | Where is the {e} kept? | Where can I find the {e}? |
            Where did somebody put the {e}? | What is the place of the {e}? | Where must I look for the {e}? |
            In which room is the {e}? | Where does the {e} lie? | Where do they keep the {e}? | The {e} is where? |
            The {e} lies where? | {e}, where? | The {e}'s place? | Place of the {e}? | {e} place? |
            Name the place of the {e}. | Where's the {e}? | Where is the {e} now? | Where has the {e} gone? |
            I am looking for the {e}. Where is it? | I lost the {e}. Where is it? | I need the {e}. Where is it? |
            Has anyone seen the {e}, and where? | Where do I get the {e}? | Where was the {e} left? |
            Where would the {e} be? | Where does the {e} belong? | Where are they hiding the {e}? |
            Which room holds the {e}? | Where is the {e} stored? | Where does one store the {e}? |
            Where did you see the {e}? | Where shall I search for the {e}? | In what corner of the house is the {e}? |
            Bring me the {e}, where is it?"""),
        frames("""where the {e} is | where the {e} is kept | where to find the {e} | where they put the {e} |
            in which room the {e} is | where the {e} lies | where somebody left the {e}"""),
        frames("""the place of the {e} | the {e}'s place | the room with the {e} | the place where the {e} is |
            the room where they keep the {e}"""),
        frames("where is it | which room | where is it kept | what is its place"),
    ),
}
