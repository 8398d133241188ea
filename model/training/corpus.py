"""What the synthetic voices say: word lists, sentence templates, numbers, names and nonsense syllables.

English has several hundred words over all phonetic contexts; the other languages keep short lists of their own, so
that every voice reads its own language. A quarter of the English words is held out: sentences of the held-out kind
use only those content words, training sentences never do.
"""

from __future__ import annotations

import random

NOUNS = """man moon paper boat window river market piano bottle mother father village summer winter picture doctor
garden cheese wolf bishop voice measure judge orange valley apple thumb brother movie pepper baby fish shadow mountain
computer balloon forest puzzle pocket feather whistle teacher yellow bridge library museum harbor station airport
bicycle engine kitchen carpet curtain blanket pillow candle mirror hammer ladder basket bucket barrel fountain island
desert canyon glacier meadow thunder lightning weather rainbow umbrella jacket sweater button zipper leather cotton
silver copper marble plaster concrete lumber shovel tractor wagon saddle pony rabbit turtle spider butterfly mosquito
buffalo elephant leopard monkey parrot pigeon sparrow robin eagle vulture dolphin lobster salmon tuna shrimp oyster
mushroom cabbage carrot potato tomato cucumber pumpkin spinach onion garlic ginger vanilla chocolate coffee sugar
honey butter cream yogurt pudding muffin biscuit sandwich soup noodle dumpling sausage bacon breakfast supper picnic
birthday wedding holiday journey voyage ticket passport luggage camera video radio telephone message package envelope
letter number figure circle triangle square corner shoulder elbow finger ankle stomach forehead eyebrow mouth tooth
tongue throat heart brain blood bone muscle nurse dentist lawyer farmer painter plumber baker butcher barber tailor
captain sailor soldier pilot driver neighbor visitor stranger cousin nephew uncle grandma husband daughter school
college lesson chapter pencil eraser notebook dictionary story poem music rhythm melody violin trumpet drum guitar
theater actor costume stage audience program network keyboard monitor printer battery charger signal satellite rocket
planet galaxy comet gravity oxygen vapor bubble foam steam smoke ash fire beach wave pebble shell rope anchor ferry
bench statue temple chapel tower castle palace cottage cabin attic basement garage fence gate path tunnel highway
truth youth growth method month mouth path bath smooth breath cloth faith earth birth health wealth width length
vision pleasure treasure garage usage luxury beige azure machine ocean nation patient mission passion fashion cushion
""".split()
VERBS = """found saw bought took gave watched brought forgot chose pushed pulled washed moved loved followed opened
covered shared showed painted fixed wanted needed liked missed picked packed mixed moved carried borrowed wrapped
dropped shouted about whispered about argued about thought about worried about""".replace(" about", "_about").split()
VERBS += """measured noticed finished polished catches teaches judges manages prefers remembers believes receives leaves
saves drives gives keeps helps stops kept slept left felt built broke wrote threw grew drew knew wore tore hid bit ate
beat met read led fed sold told held hurt cut put shut hit let used chewed glued viewed chased raised praised
promised produced improved proved approved baked boiled fried chopped peeled poured stirred tasted served""".split()
ADJECTIVES = """small big blue warm happy quiet funny slow heavy bright old pretty foggy useful smooth thick rough cheap
brave empty purple green brown black white red yellow orange golden young fresh rotten sweet sour bitter salty spicy
loud gentle proud humble clever stupid lazy busy hungry thirsty sleepy angry jolly curious famous common rare simple
complex modern ancient narrow wide shallow deep sharp dull clean dirty wet dry hot cold cool frozen burning shiny
wooden woolen velvet fluffy bumpy fuzzy slippery sticky tiny huge massive average perfect broken missing hidden
visible possible precious dangerous poisonous generous nervous serious mysterious other another whole half fifth
sixth eleventh thoughtful playful beautiful wonderful peaceful awful lawful joyful fruitful""".split()
NAMES = """Bob Mary Peter Paul Emma Olivia Noah Liam Mia Eva Sophie Jack James Lily Grace Ruby Oscar Felix Hugo Theo
Bea Pam Tim Tom Ben Viv Fay Faith Ruth Beth Josh Trish George Charlotte Giovanni Zoe Owen Wally Yolanda Quinn Hannah
Amber Phoebe Victor Maeve Bruno Naomi Abby Robbie""".split()
PLACES = """Boston Paris Berlin Tokyo Moscow Bombay Warsaw Vienna Venice Florence Oxford Memphis Philadelphia
Vancouver Mexico Peru Brazil Egypt Beirut Baghdad Cape_Town Hamburg Budapest Lisbon Madrid Oslo Prague""".split()
ADVERBS = """slowly quickly quietly carefully happily sadly maybe probably always never often usually almost mostly
together alone again twice yesterday today tomorrow outside upstairs everywhere somehow perfectly""".split()
OPENERS = (
    "Did you know that|Well, I believe|Please remember that|Oh! Yesterday|My friend said|In fact|However|By the way|"
    "To be honest|As far as I know|Believe it or not|Good morning,|Thank you very much,|Let me think:|"
    "You may have heard that|Before we go,|People say|Hello there!|Of course|I wish|We hope|Maybe"
).split("|")
PHRASES = (
    "How are you doing today?|What time is it?|I would love to help you with that.|That is a very good question.|"
    "Let me show you how it works.|Sorry, I did not catch that.|Could you please repeat it?|See you tomorrow!|"
    "You are welcome.|I have no idea what you mean.|It was a pleasure to meet you.|Yes.|No.|Maybe.|Okay, okay.|"
    "Wow, that is amazing!|Hmm, I am not sure about it.|Have a wonderful weekend.|Please wait a moment.|"
    "My phone number is five five five, oh one two three.|Ooh, what a beautiful view!|Bye bye!"
).split("|")
OWNERS = "my your his her our their a the those some every five twelve both".split()
LINKS = (", and ", ". Then ", " because ", ", but ", " while ", " before ", ", so ", " when ")
CONSONANTS = "b d f g h j k l m n p r s t v w y z sh ch th b m p f v w".split()
VOWELS = "a e i o u oo ee ai ou ah aw oy".split()

OTHER = {
    "de": """Das ist ein schönes Haus am Fluss|Guten Morgen, wie geht es Ihnen heute|
Wir fahren morgen mit dem Zug nach
München|Die Mutter kauft frisches Brot und Butter|Bitte öffnen Sie das Fenster|Fünf weiße Pferde laufen über die
Wiese|Peter spielt abends gern Klavier|Ich möchte noch einen Kaffee|Früher wohnten wir auf dem Dorf|Meine Freundin
übt jeden Tag Geige|Vielen Dank für Ihre Hilfe|Der Bäcker backt um vier Uhr morgens""",
    "es": """El perro pequeño duerme bajo la mesa|Buenos días, ¿cómo está usted hoy?|Mañana vamos a la playa con mi
familia|Por favor, abra la ventana|Me gusta mucho la música moderna|Veinte niños juegan al fútbol en el parque|La
abuela prepara una sopa de verduras|Muchas gracias por su ayuda|El tren sale a las ocho y media|Vivimos cerca de un
río muy bonito|Compré pan, mantequilla y queso""",
    "it": """Buongiorno, come sta oggi?|Domani andiamo al mare con gli amici|La mamma prepara il pane con il burro|
Vorrei un bicchiere di vino bianco|Per favore, apra la finestra|Il bambino gioca con una palla blu|
Abito vicino a un fiume molto bello|
Grazie mille per il suo aiuto|Il treno parte alle otto e mezza|Mi piace molto la musica""",
    "pt": """Bom dia, como vai você?|Amanhã vamos à praia com a família|A minha mãe faz um bolo de maçã|
Por favor, abra a janela|O menino brinca com uma bola azul|Muito obrigado pela sua ajuda|
O comboio parte às oito e meia|Gosto muito de música popular|Moramos perto de um rio bonito|
Comprei pão, manteiga e queijo""",
    "nl": """Goedemorgen, hoe gaat het met u?|Morgen gaan we met de trein naar Utrecht|
Mijn moeder bakt elke zondag een
appeltaart|Wilt u alstublieft het raam openen|De kleine hond slaapt onder de tafel|Vijf witte paarden lopen door het
veld|Ik wil graag nog een kopje koffie|Bedankt voor uw hulp|Wij wonen vlak bij een mooie rivier""",
    "pl": """Dzień dobry, jak się pan dzisiaj czuje?|Jutro pojedziemy pociągiem do Warszawy|Moja mama piecze chleb i
ciasto|Proszę otworzyć okno|Mały pies śpi pod stołem|Bardzo dziękuję za pomoc|Mieszkamy blisko pięknej rzeki|Pociąg
odjeżdża o ósmej trzydzieści|Lubię muzykę i dobrą książkę""",
    "fr": """Bonjour, comment allez-vous aujourd'hui ?|Demain nous allons à la plage en famille|Ma mère prépare une
soupe de légumes|Ouvrez la fenêtre, s'il vous plaît|Le petit chien dort sous la table|Je voudrais un peu de beurre et
de fromage|Merci beaucoup pour votre aide|Le train part à huit heures et demie|Nous habitons près d'une belle rivière|
J'aime beaucoup la musique moderne""",
    "sv": """God morgon, hur mår du idag?|I morgon åker vi tåg till Göteborg|Min mamma bakar bröd varje söndag|Kan du
öppna fönstret, tack|Den lilla hunden sover under bordet|Tack så mycket för hjälpen|Vi bor nära en vacker flod|Fem
vita hästar springer över fältet|Jag vill gärna ha en kopp kaffe""",
}
OTHER = {language: [" ".join(s.split()) for s in text.split("|")] for language, text in OTHER.items()}


def split(words: list[str], held: bool) -> list[str]:
    """The held-out or the training part of a word list: every fourth word of its sorted form is held out."""
    return [w.replace("_", " ") for k, w in enumerate(sorted(set(words))) if (k % 4 == 3) == held]


_LISTS = {
    held: {
        name: split(words, held)
        for name, words in (("n", NOUNS), ("v", VERBS), ("a", ADJECTIVES), ("name", NAMES), ("place", PLACES))
    }
    for held in (False, True)
}


def _nonsense(r: random.Random) -> str:
    """Random syllables: every transition, no vocabulary."""
    word = lambda: "".join(r.choice(CONSONANTS) + r.choice(VOWELS) for _ in range(r.randint(1, 4)))  # noqa: E731
    return " ".join(word() for _ in range(r.randint(4, 8))) + "."


def _english(r: random.Random, held: bool) -> str:
    lists = _LISTS[held]
    pick = lambda name: r.choice(lists[name])  # noqa: E731
    subject = pick("name") if r.random() < 0.3 else f"the {pick('a')} {pick('n')}"
    s = f"{subject} {pick('v')} {r.choice(OWNERS)} {pick('a')} {pick('n')}"
    if r.random() < 0.25:
        s += f" in {pick('place')}"
    if r.random() < 0.25:
        s += " " + r.choice(ADVERBS)
    if r.random() < 0.45:
        s = r.choice(OPENERS) + " " + s
    if r.random() < 0.35:
        s += r.choice(LINKS) + f"we {pick('v')} the {pick('n')}"
    if r.random() < 0.12:
        s += f" {r.randint(2, 9999)}"
    return s + r.choice(".?!.")


def sentence(r: random.Random, language: str = "en-us", held: bool = False) -> str:
    """One sentence for a voice of `language`; `held` draws content words that training never says."""
    kind = r.random()
    if language in OTHER:
        if kind < 0.2:
            return _nonsense(r)
        several = [s for k, s in enumerate(OTHER[language]) if (k % 4 == 3) == held]
        return r.choice(several) + "."
    if kind < (0.0 if held else 0.16):
        return _nonsense(r)
    if kind < (0.0 if held else 0.24):
        return r.choice(PHRASES)
    return _english(r, held)
