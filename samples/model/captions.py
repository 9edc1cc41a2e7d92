"""Words for the pictures: the grammar of the captions and both tokenizers, trained on it."""
from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path

from painter import PALETTES, PLACES, SKIES, TIMES, Theme

WORDS = {
    "mountains": ("mountains", "a mountain range", "rocky mountains", "high mountain peaks",
                  "alpine mountains"),
    "lake": ("a mountain lake", "a calm lake", "a lake with reflections", "a quiet alpine lake",
             "a lake below the mountains"),
    "sea": ("the sea", "sea cliffs", "a rocky coast", "the ocean and its cliffs",
            "a coast with cliffs"),
    "desert": ("a desert", "sand dunes", "desert dunes", "a sandy desert", "wide sand dunes"),
    "forest": ("a forest", "a pine forest", "fir trees", "a forest of firs",
               "a deep pine forest"),
    "hills": ("green hills", "rolling hills", "meadows and hills", "gentle hills with trees",
              "a hilly meadow"),
    "dawn": ("at dawn", "at sunrise", "in the early morning", "at first light"),
    "day": ("at noon", "by day", "in daylight", "on a bright day", "at midday"),
    "sunset": ("at sunset", "in the evening sun", "at golden hour", "under a sunset sky"),
    "dusk": ("at dusk", "at twilight", "after sunset in the blue hour", "in the twilight"),
    "night": ("at night", "by moonlight", "under the stars", "in a starry night",
              "under the moon at night"),
    "clear": ("a clear sky", "a cloudless sky", ""),
    "broken": ("scattered clouds", "some clouds", "a few clouds", ""),
    "cloudy": ("a cloudy sky", "heavy clouds", "an overcast sky", "many clouds"),
    "natural": ("", "", "natural colours"),
    "warm": ("warm colours", "a warm palette", "warm tones"),
    "cool": ("cool colours", "a cold palette", "cold blue tones"),
    "pastel": ("pastel colours", "a pastel palette", "soft pastel tones"),
    "vivid": ("vivid colours", "a vivid palette", "bright saturated colours"),
    "mist": ("mist", "fog", "morning mist", "hazy air", "fog in the valleys"),
    "winter": ("winter", "snow", "deep snow", "a snowy winter", "fresh snow"),
    "left": ("{light} on the left", "{light} at the left"),
    "right": ("{light} on the right", "{light} at the right"),
    "centre": ("", "{light} in the middle", "{light} in the centre"),
    "low": ("a low horizon", "a wide sky"),
    "high": ("a high horizon", "little sky"),
    "middle": ("",),
    "framed": ("framed by pines", "between tall pines", "pines in the foreground"),
}
OPENINGS = ("", "", "", "a landscape with ", "a poster of ", "a painting of ", "a picture of ",
            "a view of ")
WINTRY = ("mountains", "lake", "forest", "hills")
WOODED = ("mountains", "lake", "forest")


def draw_theme(rng: random.Random) -> Theme:
    """A theme at random; winters and pines only where they belong."""
    place = rng.choice(PLACES)
    return Theme(
        place=place, time=rng.choice(TIMES), sky=rng.choice(SKIES),
        palette=rng.choice(("natural",) * 4 + PALETTES[1:]), mist=rng.random() < .2,
        winter=place in WINTRY and rng.random() < .25,
        side=rng.choice(("left", "centre", "right")),
        horizon=rng.choice(("low", "middle", "middle", "high")),
        framed=place in WOODED and rng.random() < .2)


def write_caption(theme: Theme, rng: random.Random, stray: float = .06) -> str:
    """A caption of a theme: place and time always, most of the rest, in changing order.

    stray: how often it holds words without meaning, so that unknown ones do little harm.
    """
    light = "the moon" if theme.time == "night" else "the sun"

    def say(key: str) -> str:
        return rng.choice(WORDS[key]).format(light=light)

    head = f"{say(theme.place)} {say(theme.time)}"
    if rng.random() < .15:
        head = f"{say(theme.time)}, {say(theme.place)}"
    keys = [theme.sky] * (rng.random() < .75) + [theme.palette] + [theme.horizon]
    keys += [theme.side] * (theme.time != "dusk" and rng.random() < .7)
    keys += ["mist"] * theme.mist + ["winter"] * theme.winter + ["framed"] * theme.framed
    details = [text for text in map(say, keys) if text]
    rng.shuffle(details)
    if rng.random() < stray:
        details.insert(rng.randrange(len(details) + 1), stray_words(rng))
    text = rng.choice(OPENINGS) + ", ".join([head] + details)
    if rng.random() < .2:
        text = text.replace("colours", "colors")
    if rng.random() < .35:
        text = text[0].upper() + text[1:]
    return text + "." * (rng.random() < .15)


def stray_words(rng: random.Random) -> str:
    def word() -> str:
        return "".join(rng.choice("etaoinshrdlucmfwypvbgkqjxz") for _ in range(rng.randint(2, 9)))

    return " ".join(word() for _ in range(rng.randint(1, 3)))


def corpus(count: int, seed: int) -> list[str]:
    """Captions to train the tokenizers on."""
    rng = random.Random(seed)
    return [write_caption(draw_theme(rng), rng, stray=0.0) for _ in range(count)]


# ------------------------------------------------------------------------- byte-level BPE (CLIP)

def byte_symbols() -> list[str]:
    """The character that stands for each byte, in the order of CLIP's vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    shown = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [shown[b] for b in plain + rest]


def train_bpe(texts: list[str], merges: int, folder: Path) -> None:
    """Write vocab.json, merges.txt and their companions in CLIP's layout."""
    words = Counter(word for text in texts for word in text.lower().replace(",", " , ").split())
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    rules: list[tuple[str, str]] = []
    while len(rules) < merges:
        pairs: Counter = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        rules.append(best)
        for word, symbols in pieces.items():
            pieces[word] = merged(symbols, best)
    base = byte_symbols()
    tokens = base + [symbol + "</w>" for symbol in base] + [a + b for a, b in rules]
    first, last = "<|startoftext|>", "<|endoftext|>"
    tokens += [first, last]
    vocab = {token: index for index, token in enumerate(tokens)}
    assert len(vocab) == len(tokens)

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocab, indent=None)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in rules)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def special(text: str, normalized: bool) -> dict:
        return dict(content=text, lstrip=False, normalized=normalized, rstrip=False,
                    single_word=False)

    write_json(folder / "special_tokens_map.json", dict(
        bos_token=special(first, True), eos_token=special(last, False),
        pad_token=special(last, False), unk_token=special(last, False)))
    write_json(folder / "tokenizer_config.json", dict(
        add_prefix_space=False,
        added_tokens_decoder={str(vocab[first]): special(first, True) | {"special": True},
                              str(vocab[last]): special(last, False) | {"special": True}},
        bos_token=first, clean_up_tokenization_spaces=True, do_lower_case=True, eos_token=last,
        errors="replace", model_max_length=77, pad_token=last, tokenizer_class="CLIPTokenizer",
        unk_token=last))


def merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every occurrence of pair joined, from left to right."""
    out, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i:i + 2]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


# ------------------------------------------------------------------------------- unigram (T5)

# What the normaliser maps, one rule a line in sentencepiece's form (code points in hex): white
# space of every kind to a space, typographic quotes and dashes to plain ones.
NORMALISER = {
    **{chr(c): " " for c in (0x9, 0xA, 0xD, 0xA0, 0x2002, 0x2003, 0x2009, 0x200A, 0x3000)},
    "\u2018": "'", "\u2019": "'", "\u201C": '"', "\u201D": '"', "\u2013": "-", "\u2014": "-",
    "\u2026": "...", "\u00AD": "", "\u200B": "",
}
ALPHABET = "".join(map(chr, range(33, 127))) + "äöüßéèêàáâíîóôúûçñåæø"


def train_unigram(texts: list[str], size: int, folder: Path, length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json in the layout of T5's fast tokenizer."""
    import base64

    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as proto

    def hexes(text: str) -> str:
        return " ".join(f"{ord(c):X}" for c in text)

    # A candidate must occur in two distinct words, so each word is shown with punctuation, too.
    words = {word for text in texts for word in text.replace(",", " ").split()}
    texts = texts + [f"{word}. {word}, {word}; {word}:" for word in sorted(words)]
    with tempfile.TemporaryDirectory() as temporary:
        rules = Path(temporary) / "rules.tsv"
        rules.write_text("".join(f"{hexes(a)}\t{hexes(b)}\n" for a, b in NORMALISER.items()))
        prefix = str(Path(temporary) / "unigram")
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=prefix, model_type="unigram",
            vocab_size=size, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
            normalization_rule_tsv=str(rules), required_chars=ALPHABET, character_coverage=1.0,
            num_threads=1, minloglevel=2)
        model = proto.ModelProto.FromString(Path(prefix + ".model").read_bytes())

    specials = ["<pad>", "</s>", "<unk>"]
    vocab = [[p.piece, 0.0 if p.piece in specials else p.score] for p in model.pieces]
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()

    def flags(normalized: bool = False) -> dict:
        return dict(single_word=False, lstrip=False, rstrip=False, normalized=normalized,
                    special=True)

    one, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>",
                                                                          "type_id": 0}}
    two = {"Sequence": {"id": "B", "type_id": 0}}
    marks = dict(type="Metaspace", replacement="\u2581", add_prefix_space=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", dict(
        version="1.0", truncation=None, padding=None,
        added_tokens=[dict(id=i, content=t, **flags()) for i, t in enumerate(specials)],
        normalizer=dict(type="Sequence", normalizers=[
            dict(type="Precompiled", precompiled_charsmap=charsmap),
            dict(type="Strip", strip_left=False, strip_right=True),
            dict(type="Replace", pattern={"Regex": " {2,}"}, content="\u2581")]),
        pre_tokenizer=marks | {"prepend_scheme": "first"},
        post_processor=dict(type="TemplateProcessing", single=[one, end],
                            pair=[one, end, two, end],
                            special_tokens={"</s>": dict(id="</s>", ids=[1], tokens=["</s>"])}),
        decoder=marks | {"prepend_scheme": "always"},
        model=dict(type="Unigram", unk_id=2, vocab=vocab, byte_fallback=False)), indent=None)
    write_json(folder / "special_tokens_map.json", {
        key: dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False)
        for key, token in zip(("pad_token", "eos_token", "unk_token"), specials)})
    write_json(folder / "tokenizer_config.json", dict(
        added_tokens_decoder={str(i): dict(content=t, **flags()) for i, t in enumerate(specials)},
        clean_up_tokenization_spaces=True, eos_token="</s>", extra_ids=0, legacy=False,
        model_max_length=length, pad_token="<pad>", tokenizer_class="T5Tokenizer",
        unk_token="<unk>"))


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
