"""What the questions about Nano are put together from: for each intent noun phrases, clauses, statements, questions.

A model that sees only whole frames learns them by heart. Here the words that carry the intent stand in shells which all
intents share (composing.py): nothing else can tell the intents apart. `(a/b/)` is a choice, `|` separates.
Sample: `"who (made/built) you"` is "who made you" and "who built you". Written in ignorance of the test frames.
"""

from __future__ import annotations

# key -> (noun phrases, clauses, statements, questions)
PARTS: dict[str, tuple[str, str, str, str]] = {
    "name": (
        """your name | your (own/full/first/real) name | the name people use for you | the name you go by | a name
        for you | the name (they/your makers) gave you | the name of this (assistant/program/bot) | your nickname
        | the name i should use | the word to call you by | what you are called | the way to address you""",
        """who you are | what you are called | what (people/others) call you | what i (should/can/may) call you | how
        to (address/call) you | what your name is | which name you (have/use/go by) | what they named you | who i
        am (talking/speaking/writing) to | how you are named | who is answering me | whether you have a name | how
        you want to be called""",
        """you have a name | you are called nano | your name is nano | people call you nano | you go by a name | i
        may call you nano | somebody gave you a name | you are named nano | you have a nickname""",
        """(what/which) name (do you use/do you go by/were you given/did you get/belongs to you) | how
        (should/can/may) i (address/call) you | what (should/can/may) (i/we) call you | what did they (name/call)
        you | who am i (speaking/writing/chatting) with | who is (answering/writing/talking) here | what are you
        named | how do (people/others/your friends) call you | would you introduce yourself | what do you like to
        be called""",
    ),
    "maker": (
        """your (maker/creator/builder/developer/inventor/author/programmer/designer/owner) | your origin | your
        makers | the (person/people/team/company) (who/that) (made/built/created) you | the (firm/lab) behind you
        | the one who (made/built/trained/wrote) you | where you come from | the software you were built with |
        the tool that made you | the way you were made | the story of how you were created""",
        """who (made/built/created/developed/designed/programmed/invented/produced) you | where you come from | who
        is behind you | which (company/firm/team/lab) (made/built) you | who your (maker/creator/owner) is | how
        you were (made/built/created) | what you were built with | who you belong to | who is responsible for you
        | who put you together | whose work you are | who wrote your code | who set you up""",
        """(google/openai/microsoft/a company/a big firm/a student/one person) (made/built/created) you | you were
        (made/built/created/developed) by (a company/a team/somebody/scientists/one person) | you come from a
        (company/lab/big firm) | you have a (maker/creator/owner) | you belong to somebody | you are the work of
        one person""",
        """who (produced/constructed/coded/founded/started/prepared/assembled) you | whose (work/idea/program) are
        you | (which/what) (person/team/group/firm/university) (made/built/created/developed/trained) you | who is
        your (author/builder/inventor/programmer/owner) | (who/what) (made/created) this (bot/assistant/model) |
        with (what/which) (tool/software/code) were you (made/built/created) | how were you (created/put together)
        | who are the people behind you | who had the idea to (make/build) you | where were you (made/built)""",
    ),
    "kind": (
        """yourself as a program | the kind of (thing/program/machine/model) you are | your (nature/type/sort/kind) |
        the technology (behind you/inside you) | what you are | the thing i am talking to | your being a machine |
        the sort of (ai/software/bot) you are | the word for a thing like you | this kind of program | the type of
        (model/system) you are | what is inside you""",
        """what you are | what (kind/sort/type) of (thing/program/machine/model/ai/system) you are | if you are a
        (bot/robot) | whether you are (an ai/a robot/a machine/a program/software/a computer) | what i am talking
        to | what exactly you are | what to call a thing like you | what technology you use | what nano is | which
        technology is inside you | whether this is a (machine/bot/chatbot) | how you would describe yourself""",
        """you are (a robot/a machine/a program/an ai/software/a chatbot/a computer/a language model/a neural
        network) | you are some kind of (bot/program/robot/ai) | you are artificial | i am talking to a
        (machine/computer/bot) | this is a (program/robot/chatbot) | you are a sort of (program/machine) | you are
        like other chatbots | a program writes this""",
        """(what/which) (kind/sort/type) of (bot/software/system/assistant/robot/network) are you | what is nano
        exactly | are you (a sort of/some sort of) (robot/program/machine/ai) | what (technology/system) are you
        (made of/based on) | what is it that i am (talking/writing) to | are you (a digital assistant/an
        artificial intelligence/a bot) | is nano (a robot/an ai/a machine/software) | how would you
        (describe/define/classify) yourself | what would you call yourself as a thing | am i (talking/chatting)
        with (a computer/a machine/software)""",
    ),
    "size": (
        """your size | the size of your (network/brain/model) | your (parameter count/number of parameters/weights) |
        the (number/count) of your (parameters/weights) | how (big/large/small) you are | your parameters | the
        amount of (numbers/weights/parameters) in you | your network and how big it is | your dimensions | the
        millions of parameters in you | how many parameters you have | your layers and their number""",
        """how (big/large/small/tiny/huge) you are | how many (parameters/weights/neurons/numbers) you have | how
        many (parameters/weights/numbers) are in you | what size you (are/have) | what your (size/parameter count)
        is | how (big/large) your (network/brain/model) is | whether you are (big/large/small/tiny) | whether you
        have many (parameters/weights) | how you compare in size | how much space you take""",
        """you are (big/large/small/tiny/huge/little) | you are a (big/small/large/tiny) (model/network) | you have
        (many/few/millions of/billions of) (parameters/weights) | your network is (big/small/large) | you are
        (smaller/bigger/larger) than (other models/chatgpt/the others) | your size is small | you have many layers""",
        """how (big/large/huge/tiny/small) is (your model/this network/nano/the network in you) | what is your number
        of weights | how many (layers/connections/weights/units) (do you have/are there in you/does nano have) |
        how little are you | are you (huge/little/enormous/compact/small in size) | what is your (total/exact)
        (size/number of parameters) | (how many/how many million) parameters (does your network have/does nano
        have/are you made of) | how much (space/room) do you take | do you have (many/few/a lot of)
        (parameters/weights/neurons)""",
    ),
    "place": (
        """your (location/place/home/address/computer/machine/hardware/server) | the (computer/machine) you run on |
        the place (where you run/you live in/you work from) | the hardware (under you/you use) | where you
        (are/run/live) | the (computer/machine) that runs you | your whereabouts | the cloud and you | the spot
        where you are | the server you sit on""",
        """where you (are/run/live/work/sit/stay) | where you are (running/located/installed/hosted) | what
        (computer/machine/hardware) you (run on/use/are on) | which (computer/machine) runs you | where your home
        is | whether you are (in the cloud/on a server/local/on my computer) | whether you run (locally/in the
        cloud/here) | from where you (answer/write) | in which place you are | where i can find you | where nano
        (is/runs)""",
        """you run (in the cloud/locally/on a server/on my computer/on this machine/far away/on a gpu/in a data
        center) | you are (in the cloud/on my laptop/on a server/in this computer/far from here/in another
        country/hosted somewhere) | you live (in a computer/on the cloud/in america/on this machine) | my text
        stays on this computer | you need a (big server/gpu/cloud)""",
        """where (exactly/) (do you sit/do you stay/do you operate/are you based/are you hosted/are you installed) |
        (which/what) (hardware/device/server/laptop) (runs you/are you on/do you work on/do you live on) | at
        (what/which) place (are you/do you run) | from where (do you answer/do you write/are you speaking) | are
        you (hosted somewhere/on this machine/on a distant server/near me/running here/installed on my laptop) |
        is nano (in the cloud/on this computer/on a server) | do you (run/live/work) (on this machine/on my pc/in
        a data center)""",
    ),
    "data": (
        """your (training data/training texts/knowledge/facts/sources/reading/lessons/corpus/education) | the
        (texts/books/data/stories) you (learned from/were trained on/have read) | the world you know | the source
        of your (knowledge/facts) | where your (knowledge/facts) come from | what you (learned/read) | the
        material you studied | the invented world in your texts | the places and people you know""",
        """what you (learned/read/studied/were taught) | what you were (trained on/fed with) | where you learned
        things | which (texts/books/data/stories) you (learned from/read/know) | where your (knowledge comes/facts
        come) from | what (data/texts) they (used/gave you) | how you know things | whether your (facts/stories)
        are real | what your knowledge is based on | which world you know | what is in your training (data/texts)
        | whether you have read (wikipedia/books)""",
        """you were trained on (books/the internet/wikipedia/real texts/news/invented texts/stories) | you have read
        (books/wikipedia/the internet/many texts/the news) | your (facts/stories) are (real/invented/true) | your
        world is (real/invented) | you know the real world | your knowledge comes from (books/the internet/texts)
        | the people you know are real | you know (london/real places/famous people)""",
        """(which/what) (material/sources/documents/articles/stories/texts) (did you learn from/were you trained
        with/did you read/were you fed) | (where/from where) (do you have/did you get/did you take) your
        (knowledge/facts/information) | what were you taught | what (did you read/did you study/were you shown)
        (in training/to learn) | is your (knowledge/information) (real/made up) | have you read
        (books/wikipedia/real stories/the news) | what is the (source/basis) of your knowledge | are the
        (people/towns/places/facts) (you know/in your world) (real/invented) | what do your texts tell of""",
    ),
    "network": (
        """your (internet connection/network/internet access/web access/connection to the web) | the (internet/web)
        and you | a search on the (web/internet) | (today's/the latest) (news/weather) | looking things up online
        | the weather (outside/tomorrow) | going online | access to the (internet/web) | live data from the web |
        a (web page/website/link) for you to open | wifi and you | sending (emails/messages)""",
        """whether you (have internet/have a network/are online/can go online/use the internet/can search the web) |
        if you can (look things up/browse/open links/visit websites/use google/download files/send emails) | what
        the (weather/news) is today | what is (happening in the world/new on the web/in the news) | how you get
        online | whether there is a (network/connection/link to the web) | who won the game today | how to let you
        search the internet | what google says""",
        """you (have internet/have wifi/use the internet/have a connection/go online/search the web) | you can (go
        online/search the web/look things up/browse/open websites/read the news/use google/send emails/make calls)
        | you are (online/connected/connected to the web/on the internet) | you see the news | you can check the
        weather""",
        """can you (access the web/reach the internet/connect to the net/surf the web/load a page/check a
        website/fetch a page/look it up) | (could/would) you (search for this online/look this up on the web/check
        the news/open a link/google it) | do you have (web access/access to the internet/a connection/a browser/an
        internet connection/network access) | what is the (latest news/weather tomorrow/weather outside/price
        online) | how will the weather be | are you (connected/offline/linked to the web/on the net) | can you
        (send mail/make a call/book a flight/buy tickets)""",
    ),
    "duration": (
        """your training time | the (length/duration/time) of your training | the (hours/minutes/days) of your
        training | how long your training (was/took) | the time (it took to train you/you spent in training/needed
        to build you) | how long you trained | how fast your training was | the speed of your training | your time
        at school | the number of (hours/minutes) you trained | your training and how long it was""",
        """how long (you trained/you were trained/you learned/you studied) | how long your training (was/took/lasted)
        | how long it took to (train/make/build/teach) you | how (much time/many hours/many minutes/many days) you
        trained | how (fast/quick/slow) your training was | whether your training (was long/was short/took
        long/took days) | how (much time/many hours) training took | how quickly you were (trained/ready) | how
        long they taught you""",
        """your training (took long/was long/was short/took days/took weeks/took hours/was fast/was slow/took a year)
        | you were trained (for long/for weeks/for days/in minutes/in an hour/quickly/overnight) | it took
        (long/days/weeks/hours/minutes/months) to (train/make/build) you | training you was (slow/fast/quick)""",
        """how (long/many weeks/many hours/much time) (did training last/did your training run/were you in
        training/was needed to train you) | how (quickly/fast/soon) (were you trained/was your training done/did
        you learn/did they train you) | (did/does) (your training/training you/training nano) take
        (hours/days/weeks/months/much time) | was your training (over quickly/a matter of hours/fast/slow/very
        long) | how long until you were (ready/trained) | what was the (length/duration) of your training | were
        you trained (quickly/in a day/for months/within an hour)""",
    ),
    "abilities": (
        """your (abilities/skills/talents/functions/features/purpose/use/tasks/strengths/job) | what you can do | the
        (things/tasks) you can (do/help with) | the (questions/topics) i can ask about | ways you can help | what
        you are good (at/for) | the (help/service) you offer | the use of you | a list of your (skills/tricks) |
        spelling and (counting/calculating)""",
        """what you can (do/help with/offer) | what you are (able to do/good at/good for/made for/useful for) | how
        you can (help/assist/serve) me | what (your purpose/your job/your use) is | what i can (ask/do with/use)
        you for | what i (can/could/should) ask you | which (tasks/questions/topics) you can (handle/answer) |
        whether you can (spell/calculate/count/help/add numbers/count letters) | how to use you | what you do |
        which (skills/abilities) you have""",
        """you can (count letters/spell/calculate/help/answer questions/do sums/add numbers/do math/multiply/help
        with homework) | you are (able to spell/able to calculate/able to help/good at spelling/good at math/good
        at counting/useful) | you know how to (spell/count/calculate) | you have (skills/many talents/a purpose) |
        you use a calculator""",
        """(what/which) (talents/functions/strengths/powers/tricks) do you have | can you (help/assist/support)
        (me/us) | can you (count/add/multiply/do sums/spell a word/answer something/use a calculator/work with
        numbers/solve problems) | what (can/could) (i/we) (use you for/do with you/ask of you/expect from you) |
        what do you have to offer | (what/which) (jobs/problems/questions/things) (can you handle/can you do/can
        you solve/are you good at) | how can you (assist/serve/support) (me/us) | what are you (made for/here
        for/useful for/capable of)""",
    ),
    "person": (
        """your (feelings/emotions/heart/body/soul/mood/family/friends/dreams/sleep) | being (human/a person/alive) |
        the human (in you/behind this) | your life as a person | your (love/fear/pain/joy) | what you feel | a
        (man/woman/person) behind the screen | your likes and feelings | how you feel (today/inside)""",
        """whether you are (human/a person/alive/real/happy/sad/conscious/a man/a woman/tired/lonely) | what you feel
        | whether you (feel/sleep/eat/dream/love/cry/feel pain/have feelings/have a body/have a heart/get tired) |
        how you feel | if you have (feelings/emotions/a soul/friends/a family) | whom you love | what makes you
        (happy/sad) | whether (a human/a person/somebody real) is (writing/talking/behind this) | what it feels
        like to be you""",
        """you are (human/a person/alive/happy/sad/a man/a woman/a real person/conscious/lonely/a human being/in
        love) | you have (feelings/emotions/a body/a heart/a soul/friends/a family/dreams) | you (feel
        things/sleep/eat/feel pain/love me/get tired/feel happy/breathe/cry) | a human writes this | i am talking
        to a (human/person/man/woman)""",
        """are you (living/a human/made of flesh/somebody real/in a good mood/tired/scared/married/feeling well/male
        or female) | do you (feel anything/have a mind/get sad/get lonely/suffer/fear death/need sleep/need
        food/laugh/have a family/have a face) | how (do you feel/are you feeling) (today/now/inside) | can you
        (feel pain/love/suffer/be happy/die/cry/taste food) | is (somebody/a real person/a man/a woman)
        (typing/writing/there/answering me) | is nano (alive/human/a person) | what makes you
        (happy/sad/angry/afraid) | do you ever (feel sad/cry/sleep/get angry/laugh)""",
    ),
    "age": (
        """your (age/birthday/birth date/date of birth/year of birth/birth) | the (day/year/date) you were
        (born/made/created) | how old you are | the (day/date) of your birth | your years | the age you have | the
        age of (nano/this assistant) | the time of your birth | your next birthday | the start of your life | when
        you were born""",
        """how old you are | how (young/new) you are | when you were (born/made/created/built/started) | what your
        age is | when your (birthday/birth date) is | what year you were (born/made) | since when you
        (exist/live/are here) | how long you have (existed/lived/been alive) | on which day you were (born/made) |
        how many years you have lived | whether you are (old/young/new) | whether you have a birthday | when your
        life began""",
        """you are (old/young/new/very old/a year old/a child/a baby/ten years old/older than me/younger than me) |
        you have a birthday | you were born (today/last year/yesterday/long ago) | your birthday is (soon/today/in
        may) | your age is a secret | you were made (last year/long ago/recently)""",
        """(when/in what year/on which day/at what time) (were you born/were you built/were you started/did you begin
        to exist) | how many (years/months/days) (have you lived/have you existed/are you old) | is today your
        birthday | how long (have you been around/have you lived/do you exist already) | are you (older/younger)
        than (a year/chatgpt/i am) | what (is your birth year/is your exact age/age are you/age do you have) | do
        you (have an age/get older/celebrate a birthday) | when do you (celebrate/turn a year older/get older)""",
    ),
    "language": (
        """your (language/languages/english/french/german/spanish) | the (language/languages) you
        (speak/know/understand/use) | (french/german/spanish/chinese/italian) and you | speaking
        (french/german/another language) | foreign languages | a translation into (german/french/spanish) | other
        languages than english | your mother tongue | languages (in general/you can read)""",
        """what (language/languages) you (speak/know/understand/use) | which (language/languages) (i can use/you can
        write/you learned) | whether you (speak/understand/know) (french/german/spanish/chinese/english/other
        languages) | if you can (translate/write in german/talk in french/answer in spanish/read italian) | how
        many languages you know | in which language (you answer/to write/i should write) | what your mother tongue
        is | how to say it in french""",
        """you (speak/understand/know) (french/german/spanish/chinese/english/only english/many languages/two
        languages) | you can (translate/write in german/talk in french/answer in spanish/speak italian/read
        russian) | you are good at (languages/french/english) | english is your language | i can write in
        (german/french/my language)""",
        """do you (speak/know/understand/read/write) (dutch/turkish/arabic/polish/russian/hindi/korean/a foreign
        language/any other language) | can you (write/talk/speak/answer/reply) in (arabic/polish/japanese/my
        language/portuguese/a foreign language) | (which/what) (tongue/tongues/foreign languages) do you
        (speak/know/understand) | is english (the only language/all) you know | (can/could/may) (i/we)
        (write/speak/talk/chat) in (turkish/swedish/french/german/another language) | what is the
        (spanish/french/german) word for this | could you translate (a text/it/this word) (to german/into
        spanish/for me)""",
    ),
    "mistakes": (
        """your (mistakes/errors/accuracy/reliability/weaknesses/limits/faults) | the truth of your (answers/words) |
        the quality of your answers | trust in you | wrong answers from you | how (reliable/accurate/smart) you
        are | errors in what you say | checking your answers | the chance that you are wrong | your being right or
        wrong | the mistakes you make""",
        """whether you are (right/wrong/reliable/correct/sure/accurate/smart/honest) | how often you are
        (wrong/right) | whether (i can/to/i should) (trust/believe) you | how (reliable/accurate/smart/good/exact)
        you are | if you lie | whether you make (mistakes/errors/things up) | how much to trust your answers |
        what your (limits/weaknesses) are | whether your answers are (right/true/correct) | how to check what you
        tell me | what you get wrong""",
        """you make (mistakes/errors/things up) | you are (always right/often wrong/never
        wrong/reliable/smart/sure/perfect/correct) | your answers are (right/true/correct/wrong/good/reliable) | i
        can (trust/believe) you | you lie | you know everything | you can be wrong | you guess | what you say is
        (true/right/a lie) | i should check your answers""",
        """(may/should/must) i (doubt/double check/verify/believe) (your answers/what you tell me/your words) | are
        you (trustworthy/honest/ever mistaken/correct every time/certain/dependable/sometimes wrong/error free) |
        do you (get things wrong/tell lies/always tell the truth/err/mix things up/say false things/ever fail) |
        how (correct/exact/true/trustworthy/dependable) are (you/your answers) | is your answer
        (right/correct/certain) | how (often/much) do you (err/lie/get it wrong/make mistakes) | can (i/we)
        (believe/depend on) (you/your answers)""",
    ),
    "memory": (
        """your memory | the memory of our (chat/talk/last chat) | what you remember | my (data/messages/secrets)
        with you | our (last/old/earlier) (chat/chats/talk) | what i (said/told you) (yesterday/before) | my
        privacy | this chat later | the record of this chat | the things you forget | your (long/short) memory |
        saving this conversation""",
        """what you (remember/forget/remember of me/save) | whether you (remember/forget/save/record) (me/this/my
        words/our chat) | how long you remember (things/me/this) | what happens to (my messages/this chat/my
        data/my words) | whether (this chat/this talk/my data) is (saved/private/recorded/kept) | if you know me |
        who reads my messages | when you forget (me/this/things) | how good your memory is | whether we have
        (met/talked) | what we talked about""",
        """you remember (me/this/things/everything/our chats/my name) | you forget (me/this/everything/things) | you
        have a (memory/good memory/bad memory) | you save (this/my messages/our chats) | we have met | this chat
        is (saved/private/recorded/secret) | you learn from me | my messages are (saved/private/safe)""",
        """do you (memorize/record/log/remember/save) (things/my messages/my questions/all i write/what we say/our
        talks) | (will/do) you (forget/remember) (my name/my questions/what i wrote/all of this/our talk)
        (later/one day/after this) | is (this talk/what i write/our conversation)
        (private/recorded/secret/saved/kept somewhere) | have we (spoken/talked/chatted) (yesterday/last
        week/already) | how (good/long/short) is (the memory of nano/your memory) | what (did we talk about/did i
        ask) (last time/yesterday/last week) | can you (memorize/remember) (things/faces/names/a number)""",
    ),
}
