"""Tokens that come piece by piece are those of the whole text."""

import functools
import json
import random
import types
from pydoc_data.topics import topics

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from allmem_mlx.documents import tokens
from allmem_mlx.errors import AllMemError

# Tokenizers like those of real models, trained on Python's own help pages.

PROSE = "\n\n".join(topics.values())
CHINESE = "第一章从前有一个人，他说：“你好。”テストのカタカナ한국어문장입니다。"
CORPUS = [PROSE[i : i + 1000] for i in range(0, 150_000, 1000)] + [CHINESE] * 20
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = [
    AddedToken("<|endoftext|>", special=True, normalized=False),
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("<mask>", lstrip=True),
    AddedToken("<end>", rstrip=True, normalized=False),
    AddedToken("<word>", single_word=True),
    AddedToken("né", normalized=True),
    AddedToken(" " * 8, normalized=False),
    AddedToken("<in two>", normalized=False),
]


def tokenize(texts, tokenizer, **options):
    return (ids for ids, _ in tokens.tokenize(texts, tokenizer, **options))


def byte_level(*split, model=None, normalizer=None) -> Tokenizer:
    """BPE over bytes within the words that ``split`` gives."""
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def smollm2() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def roberta() -> Tokenizer:
    """The offsets of a word leave out the space before it."""
    tokenizer = gpt2()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def llama3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    return byte_level(split, model=models.BPE(ignore_merges=True))


def qwen2() -> Tokenizer:
    one_digit = Regex(LLAMA3.replace("{1,3}", ""))
    split = pre_tokenizers.Split(one_digit, "isolated")
    return byte_level(split, normalizer=normalizers.NFC())


def llama2() -> Tokenizer:
    """The text is one word to its BPE; characters it does not know become bytes."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=1000, show_progress=False)
    )
    state = json.loads(learned.model.__getstate__())
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Newlines are bytes, as in the real vocabulary.
    names += [name for name in state["vocab"] if "\n" not in name]
    merges = [(a, b) for a, b in state["merges"] if "\n" not in a + b]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def mistral() -> Tokenizer:
    """As :func:`llama2`, but the pre-tokenizer marks the first word."""
    tokenizer = llama2()
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first", split=False
    )
    return tokenizer


def t5() -> Tokenizer:
    """Unigram; the normalizer strips, and shortens runs of spaces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600,
        unk_token="<unk>",
        special_tokens=["<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:60], trainer)
    return tokenizer


def phrases() -> Tokenizer:
    """Its tokens stretch over the spaces of a line."""
    return byte_level(pre_tokenizers.Split("\n", "isolated"))


def blocks() -> Tokenizer:
    """Words of five characters, counted from the start of the text."""
    return byte_level(pre_tokenizers.FixedLength(5))


def anything() -> Tokenizer:
    """Its tokens stretch over spaces and newlines."""
    return byte_level()


STREAMED = [gpt2, smollm2, roberta, llama3, qwen2, llama2, mistral, t5, phrases]
ALL = [*STREAMED, blocks, anything]


@functools.cache
def build(make) -> PreTrainedTokenizerFast:
    backend = make()
    backend.add_tokens(ADDED)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def cut(text: str, piece: int) -> list[str]:
    return [text[i : i + piece] for i in range(0, len(text), piece)]


def check(tokenizer, text: str, piece: int, name: str = "") -> None:
    whole = tokenizer.encode(text, add_special_tokens=False)
    streamed = [i for ids in tokenize([text], tokenizer, batch=piece) for i in ids]
    assert streamed == whole, f"{name} piece {piece}"


def random_text(rng: random.Random, length: int) -> str:
    """Words among everything that tokenizers treat in a way of its own."""
    words = PROSE[:100_000].split()
    added = [token.content for token in ADDED]
    marks = [
        "👩‍👩‍👧‍👦",
        "e\u0301",
        "a\u0300\u0323\u0316",
        "\u1100\u1161\u11a8",
        "각",
        "ﬁ",
        "½",
        "¨",
    ]
    marks += [
        "\u200b",
        "\ufeff",
        "\ufffd",
        "ไทย",
        "İ",
        "\x01",
        "\x85",
        "né",
        "ne\u0301",
    ]

    def run(characters: str, *lengths: int) -> str:
        return "".join(rng.choices(characters, k=rng.choice(lengths)))

    text = ""
    while len(text) < length:
        kind = rng.randrange(16)
        if kind < 7:
            text += rng.choice(words) + rng.choice(
                [*"   \n", "\n\n", ", ", " \n", "  "]
            )
        elif kind == 7:
            text += run(" \t\r\n\u00a0\u3000\u2028", 1, 2, 3, 8, 40, 200)
        elif kind == 8:
            text += run("0123456789", 1, 3, 7, 50) + rng.choice(["", ".", " "])
        elif kind == 9:
            text += run(CHINESE, 1, 4, 20, 150)
            text += rng.choice(["", "\n", "\n\u3000\u3000", "。\n“"])
        elif kind == 10:
            text += rng.choice(marks) * rng.choice([1, 1, 2, 30])
        elif kind < 13:
            text += rng.choice(added) * rng.choice([1, 1, 3])
        elif kind == 13:
            token = rng.choice(added)
            text += token[: rng.randrange(1, len(token))]
        elif kind == 14:
            text += run("abcXYZ+/=_-.,;:'\"()[]{}<>|#*", 1, 5, 60, 300)
        else:
            text += rng.choice(" \n\t") * rng.choice([1, 31, 33, 100])
    return text[:length]


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_tokens_are_those_of_the_whole_text(make):
    for seed in range(100):
        rng = random.Random(seed)
        text = random_text(rng, rng.choice([10, 300, 2000]))
        piece = rng.choice([1, 2, 3, 5, 7, 50, 400])
        check(build(make), text, piece, f"seed {seed}")


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_awkward_texts(make):
    texts = {
        "nothing": "",
        "one character": "a",
        "special tokens on every cut": "word <|im_start|>user\nhello<|im_start|>" * 9,
        "special tokens alone": "<|im_start|>" * 40,
        "special tokens of several words": "a <in two> b " * 20,
        "a long run of spaces": "word " + " " * 700 + "word again" * 3,
        "a long run of newlines": "word\n" + "\n" * 700 + "word again" * 3,
        "a token that takes the space before it": "a\n"
        + "\n\u3000\u3000" * 300
        + "<mask>",
        "a token that takes the space after it": "a <end>" + " \n" * 300 + "a b c" * 50,
        "marks that a normalizer composes": "cafe\u0301 ne\u0301 e\u0301e " * 60,
        "characters of several tokens": "𝔘👩‍👩‍👧‍👦 각 각\u3000 " * 60,
        "indented Chinese paragraphs": f"\u3000\u3000{CHINESE}\n" * 30,
        "words of one line": "word " * 200,
        "lines of one word": "word\n" * 200,
    }
    for name, text in texts.items():
        for piece in (1, 7, 64):
            check(build(make), text, piece, name)


@pytest.fixture
def encoded(monkeypatch):
    """Lengths of the texts that were encoded."""
    lengths = []

    def encode(tokenizer, text):
        lengths.append(len(text))
        return original(tokenizer, text)

    original = tokens._encode
    monkeypatch.setattr(tokens, "_encode", encode)
    return lengths


@pytest.mark.parametrize("make", STREAMED, ids=lambda make: make.__name__)
@pytest.mark.slow
def test_memory_is_bounded(make, encoded):
    text = PROSE[:200_000]
    pieces = list(tokenize(cut(text, 4096), build(make)))
    assert sum(pieces, []) == build(make).encode(text, add_special_tokens=False)
    assert max(encoded) < 4 * 4096


@pytest.mark.parametrize(
    "make", [gpt2, qwen2, llama2, t5], ids=lambda make: make.__name__
)
def test_memory_is_bounded_for_chinese(make, encoded):
    text = "\n".join(f"\u3000\u3000{CHINESE * n}" for n in range(1, 60))
    list(tokenize(cut(text, 4096), build(make)))
    assert max(encoded) < 4 * 4096


WITHOUT_WORDS = {
    "base64": "QUJD/0+xYz" * 4000,
    "minified code": "".join(f"a.push({i});" for i in range(4000)),
    "a Chinese line": CHINESE.replace(" ", "") * 1000,
    "dots": "." * 40_001,
    "digits": "31415926535" * 4000,
    "non-breaking spaces": "word\u00a0" * 8000,
    "emoji": "👩‍👩‍👧‍👦" * 3000,
    "spaces": "x" + " " * 40_000 + "y",
}


@pytest.mark.parametrize("make", STREAMED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", WITHOUT_WORDS)
@pytest.mark.slow
def test_memory_is_bounded_without_words(make, name, encoded):
    """The tokens are those of the whole text, or the cuts that change them are told."""
    text = WITHOUT_WORDS[name]
    changes = []
    pieces = list(
        tokenize([text], build(make), longest=4096, on_change=lambda: changes.append(1))
    )
    assert max(encoded) < 4096 + 2 * tokens.BATCH
    assert len(pieces) > 2
    if not changes:
        assert sum(pieces, []) == build(make).encode(text, add_special_tokens=False)
    if make in (gpt2, llama3, qwen2, smollm2, llama2):
        assert not changes


def test_forced_cuts_among_words(encoded):
    text = "first words " + "QUJD/0+" * 10_000 + " then some words again" * 300
    check(build(gpt2), text, 1000)
    assert max(encoded) < 20_000


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_cuts_do_not_depend_on_how_text_comes(make):
    for seed in range(3):
        rng = random.Random(seed)
        text = random_text(rng, 3000) + "QUJD/0+" * 300 + random_text(rng, 2000)
        one, other = (
            list(tokenize(cut(text, size), build(make), batch=64, longest=300))
            for size in (17, 5000)
        )
        assert one == other


def test_changed_tokens_are_told():
    """Each character before a # is a token of its own, however far away it is."""
    backend = gpt2()
    spelled = pre_tokenizers.Split(Regex(r"\w(?=\w*#)"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([spelled, backend.pre_tokenizer])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text, changes = "several" * 2000 + "#" + " and words" * 400, []
    pieces = tokenize(
        [text], tokenizer, longest=1000, batch=1000, on_change=lambda: changes.append(1)
    )
    read, whole = (
        tokenizer.convert_ids_to_tokens(ids)
        for ids in (sum(pieces, []), tokenizer.encode(text))
    )
    assert read != whole and "".join(read) == "".join(whole)
    assert len(changes) == 1


def test_a_long_text_for_a_tokenizer_that_allows_no_cut():
    text, changes = "word " * 5000 + "\n" + "x" * 30_000, []
    for make in (blocks, without_decoder):
        tokenizer = build(make)
        pieces = [*tokenize([text], tokenizer, on_change=lambda: changes.append(1))]
        assert len(pieces) == 4 and max(map(len, pieces)) <= tokens.LONGEST
        assert tokenizer.convert_ids_to_tokens(sum(pieces, []))
    assert len(changes) == 6


def test_a_boundary_that_a_token_stretches_over_is_not_used():
    assert tokens._boundary(build(gpt2)).search("word word").start() == 4
    assert tokens._boundary(build(phrases)).search("word word") is None
    assert tokens._boundary(build(phrases)).search("word\nword").start() == 5
    assert tokens._boundary(build(anything)).search("word word\nword") is None


def test_pieces_that_are_empty():
    pieces = tokenize(["", "some ", "", "", "words", ""], build(gpt2))
    assert sum(pieces, []) == build(gpt2).encode("some words")


def test_a_tokenizer_that_is_not_fast_gets_the_whole_text():
    class Slow:
        def encode(self, text, add_special_tokens, **kwargs):
            return [] if add_special_tokens else [len(text)]

    assert list(tokenize(["some ", "words"], Slow())) == [[10]]


def without_decoder() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.decoder = None
    return tokenizer


@pytest.mark.parametrize("make", [without_decoder, blocks])
def test_a_tokenizer_that_allows_no_cut_gets_the_whole_text(make, encoded):
    check(build(make), PROSE[:5000], 100)
    assert not encoded


def test_an_added_token_longer_than_the_lookahead():
    token = f"<{'many words ' * 12}>"
    backend = gpt2()
    backend.add_tokens([token])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for length in range(40):
        check(tokenizer, "a " * length + f"some words {token} and more " * 20, 7)


def test_a_tokenizer_that_changes_the_text_first(encoded):
    class Newlines(PreTrainedTokenizerFast):
        def encode(self, text, **kwargs):
            return super().encode(text.replace("\n", "<n>"), **kwargs)

    tokenizer = Newlines(tokenizer_object=gpt2())
    check(tokenizer, PROSE[:5000], 100)
    assert max(encoded) == 5000
    assert set(tokens._encode(tokenizer, "two\nwords")[1]) == {(0, 9)}


def test_a_tokenizer_whose_offsets_drift():
    """As those of some normalizers do, here by one at each ``¨``."""
    real = build(gpt2)

    def encode(text, **kwargs):
        encoding = real.backend_tokenizer.encode(text, **kwargs)
        drift = [text[:start].count("¨") for start, _ in encoding.offsets]
        offsets = [
            (max(start - by, 0), max(end - by, 0))
            for (start, end), by in zip(encoding.offsets, drift, strict=True)
        ]
        return types.SimpleNamespace(ids=encoding.ids, offsets=offsets)

    backend = types.SimpleNamespace(
        encode=encode,
        decoder=real.backend_tokenizer.decoder,
        pre_tokenizer=real.backend_tokenizer.pre_tokenizer,
        get_vocab=real.backend_tokenizer.get_vocab,
        get_added_tokens_decoder=real.backend_tokenizer.get_added_tokens_decoder,
    )
    tokenizer = types.SimpleNamespace(encode=real.encode, backend_tokenizer=backend)
    for seed in range(20):
        rng = random.Random(seed)
        words = rng.choices(["a", "be", "¨", "see", "¨ the", "four"], k=400)
        check(tokenizer, " ".join(words), 100, f"seed {seed}")


@pytest.mark.parametrize(
    "make, text",
    [(roberta, "a <|im_start|>b c\nd"), (gpt2, f"a <end>{' ' * 40}b c\nd")],
)
def test_spans_do_not_run_backwards(make, text):
    _, spans = tokens._encode(build(make), text)
    assert build(make).backend_tokenizer.encode(text).offsets != spans
    for bounds in zip(*spans, strict=True):
        assert list(bounds) == sorted(bounds)


def test_tokenizer_of_mlx_lm(encoded):
    check(TokenizerWrapper(build(gpt2)), PROSE[:5000], 100)
    assert max(encoded) < 1000


def test_truncation_of_the_tokenizer_file_is_not_obeyed():
    backend = gpt2()
    backend.enable_truncation(8)
    backend.enable_padding(length=512)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    streamed = sum(tokenize(cut(PROSE[:5000], 100), tokenizer), [])
    assert streamed == gpt2().encode(PROSE[:5000]).ids


def test_no_warning_about_the_length(caplog):
    backend = gpt2()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8)
    with caplog.at_level("WARNING", "transformers"):
        list(tokenize([PROSE[:5000]], tokenizer))
    assert not caplog.records


def test_tokens_that_change_too_late_are_refused():
    backend = gpt2()
    spelled = pre_tokenizers.Split(Regex(r"\w(?=[\s\S]*#)"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([spelled, backend.pre_tokenizer])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    texts = ["several words " * 100, "and then #"]
    pieces = tokenize(texts, tokenizer, batch=700)
    next(pieces)
    with pytest.raises(AllMemError, match="piece by piece"):
        list(pieces)
