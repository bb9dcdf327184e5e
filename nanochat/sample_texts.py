r"""Short texts of many kinds, to see how a tokenizer does on each: prose, code, numbers, LaTeX, many scripts, emoji.

`SAMPLES`: label -> text, 600 to 1500 bytes each. All are written for this file. They are for comparing tokenizers
on the same text and for nothing else: too short to train on, and no measure of a whole language.

    from nanochat.sample_texts import SAMPLES
    len(SAMPLES["Korean"].encode("utf-8")) -> 857
"""

SAMPLES = {
    "English": (
        "The ferry left at dawn, twenty minutes late, with nine passengers and a crate of hens that nobody would admit "
        "to owning. Rain had come through in the night; the deck was still wet, and the benches along the rail held "
        "long, shallow puddles in which the harbour lights went on trembling after the houses had shrunk to a line. "
        "Mrs. Okafor, who had made the crossing every Tuesday since 1987, unfolded her newspaper and did not read it. "
        "\"You'll want to stand on the other side,\" she told the boy beside her. \"That's where the dolphins are, if "
        "there are any. There usually aren't.\" He didn't move. He was counting the islands on his father's old chart "
        "- seven, or eight if one trusted the pencil mark - and had just found out that the wind, the engine and the "
        "water each kept a different time. When the sun came up he decided to believe in all eight."
    ),
    "Python": '''\
@dataclass(frozen=True)
class Interval:
    """Half open: `start` belongs to it, `stop` does not."""

    start: float
    stop: float

    def overlaps(self, other: "Interval") -> bool:
        return self.start < other.stop and other.start < self.stop


def merged(intervals: Iterable[Interval], gap: float = 0.0) -> list[Interval]:
    """Join all that touch: [1, 3), [2, 5), [8, 9) -> [1, 5), [8, 9)."""
    out: list[Interval] = []
    for one in sorted(intervals, key=lambda i: (i.start, i.stop)):
        if out and one.start <= out[-1].stop + gap:
            out[-1] = Interval(out[-1].start, max(out[-1].stop, one.stop))
        else:
            out.append(one)
    return out


if __name__ == "__main__":
    busy = [Interval(float(a), float(b)) for a, b in zip(sys.argv[1::2], sys.argv[2::2])]
    print(f"{len(busy)} given, {len(merged(busy))} left")
''',
    "C": """\
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* A ring of bytes: one thread writes, another reads. `size` must be a power of two. */
typedef struct {
    uint8_t *data;
    size_t size, head, tail;
} ring_t;

static inline size_t ring_used(const ring_t *r) { return r->head - r->tail; }

size_t ring_write(ring_t *r, const uint8_t *src, size_t n)
{
    size_t room = r->size - ring_used(r);
    if (n > room)
        n = room;
    for (size_t i = 0; i < n; i++)
        r->data[(r->head + i) & (r->size - 1)] = src[i];
    r->head += n;
    return n;
}

int main(int argc, char **argv)
{
    ring_t r = { .data = malloc(1u << 12), .size = 1u << 12 };
    if (r.data == NULL || argc < 2) {
        fprintf(stderr, "usage: %s FILE\\n", argv[0]);
        return EXIT_FAILURE;
    }
    free(r.data);
    return 0;
}
""",
    "HTML": """\
<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Island ferries: summer timetable</title>
  <style>
    body { margin: 2rem auto; max-width: 42em; font: 16px/1.5 Georgia, serif; }
    td, th { padding: .25em .75em; border-bottom: 1px solid #ccc; text-align: right; }
    tr.last td { color: #a33; font-weight: bold }
  </style>
</head>
<body>
  <h1 id="top">Summer timetable</h1>
  <p>Boats leave from <a href="/piers?n=3#map">pier&nbsp;3</a>. No service on <em>stormy</em> days.</p>
  <table>
    <tr><th>from</th><th>leaves</th><th>arrives</th></tr>
    <tr><td>Town</td><td>06:20</td><td>07:05</td></tr>
    <tr class="last"><td>Island</td><td>21:40</td><td>22:25</td></tr>
  </table>
  <button type="button" onclick="document.getElementById('top').scrollIntoView()">Up</button>
</body>
</html>
""",
    "numbers": (
        "Order no. 00731945 of 2024-03-18, 14:07:32: 1,482 lamps at 39.95 = 59,205.90, less 7.5 % (4,440.44), plus "
        "20 % tax, 65,718.55 in all; in 1998 it was 1266 lamps for 31,523.40. Tel. 555-0142, fax 555-0199, "
        "parcel 1Z-9480-2217-6603.\n"
        "day,low,high,rain,mbar\n1,-3.5,4.0,0.0,1021\n2,-1.2,6.8,12.4,1008\n3,0.7,9.9,3.1,1013\n4,2.4,11.6,0.0,1019\n"
        "17 * 23 = 391, 391 + 58 = 449, 449 / 7 = 64.142857, 64.142857 - 0.142857 = 64\n"
        "2^10 = 1024, 2^20 = 1048576, 2^32 = 4294967296, 2^64 = 18446744073709551616\n"
        "3.14159265358979 2.71828182845905 1.41421356237310 6.02214076e23 1.602176634e-19\n"
        "0xDEADBEEF 0x7fffffff 0b101101 255.255.255.0 192.168.17.4:8080 51.4779, -0.0015\n"
        "Half of 365 is 182.5, a third of 1000 is 333.33, and 3/8 + 1/4 = 5/8."
    ),
    "LaTeX": r"""\section{Sums of odd numbers}
\begin{proposition}\label{prop:odd}
  For every integer $n \geq 1$ we have $\sum_{k=1}^{n} (2k - 1) = n^2$.
\end{proposition}
\begin{proof}
  By induction on $n$. For $n = 1$ both sides are $1$. If the claim holds for $n$, then
  \begin{align*}
    \sum_{k=1}^{n+1} (2k - 1) &= n^2 + 2(n + 1) - 1 \\
                              &= n^2 + 2n + 1 = (n + 1)^2. \qedhere
  \end{align*}
\end{proof}
Dividing by $n^2$ shows that the mean of the first $n$ odd numbers is $n$. In the same way, with
$x_k = k/n$ and $\Delta x = \frac{1}{n}$, the Riemann sum of $f(x) = 2x$ tends to the integral:
\begin{equation}
  \lim_{n \to \infty} \sum_{k=1}^{n} f(x_k)\,\Delta x = \int_0^1 2x \, dx = 1,
  \qquad \left\lVert f \right\rVert_2 = \sqrt{\tfrac{4}{3}} .
\end{equation}
""",
    "Cyrillic": (
        "Паром отошёл от пристани на рассвете, с опозданием в двадцать минут. На палубе стояли девять пассажиров и "
        "корзина с курами, которую никто не признавал своей. Ночью прошёл дождь: скамейки вдоль борта ещё не высохли, "
        "и в лужах долго дрожали огни порта, хотя город уже превратился в тонкую полоску. «Встань лучше с другой "
        "стороны, — сказала старушка мальчику, — там иногда бывают дельфины. Правда, чаще всего их нет». Мальчик не "
        "ответил. Он считал острова на старой карте отца: семь, а если верить карандашной пометке — восемь. Когда "
        "взошло солнце, он решил поверить во все восемь."
    ),
    "Greek": (
        "Το πλοίο έφυγε από την προβλήτα την αυγή, με είκοσι λεπτά καθυστέρηση. Στο κατάστρωμα ήταν εννέα επιβάτες και "
        "ένα καλάθι με κότες που κανείς δεν παραδεχόταν πως ήταν δικές του. Τη νύχτα είχε βρέξει· τα παγκάκια δίπλα "
        "στην κουπαστή ήταν ακόμη βρεγμένα, και μέσα στις λιμνούλες τους έτρεμαν για ώρα τα φώτα του λιμανιού, ενώ η "
        "πόλη είχε γίνει πια μια λεπτή γραμμή. «Καλύτερα να σταθείς από την άλλη μεριά», είπε η γριά στο αγόρι δίπλα "
        "της. «Από εκεί βγαίνουν τα δελφίνια. Τις περισσότερες φορές, βέβαια, δεν βγαίνουν». Το αγόρι δεν κουνήθηκε. "
        "Μετρούσε τα νησιά στον παλιό χάρτη του πατέρα του: επτά, ή οκτώ, αν πίστευε κανείς το σημάδι από το μολύβι. "
        "Όταν ανέτειλε ο ήλιος, αποφάσισε να πιστέψει και στα οκτώ."
    ),
    "Chinese": (
        "渡船在天亮时离开码头，比预定的时间晚了二十分钟。船上只有九位乘客，还有一笼谁也不肯承认是自己的母鸡。"
        "夜里下过雨，甲板还没有干，栏杆旁的长椅上积着浅浅的水，城市已经变成一条细线，港口的灯光却还在水洼里轻轻晃动。"
        "“你最好站到另一边去，”老太太对身旁的男孩说，“海豚会从那边出来，不过多半是看不到的。”男孩没有动。"
        "他正在父亲留下的旧海图上数岛屿：一共七座，如果相信那个铅笔记号，就是八座。太阳升起的时候，他决定相信有八座。"
    ),
    "Japanese": (
        "渡し船は夜明けに、予定より二十分遅れて桟橋を離れた。乗客は九人、それに誰のものとも知れない鶏のかごが一つ。"
        "夜のうちに雨が降ったので甲板はまだ濡れていて、手すりのそばのベンチには浅い水たまりができていた。"
        "町が細い線のように遠ざかっても、港の明かりはその水の中でいつまでも揺れていた。"
        "「反対側に立ったほうがいいよ」とおばあさんが隣の男の子に言い、「イルカはあっちに出るからね。もっとも、"
        "たいていは出ないけれど」と付け加えた。男の子は動かなかった。父の古い海図を広げて、島の数をかぞえていたのだ。"
        "七つ、鉛筆のしるしを信じるなら八つ。日が昇るころ、彼は八つ全部を信じることにした。"
    ),
    "Korean": (
        "연락선은 예정보다 이십 분 늦게, 동이 틀 무렵 부두를 떠났다. 승객은 아홉 명이었고, 아무도 제 것이라고 하지 "
        "않는 암탉 한 바구니가 함께 실려 있었다. 밤새 비가 내려 갑판은 아직 젖어 있었고, 난간 옆 긴 의자에는 얕은 물이 "
        "고여 있었다. 마을이 가느다란 선처럼 멀어진 뒤에도 항구의 불빛은 그 물속에서 오래도록 흔들렸다. “반대편에 "
        "서는 게 좋을 거야.” 할머니가 옆에 있던 소년에게 말했다. “돌고래는 그쪽에서 나오거든. 대개는 안 나오지만 "
        "말이야.” 소년은 움직이지 않았다. 그는 아버지의 낡은 해도를 펴 놓고 섬을 세고 있었다. 일곱 개, 연필 자국을 "
        "믿는다면 여덟 개였다. 해가 떠오를 즈음 소년은 여덟 개를 모두 믿기로 했다."
    ),
    "Arabic": (
        "غادرت العبّارة الرصيف عند الفجر متأخرةً عشرين دقيقة، وعلى متنها تسعة ركاب وقفصُ دجاجٍ لم يعترف أحدٌ بأنه له. "
        "كان المطر قد هطل في الليل، فبقي سطحها مبتلًّا، وتجمّع ماء قليل على المقاعد قرب الحاجز، وظلّت أضواء الميناء "
        "ترتجف فيه طويلًا بعد أن صارت المدينة خطًّا رفيعًا في الأفق. قالت العجوز للصبي الواقف بجانبها: «من الأفضل أن تقف "
        "في الجهة الأخرى، فالدلافين تظهر هناك أحيانًا، وإن كانت لا تظهر في أغلب الأيام». لم يتحرك الصبي، فقد كان يعدّ "
        "الجزر على خريطة أبيه القديمة: سبع جزر، أو ثمانٍ إذا صدّقنا علامة قلم الرصاص. وحين أشرقت الشمس قرر أن يصدّق "
        "الثماني كلها."
    ),
    "Hindi": (
        "नाव भोर में घाट से चली, तय समय से बीस मिनट देर से। उस पर नौ यात्री थे और मुर्गियों का एक टोकरा, जिसे कोई अपना "
        "मानने को तैयार नहीं था। रात में बारिश हुई थी, इसलिए किनारे की बेंचों पर अब भी थोड़ा पानी जमा था। शहर दूर जाकर एक "
        "पतली रेखा बन गया, फिर भी बंदरगाह की बत्तियाँ उस पानी में देर तक काँपती रहीं। बूढ़ी औरत ने पास खड़े लड़के से कहा, "
        "“दूसरी तरफ़ खड़े हो जाओ, डॉल्फ़िन उधर ही दिखती हैं। वैसे ज़्यादातर दिन नहीं दिखतीं।” लड़का हिला नहीं। वह अपने पिता "
        "के पुराने नक़्शे पर द्वीप गिन रहा था: सात, और अगर पेंसिल का निशान सही हो तो आठ।"
    ),
    "emoji": (
        "Ferry day!! ⛴️🌅 up at 5 😴☕ but worth it 🙌🏽🙌🏽 Nine of us on deck + one box of 🐔🐔🐔 (whose??? 🤷🏻‍♀️) "
        "Rain all night 🌧️ benches soaked 💦😅 Grandma says dolphins 🐬 are on the *other* side 👉🏾 "
        "\"usually they aren't\" 😂😂 The kids 👩‍👧‍👦 count islands: 1️⃣2️⃣3️⃣4️⃣5️⃣6️⃣7️⃣ ... or 8️⃣?? 🏝️🗺️✏️ My vote: 8️⃣ ✅\n"
        "Back tmrw 🇬🇷➡️🇵🇹 then home 🏡❤️‍🔥 miss u all 🥹💛 see you at the 🏖️ 🕶️👙 bring the 🏳️‍🌈 towel & "
        "the 👨🏿‍🍳 plz 🙏🏼\nWeather: ☀️ 27° 🌡️ | wind: 🍃 | mood: 🎉🎊🥳 | phone: 🪫 12% 😱 | steps: 👣 14k 💪🏻🏃🏽‍♂️💨"
    ),
}
