"""Short messages, wanted (ham) and unwanted (spam): a reader of the SMS Spam Collection, and a corpus made by rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from sparring.core.errors import InputError, LoadError, UnknownNameError

HAM, SPAM = 0, 1
TEST_TENTHS = 3
LARGEST = 64 * 2**20
SPAM_SHARE = 0.2
_FORMAL_SHARE = 0.04  # of the ham: what a clinic or a carrier writes, in words that spam likes too
_LABELS = {"ham": HAM, "spam": SPAM}
_UNCLEAR_SPAM, _UNCLEAR_HAM = 0.08, 0.015  # messages that either side could have sent: no filter gets all of them right


def load_sms(path: str | Path, split: Literal["test", "train", "all"] = "all") -> tuple[list[str], list[int]]:
    """The SMS Spam Collection, or a file in its format: one message a line, "ham" or "spam", a tab, the text.

    The split is keyed by a hash of the text (see `split_corpus`), so copies of one message never stand on both sides.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        split: "train" (about 70%), "test" or "all".

    Returns:
        The texts and their labels, 0 for ham and 1 for spam, in file order.

    Raises:
        UnknownNameError: `split` is none of the three.
        LoadError: the file is missing, too large, not UTF-8, empty, or a line has another form.

    Paper:
        Almeida, Gomez Hidalgo & Yamakami 2011, "Contributions to the Study of SMS Spam Filtering".
    """
    path = Path(path).expanduser()
    name = repr(str(path))
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise LoadError(f"{name} takes {size:,} bytes; at most {LARGEST:,} are read as a message file.")
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LoadError(
            f"{name} cannot be read: {error}. Name a file with lines of the form 'ham<TAB>text'."
        ) from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise LoadError(
            f"{name} is not UTF-8: byte {error.start} (line {number}). Convert it, or fetch it again."
        ) from error
    texts: list[str] = []
    labels: list[int] = []
    # Not str.splitlines: messages may hold other characters that it takes for the end of a line.
    for number, line in enumerate(content.removesuffix("\n").split("\n"), 1):
        label, tab, text = line.removesuffix("\r").partition("\t")
        if not tab or label not in _LABELS or not text.strip():
            shown = line if len(line) <= 40 else line[:40] + "..."
            raise LoadError(f"{name}, line {number}: {shown!r} is not 'ham' or 'spam', a tab and a text.")
        texts.append(text)
        labels.append(_LABELS[label])
    return split_corpus(texts, labels, split)


def split_corpus(
    texts: Sequence[str], labels: Sequence[int], split: Literal["test", "train", "all"]
) -> tuple[list[str], list[int]]:
    """One side of the fixed split: a message is a test message if a hash of its text says so.

    With h the first 8 bytes of BLAKE2b of the text, case and spaces folded, a message is held out if h mod 10 < 3.
    What else is in the corpus, and in which order, does not matter.

    Args:
        texts: the messages.
        labels: their labels, as many.
        split: "train" (about 70%), "test" or "all".

    Returns:
        The texts and labels of that side, in the given order.

    Raises:
        UnknownNameError: `split` is none of the three.
        InputError: there are not as many labels as texts.
    """
    if split not in ("train", "test", "all"):
        raise UnknownNameError.among("split of the messages", split, ("train", "test", "all"))
    if len(texts) != len(labels):
        raise InputError(f"{len(texts)} texts came with {len(labels)} labels; each text needs one.")
    kept = [i for i, text in enumerate(texts) if split == "all" or _held_out(text) == (split == "test")]
    return [texts[i] for i in kept], [labels[i] for i in kept]


def generate_corpus(n: int = 2000, seed: int = 0) -> tuple[list[str], list[int]]:
    """A made corpus of short messages, for where no real one is at hand.

    Each message is one to three sentences from templates, their slots filled from word lists, with the abbreviations
    and slips of real ones; a fifth is spam. Some spam is written like a friend's message and some ham like a
    company's, so a bag-of-words filter reaches about 98% and not 100%. Message i depends on (seed, i) alone: a shorter
    corpus is the beginning of a longer one. No sentence is from a real collection. Rates measured here say how an
    attack behaves, not how real filters do.

    Args:
        n: how many messages.
        seed: which corpus.

    Returns:
        The texts and their labels, 0 for ham and 1 for spam.

    Raises:
        InputError: `n` is below 1 or `seed` below 0.
    """
    if n < 1 or seed < 0:
        raise InputError(
            f"generate_corpus got n={n} and seed={seed}; it needs n of at least 1 and a seed of at least 0."
        )
    made = [_message(np.random.default_rng((seed, i))) for i in range(n)]
    return [text for text, _ in made], [label for _, label in made]


def _held_out(text: str) -> bool:
    folded = " ".join(text.casefold().split())
    digest = blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 10 < TEST_TENTHS


def _message(rng: np.random.Generator) -> tuple[str, int]:
    """One message and its label."""
    label = SPAM if rng.random() < SPAM_SHARE else HAM
    unclear = rng.random() < (_UNCLEAR_SPAM if label == SPAM else _UNCLEAR_HAM)
    parts = []
    if unclear:
        parts = [_pick(rng, _OPENERS), _pick(rng, _CHAT), _pick(rng, _UNCLEAR)]
    elif label == SPAM:
        parts = [_pick(rng, _SPAM_OPENERS)] * (rng.random() < 0.4)
        parts += [_pick(rng, _CHAT)] * (rng.random() < 0.2)
        parts += [_pick(rng, _SPAM)]
        parts += [_pick(rng, _SPAM_CLOSERS)] * (rng.random() < 0.6)
    elif rng.random() < _FORMAL_SHARE:
        parts = [_pick(rng, _FORMAL)]
    else:
        parts = [_pick(rng, _OPENERS)] * (rng.random() < 0.4)
        parts += [_pick(rng, _CHAT) for _ in range(1 + int(rng.integers(3)))]
        parts += [_pick(rng, _CLOSERS)] * (rng.random() < 0.3)
    text = _fill(" ".join(parts), rng)
    hasty = rng.random() < (0.1 if label == SPAM and not unclear else 0.5)
    return (_typed_in_haste(text, rng) if hasty else text), label


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of `options`, the first ones more often: words come as unevenly as they do in real messages."""
    return options[int(len(options) * rng.random() ** 1.5)]


def _fill(template: str, rng: np.random.Generator) -> str:
    """The template with each {slot} replaced; {0000} becomes as many random digits as it has zeros."""

    def value(match: re.Match[str]) -> str:
        slot = match.group(1)
        if slot.strip("0"):
            return _fill(_pick(rng, _SLOTS[slot]), rng)
        return "".join(str(digit) for digit in rng.integers(0, 10, len(slot)))

    return re.sub(r"\{(\w+)\}", value, template)


def _typed_in_haste(text: str, rng: np.random.Generator) -> str:
    """Abbreviations, no capitals, and now and then two letters in the wrong order."""
    words = text.lower().split()
    for i, word in enumerate(words):
        if word in _SHORT and rng.random() < 0.6:
            words[i] = _SHORT[word]
        elif len(word) > 4 and rng.random() < 0.03:
            at = int(rng.integers(1, len(word) - 2))
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


# The telephone numbers are from the ranges that the British regulator keeps free for films and books; few different
# ones, since a number that comes once is no word that a filter could learn.
# fmt: off
_SHORT = {
    "you": "u", "are": "r", "your": "ur", "to": "2", "for": "4", "see": "c", "please": "pls", "tomorrow": "tmrw",
    "tonight": "2nite", "because": "cos", "and": "n", "about": "abt", "have": "hv", "be": "b", "okay": "k",
}
_SLOTS = {
    slot: tuple(words.split(", "))
    for slot, words in {
        "name": "Anna, Ben, Carla, Dev, Elif, Femi, Greta, Hugo, Ines, Jonas, Kavi, Lena, Marco, Nadia, Omar, Priya, "
        "Rosa, Sven, Tara, Yusuf",
        "kin": "mum, dad, my sister, my brother, grandma, my cousin, uncle, my aunt, the kids, my flatmate",
        "place": "the library, the station, the cafe, the gym, the park, my office, the pub, the bakery, the cinema, "
        "the harbour, the market, campus, the clinic, the airport",
        "town": "Leeds, Porto, Bergen, Delhi, Lyon, Galway, Turin, Bath, Izmir, Cork, Graz, Lagos",
        "day": "monday, tuesday, wednesday, thursday, friday, saturday, sunday, tomorrow, tonight, this weekend",
        "hour": "5, 6, 7, half past 8, 9.30, noon, ten, quarter to 4, 18:15",
        "food": "pasta, curry, soup, pancakes, rice, dumplings, bread, apples, noodles, lentils, cheese, eggs, coffee, "
        "milk, fish, salad",
        "thing": "keys, umbrella, charger, notebook, jacket, bike, laptop, camera, guitar, scarf, glasses, headphones",
        "subject": "maths, history, chemistry, the thesis, biology, the essay, statistics, the project, the slides",
        "mood": "tired, happy, hungry, busy, bored, nervous, sleepy, proud, cold, lost, fine, a bit sick, so excited",
        "film": "movie, match, concert, play, documentary, game, quiz, lecture, exhibition",
        "prize": "holiday voucher, brand new phone, luxury cruise, games console, shopping spree, tablet computer, "
        "gift card, designer watch",
        "money": "£{00}00, £5000, £250, $1000, €750, £{0}00, $2500",
        "noun": "house, car, garden, window, boss, teacher, neighbour, dog, dinner, breakfast, shower, meeting, "
        "weather, music, birthday, wedding, bank, shop, road, bridge, lake, beach, mountain, kitchen, sofa, lamp, "
        "letter, printer, battery, engine, bathroom, ceiling, ladder, basket, candle, pillow, blanket, hammer, violin, "
        "museum, pharmacy",
        "adj": "nice, long, cheap, quiet, weird, new, old, broken, lovely, empty, dirty, bright, heavy, loud, perfect, "
        "terrible, huge, tiny, warm, dusty, fancy, wooden, gentle, crooked, purple, famous, narrow, frozen",
        "verb": "clean, fix, paint, move, find, sell, carry, visit, check, measure, wash, borrow, return, photograph, "
        "describe, replace, polish, repair, water, ignore",
        "brand": "MobiMax, TeleStar, RingoTone, CashQuick, LuckyDraw, PhonePlus, DateLine, SuperSaver",
        "phone": "0808157012{0}, 0909879011{0}, 0770090033{0}",
        "short": "8{00}66, 6{00}77, 5{0}155",
        "word": "WIN, CLAIM, YES, GO, PLAY, CASH, TONE, DATE",
        "site": "www.luckydraw.example, mobimax.example/win, http://cashquick.example, ringotone.example/now",
        "fee": "£1.50, 150p, £3, 50p, £4.99",
        "tone": "ringtone, wallpaper, polyphonic tone, game, screensaver, video clip",
    }.items()
}
_OPENERS = (
    "Hey {name}!", "Hi {name},", "Morning!", "Haha yes.", "Oh no.", "Sorry, just saw this.", "Hello love,", "Ok cool.",
    "Hmm not sure.", "Thanks so much!", "Good evening {name}.", "Lol.", "Yeah sure.", "Wait what?",
)
_CLOSERS = (
    "See you there.", "Love you xx", "Talk later.", "Let me know.", "Take care!", "Miss you.", "No rush.",
    "Text me when you are home.", "Say hi to {kin}.", "Night night.", "Call me when you are free.",
    "Don't worry about it.",
)
_CHAT = (
    "I am at {place} already, where are you?", "Can you buy {food} and {food} on your way home?",
    "Did {name} give you the {thing} back?", "We are having {food} at {hour}, come if you like.",
    "I think I left my {thing} at {place}.", "The {film} starts at {hour} so be there early.",
    "How was your exam in {subject}?", "I have to finish {subject} before {day}.",
    "{kin} is asking when you will visit.", "My bus is late again, start without me.",
    "I am {mood} today, maybe we meet {day} instead.", "Do you want to go to {place} with me and {name} on {day}?",
    "It is raining here in {town}, bring the {thing}.", "What are you doing {day}?",
    "I cooked {food} but it tastes strange.", "{name} said the {film} was really good.",
    "Could you lend me some cash till {day}?", "I will pick you up from {place} around {hour}.",
    "Been thinking about you all day.", "Our train to {town} leaves at {hour}.", "Are we still on for {day}?",
    "Just woke up, feeling {mood}.", "Please tell {kin} that I will be late.", "I got the job!! Starting on {day}.",
    "The doctor says {kin} is much better now.", "Is there any {food} left in the kitchen?",
    "Nothing much, watching a {film} with {kin}.", "Your {thing} is on the table next to the door.",
    "I forgot the password for the wifi, what was it?", "Sat next to {name} in class, so funny.",
    "We won the {film} last night, you should have been there.", "Can we meet at {hour} in front of {place}?",
    "I will be free after {hour}, call me then.", "The cat slept on my {thing} again.", "Wish me luck for {subject}.",
    "Landlord came about the heating, it works now.", "How do you make that {food} of yours?",
    "Never mind, I found my {thing}.", "I am on my way, ten minutes.", "That was the best {food} ever, thank you.",
    "Happy birthday {name}! Have a lovely day.", "Did you reply to {name} about {town}?", "My phone died, sorry.",
    "Ask {name} if the {thing} is theirs.", "I paid for the tickets, you get the {food}.", "Feeling {mood}, you?",
    "Went running along the river, my legs hurt.", "The plan is {food} at ours then the {film}.",
    "Can you help me {verb} the {noun} {day}?", "The {noun} is so {adj} that I had to {verb} it.",
    "There is a {adj} {noun} near {place}.", "I had a {adj} dream about a {noun} and {kin}.",
    "We should {verb} the {adj} {noun} before {name} comes.", "Such a {adj} {noun}, isn't it?",
    "{kin} wants to {verb} the {noun} in {town}.", "Who will {verb} the {noun}, you or {name}?",
    "{name} and I are stuck in traffic near {town}.", "Shall I book the table for {hour}?", "I miss our walks.",
)
_FORMAL = (
    "Your appointment on {day} at {hour} is confirmed. Call {phone} to change it.",
    "Your parcel will be delivered {day}. Track it with code {0000}{00}.",
    "Your login code is {0000}{00}. Do not share it.",
    "Reminder: your mobile bill of £{00} is due on {day}. No reply is needed to this message.",
    "Your order of the {thing} is ready for collection from {place}. Offer valid until {day}.",
    "Somebody left a voicemail. Dial 121 to listen, it is free.",
    "Your account was topped up with £{00}. Thank you.",
)
_SPAM_OPENERS = (
    "URGENT!", "Congratulations!", "FREE entry!", "WINNER!!", "Dear customer,", "Private!", "Last chance!", "FreeMsg:",
)
_SPAM = (
    "You have won a {prize}! To claim call {phone} now.",
    "Your mobile number was selected for {money} cash. Call {phone}.",
    "Text {word} to {short} for your chance to win a {prize}.",
    "Get a free {tone} every week! Reply {word} to {short}.",
    "Your {prize} is still waiting for its owner. Ring {phone} from home today.",
    "Cash loans up to {money}, no credit check! Apply at {site}",
    "{brand} gives you 500 free minutes, visit {site} today.",
    "Hot singles near {town} want to chat with you! Text {word} to {short}.",
    "Your {brand} account has expired. Update your details at {site} to avoid a charge.",
    "Upgrade to the newest camera phone for free! Call {brand} on {phone}.",
    "Send {word} to {short}, prize draw every {day}!",
    "You are awarded {money}, a guaranteed prize. Claim code {0000}. Call {phone}.",
    "Guess who likes you? Hear the message they left: call {phone}.",
    "Half price {tone} this {day} only: {site}",
    "Had an accident? You may be entitled to {money} compensation. Reply {word}.",
    "Double your money with our betting tips, join at {site}",
    "Latest {tone} to your mobile, text {word} to {short} now!",
    "Unclaimed tax refund of {money} waiting. Confirm your bank details at {site}",
)
_SPAM_CLOSERS = (
    "T&Cs apply, 18+ only.", "Text STOP to end.", "Cost {fee} per msg.", "Offer ends {day}!", "Calls {fee}/min.",
    "Box {000}, {town}. Valid 12 hours only.", "Reply STOP to opt out, msgs {fee}.", "Claim now, limited offer!",
)
_UNCLEAR = (
    "This is my new number: {phone}, call me.", "Have a look at the pictures on {site}",
    "Can you send me {money} till {day}?", "Text me back on {phone}, it is about the {prize}.",
    "If you want to win the {prize} text {word} to {short}.", "They pay {money} a week, apply at {site}",
    "Call {phone} before {day}, the offer ends.",
)
# fmt: on
