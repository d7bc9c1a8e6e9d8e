"""A document is the text of its file, and its tokens are those of the whole text."""

import codecs
import functools
import io
import json
import os
import random
import types
from pathlib import Path
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

from allmem_mlx import document
from allmem_mlx.document import BLOCK, Document, tokenize
from allmem_mlx.errors import AllMemError, SettingError

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
    streamed = [i for ids in tokenize(cut(text, piece), tokenizer) for i in ids]
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

    original = document._encode
    monkeypatch.setattr(document, "_encode", encode)
    return lengths


@pytest.mark.parametrize("make", STREAMED, ids=lambda make: make.__name__)
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


def test_a_text_without_words_is_kept_until_one_comes(encoded):
    text = "first words " + "QUJD/0+" * 10_000 + " then some words again" * 300
    check(build(gpt2), text, 1000)
    assert max(encoded) > 70_000
    assert sum(encoded) < 5 * len(text)


def test_a_boundary_that_a_token_stretches_over_is_not_used():
    assert document._boundary(build(gpt2)).search("word word").start() == 4
    assert document._boundary(build(phrases)).search("word word") is None
    assert document._boundary(build(phrases)).search("word\nword").start() == 5
    assert document._boundary(build(anything)).search("word word\nword") is None


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
    assert set(document._encode(tokenizer, "two\nwords")[1]) == {(0, 9)}


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
    _, spans = document._encode(build(make), text)
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
    pieces = tokenize(["several words " * 100, "and then #"], tokenizer)
    next(pieces)
    with pytest.raises(AllMemError, match="piece by piece"):
        next(pieces)


# Files.


def write(folder: Path, data: bytes) -> Path:
    path = folder / "book.txt"
    path.write_bytes(data)
    return path


def read(source, piece: int = 65_536) -> tuple[str, Document]:
    opened = Document(source, piece)
    return "".join(opened.text()), opened


def refusal(source, piece: int = 65_536) -> str:
    """The message, which is one line and names the file."""
    with pytest.raises(AllMemError) as error:
        read(source, piece)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert ("standard input" if source == "-" else str(source)) in message
    return message


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 7, 65_536])
@pytest.mark.parametrize(
    "data, text",
    [
        (b"plain\ntext\n", "plain\ntext\n"),
        (codecs.BOM_UTF8 + "né".encode(), "né"),
        (b"a" + codecs.BOM_UTF8, "a\ufeff"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),
        (b"one\r\ntwo\rthree\n\rfour\r\r\n", "one\ntwo\nthree\n\nfour\n\n"),
        (b"end\r", "end\n"),
        ("第一章👩\r\n".encode(), "第一章👩\n"),
        (b"\n \t", "\n \t"),
    ],
)
def test_text_of_a_file(tmp_path, data, text, piece):
    path = write(tmp_path, data)
    assert read(path, piece)[0] == text
    assert read(str(path), piece)[1].replaced == 0


@pytest.mark.parametrize("piece", [1, 5, 65_536])
def test_bytes_that_are_not_utf8_are_counted(tmp_path, piece):
    data = b"a caf\xe9 and a na\xefve man in the first line of it\n" + b"\xc3"
    text, opened = read(write(tmp_path, data), piece)
    assert text == "a caf\ufffd and a na\ufffdve man in the first line of it\n\ufffd"
    assert opened.replaced == 3


def test_text_comes_in_pieces(tmp_path):
    path = write(tmp_path, b"word " * 100_000)
    assert max(map(len, Document(path).text())) == 65_536
    assert max(map(len, Document(path, piece=100).text())) == 100


def test_bytes_read(tmp_path):
    data = ("né " * 50_000).encode()
    opened = Document(write(tmp_path, data), piece=1000)
    assert opened.size == len(data)
    counts = [opened.bytes_read for _ in opened.text()]
    assert counts == sorted(counts)
    assert len(counts) == 201
    assert counts[-1] == len(data)


def test_tokens_of_a_file(tmp_path):
    path = write(tmp_path, PROSE[:20_000].replace("\n", "\r\n").encode())
    pieces = list(Document(path, piece=1000).pieces(build(gpt2)))
    assert len(pieces) > 10
    assert sum(pieces, []) == build(gpt2).encode(PROSE[:20_000])


def set_stdin(monkeypatch, data: bytes) -> io.BytesIO:
    buffer = io.BytesIO(data)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))
    return buffer


def test_standard_input(monkeypatch):
    buffer = set_stdin(
        monkeypatch, codecs.BOM_UTF8 + b"one\r\n\xe9 two and a few words"
    )
    text, opened = read("-", piece=5)
    assert text == "one\n\ufffd two and a few words"
    assert (opened.name, opened.size) == ("standard input", None)
    assert (opened.replaced, opened.bytes_read) == (1, 29)
    assert not buffer.closed


def test_standard_input_is_refused_as_a_file_is(monkeypatch):
    set_stdin(monkeypatch, b"")
    assert "empty" in refusal("-")
    set_stdin(monkeypatch, b"a\0b")
    assert "NUL" in refusal("-")
    monkeypatch.setattr("sys.stdin", None)
    assert "closed" in refusal("-")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_pipe_has_no_size():
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(b"some words")
    text, opened = read(f"/dev/fd/{reader}")
    os.close(reader)
    assert (text, opened.size, opened.bytes_read) == ("some words", None, 10)


def test_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.txt")


def test_directory(tmp_path):
    assert "is a directory" in refusal(tmp_path)


def test_name_of_two_lines(tmp_path):
    with pytest.raises(AllMemError) as error:
        Document(tmp_path / "two\nlines")
    assert len(str(error.value).splitlines()) == 1


def test_file_without_permission(tmp_path, monkeypatch):
    def forbidden(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(document, "open", forbidden, raising=False)
    assert "Permission denied" in refusal(write(tmp_path, b"text"))


@pytest.mark.parametrize("data", [b"", codecs.BOM_UTF8])
def test_empty_file(tmp_path, data):
    assert "is empty" in refusal(write(tmp_path, data))


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
@pytest.mark.parametrize("end", ["LE", "BE"])
def test_utf16_and_utf32(tmp_path, encoding, end):
    data = "\ufeffsome words".encode(encoding + end)
    message = refusal(write(tmp_path, data))
    assert f"is {encoding} text" in message
    assert f"iconv -f {encoding} -t UTF-8" in message


def test_binary_file(tmp_path):
    with pytest.raises(AllMemError, match="NUL"):
        Document(write(tmp_path, b"a\0b"))
    assert "NUL" in refusal(write(tmp_path, b"\x7fELF\0\0\1"))
    assert "NUL" in refusal(write(tmp_path, "some words".encode("UTF-16LE")))


def test_nul_far_into_the_file(tmp_path):
    path = write(tmp_path, b"word " * BLOCK + b"\0" + b"word " * BLOCK)
    opened = Document(path)
    assert "".join(next(opened.text())).startswith("word word")
    assert "NUL" in refusal(path, piece=1000)


def test_file_that_is_mostly_not_utf8(tmp_path):
    data = "Она сказала: нет".encode("cp1251")
    assert "not UTF-8" in refusal(write(tmp_path, data))
    # One character in ten is let through.
    assert read(write(tmp_path, b"\xe9" + b"123456789"))[1].replaced == 1
    assert "not UTF-8" in refusal(write(tmp_path, b"\xe9" + b"12345678"))
    # Only the first 64 KiB are judged.
    late = b" " * BLOCK + b"\xe9" * BLOCK
    assert read(write(tmp_path, late))[1].replaced == BLOCK


def test_reading_error_midway(monkeypatch):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(size)

    buffer = Failing(b"word " * BLOCK)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))
    assert f"after {BLOCK} bytes (Input/output error)" in refusal("-")


def test_refused_file_is_closed(tmp_path, monkeypatch):
    files = []

    def remember(*args):
        files.append(open(*args))
        return files[-1]

    monkeypatch.setattr(document, "open", remember, raising=False)
    refusal(write(tmp_path, b""))
    refusal(write(tmp_path, b" " * BLOCK + b"\0"))
    read(write(tmp_path, b"text"))
    assert [file.closed for file in files] == [True] * 3


@pytest.mark.parametrize("piece", [0, -1])
def test_impossible_piece(tmp_path, piece):
    with pytest.raises(SettingError, match="at least 1"):
        Document(write(tmp_path, b"text"), piece)


@pytest.mark.real_model
@pytest.mark.parametrize("piece", [257, 8192])
def test_a_real_book(smollm2, book, piece):
    _, tokenizer = smollm2
    pieces = [*Document(book, piece=piece).pieces(tokenizer)]
    text = book.read_bytes().decode().replace("\r\n", "\n")
    assert sum(pieces, []) == tokenizer.encode(text, add_special_tokens=False)
    assert len(pieces) > 50_000 // max(piece, 2 * 64)
