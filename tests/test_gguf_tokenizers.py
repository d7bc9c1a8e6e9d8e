"""Tokenizers from the metadata of GGUF files."""

import io
import json
import pydoc_data.topics
import random
import unicodedata

import pytest
from gguf_files import save_gguf
from helpers import slow_beyond, tiny_base_folder
from llama_cpp import LlamaCpp

from allmem_mlx.convert.gguf import unpack
from allmem_mlx.convert.gguf.pre_tokenizers import PRE_TOKENIZERS
from allmem_mlx.model_folder import load_tokenizer, read_config

TEXTS = [
    "Hello, world!",
    "  two   three    and many          spaces ",
    "\n\n\n line\n\n  breaks\r\n\ttabs\t\t",
    "naïve café Ångström — “quotes” …",
    "🚀 😶‍🌫️ 👩‍👩‍👧 and é",
    "我想在apple工作1314151天～ 日本語",
    "1234567890 3.14159 1,000,000",
    "<0x41> ▁literal▁",
    "def f(x):\n    return  x + 1\n",
    " ",
    "",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, request):
    size = getattr(request, "param", 700)
    return tiny_base_folder(tmp_path_factory.mktemp("base"), "llama", vocab_size=size)


@pytest.fixture
def tokenizer(base, tmp_path):
    """Of a file with some metadata, as mlx-lm loads it."""

    def get(**changed):
        metadata = {f"tokenizer.{key}": value for key, value in changed.items()}
        save_gguf(base, tmp_path / "tiny.gguf", **metadata)
        (tmp_path / "new").mkdir()
        unpack(tmp_path / "tiny.gguf", tmp_path / "new", "float32")
        return load_tokenizer(tmp_path / "new", read_config(tmp_path / "new"))

    return get


def padded(metadata, size):
    """With tokens that are not used: llama.cpp wants one for each embedding."""
    more = size - len(metadata["ggml.tokens"])
    tokens = [*metadata["ggml.tokens"], *(f"[PAD{i}]" for i in range(more))]
    types = [*metadata["ggml.token_type"], *(5 for _ in range(more))]
    return {**metadata, "ggml.tokens": tokens, "ggml.token_type": types}


def byte_level(**changed):
    """A vocabulary of single bytes and some others."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*bytes_to_unicode().values(), "He", "Ġa", "12", "123"]
    tokens += ["<s>", "<|im_end|>", "<think>", "<|eot_id|>", "", "[PAD1]"]
    types = [1] * (len(tokens) - 6) + [3, 3, 4, 3, 5, 5]
    return {
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": ["H e", "Ġ a", "1 2", "12 3"],
        "ggml.pre": "llama-bpe",
        "ggml.bos_token_id": tokens.index("<s>"),
        "ggml.eos_token_id": tokens.index("<|im_end|>"),
        **changed,
    }


def test_byte_level(tokenizer):
    tokens = tokenizer(**byte_level())
    assert tokens.bos_token == "<s>" and tokens.eos_token == "<|im_end|>"
    pieces = tokens.convert_ids_to_tokens(tokens.encode("He a 1234<think>é<|im_end|>"))
    assert pieces[:4] == ["<s>", "He", "Ġa", "Ġ"]
    assert pieces[4:] == ["123", "4", "<think>", "Ã", "©", "<|im_end|>"]
    for text in TEXTS:
        ids = tokens.encode(text, add_special_tokens=False)
        assert tokens.decode(ids) == text


def test_how_digits_are_cut(tokenizer):
    tokens = tokenizer(**byte_level(**{"ggml.pre": "qwen2"}))
    assert tokens.tokenize("123") == ["1", "2", "3"]
    assert tokens.encode("e\u0301") == tokens.encode("é")  # NFC


def test_tokens_that_end_an_answer(tokenizer):
    given = byte_level()
    tokens = given["ggml.tokens"]
    given["ggml.eot_token_id"] = tokens.index("<think>")
    expected = {tokens.index(t) for t in ("<|im_end|>", "<think>", "<|eot_id|>")}
    assert tokenizer(**given).eos_token_ids == expected


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_the_frame(tokenizer, bos, eos):
    flags = {"ggml.add_bos_token": bos, "ggml.add_eos_token": eos}
    tokens = tokenizer(**byte_level(**flags))
    expected = ["<s>"] * bos + ["He"] + ["<|im_end|>"] * eos
    assert tokens.convert_ids_to_tokens(tokens.encode("He")) == expected
    ids = tokens.encode("He", add_special_tokens=False)
    assert tokens.convert_ids_to_tokens(ids) == ["He"]


def test_tokens_that_end_an_answer_of_gpt_oss(tokenizer):
    """A message of it is followed by others."""
    given = byte_level()
    names = ["<|return|>", "<|call|>", "<|end|>", "<|endoftext|>"]
    given["ggml.tokens"] += names
    given["ggml.token_type"] += [3] * 4
    given["ggml.eot_token_id"] = given["ggml.tokens"].index("<|end|>")
    given["ggml.eos_token_id"] = given["ggml.tokens"].index("<|return|>")
    ids = tokenizer(**given).eos_token_ids
    expected = [given["ggml.tokens"].index(names[i]) for i in (0, 1, 3)]
    assert sorted(ids) == sorted(expected)


@pytest.fixture(scope="module")
def trained():
    """A byte-level vocabulary whose tokens go over the ends of words, of numbers and of
    lines, wherever the pre-tokenizer lets them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = cut
    topics = "\n".join(pydoc_data.topics.topics.values())
    texts = [*topics.splitlines(keepends=True)[:1000], *(3 * x for x in 20 * TEXTS)]
    texts += 20 * [a + b for a in PIECES for b in PIECES]
    options = {"vocab_size": 1800, "initial_alphabet": cut.alphabet()}
    trainer = trainers.BpeTrainer(**options, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<s>", "<|im_end|>"]
    return {
        "ggml.tokens": tokens,
        "ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "ggml.bos_token_id": len(tokens) - 2,
        "ggml.eos_token_id": len(tokens) - 1,
    }


PIECES = (
    *(
        "a",
        "B",
        "é",
        "e\u0301",
        "ß",
        "Ł",
        "ǅ",
        "ʰ",
        "我",
        "は",
        "한",
        "ก",
        "न",
        "ि",
        "ـ",
    ),
    *("1", "23", "４", "½", "Ⅻ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000"),
    *("'s", "'LL", "'", "’", "-", "--", "/", "//", "_", "(", ")", "!", "…", "$", "+"),
    *("<", "=", "^", "~", "|", "`", "🚀", "👩‍👩‍👧", "\u200d"),
)


@pytest.mark.parametrize("base", [1900], indirect=True)
@pytest.mark.parametrize("name", slow_beyond(3, PRE_TOKENIZERS))
def test_llama_cpp_cuts_the_same(tokenizer, trained, tmp_path, name):
    """Token for token, whatever stands beside what, but for what llama.cpp says that it
    does not do: normalise, and tell cases of letters and marks beyond ASCII."""
    pytest.importorskip("xllamacpp")
    texts = [*TEXTS, *(a + b for a in PIECES for b in PIECES)]
    if name in ("tekken", "gpt-4o", "kanana2"):
        texts = [text for text in texts if text.isascii()]
    if name == "deepseek-coder":  # whose spaces are one to llama.cpp
        texts = [text for text in texts if "\u3000" not in text]
    tokens = tokenizer(**padded(trained, 1900), **{"ggml.pre": name})
    other = LlamaCpp(tmp_path / "tiny.gguf")
    for text in random.Random(0).sample(texts, 400):
        normal = unicodedata.normalize("NFC", text)
        given = normal if PRE_TOKENIZERS[name].nfc else text
        assert tokens.encode(text) == other.tokens(given), text


def test_chat_templates(tokenizer):
    named = {"chat_templates": ["tool_use"], "chat_template.tool_use": "tools"}
    tokens = tokenizer(**byte_level(chat_template="{{ messages[0].role }}", **named))
    message = [{"role": "user", "content": "Hello"}]
    assert tokens.apply_chat_template(message, tokenize=False) == "user"
    other = {"tokenize": False, "chat_template": "tool_use"}
    assert tokens.apply_chat_template(message, **other) == "tools"


def train(**options):
    """A small model by sentencepiece itself."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    lines = "\n".join(pydoc_data.topics.topics.values()).splitlines()[:3000]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece(model, own=(), **changed):
    """A sentencepiece model as llama.cpp's converter writes it."""
    types = [
        *((model.is_unknown, 2), (model.is_control, 3)),
        *((model.is_unused, 5), (model.is_byte, 6)),
    ]
    ids = range(model.vocab_size())
    tokens = [model.id_to_piece(i) for i in ids]
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.scores": [model.get_score(i) for i in ids],
        "ggml.token_type": [
            4
            if tokens[i] in own
            else next((kind for is_kind, kind in types if is_kind(i)), 1)
            for i in ids
        ],
        "ggml.merges": None,
        "ggml.bos_token_id": model.bos_id(),
        "ggml.eos_token_id": model.eos_id(),
        "ggml.unknown_token_id": model.unk_id(),
        **changed,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tokenizer, prefix):
    """Token for token what sentencepiece makes of a text, with and without a space
    before it."""
    model = train(add_dummy_prefix=prefix)
    tokens = tokenizer(**sentencepiece(model, **{"ggml.add_space_prefix": prefix}))
    topics = list(pydoc_data.topics.topics.values())
    for text in [*TEXTS, *topics[10:60]]:
        ids = tokens.encode(text, add_special_tokens=False)
        assert ids == model.encode(text), text
        assert tokens.decode(ids) == text.replace("▁", " ")  # one and the same to it
    assert tokens.encode("Hello") == [model.bos_id(), *model.encode("Hello")]


def test_sentencepiece_s_own_tokens(tokenizer):
    own = ["<turn>", "\n\n", "▁▁▁▁"]
    model = train(add_dummy_prefix=False, user_defined_symbols=own)
    given = sentencepiece(model, own, **{"ggml.add_space_prefix": False})
    given["ggml.tokens"] = [
        "    " if token == "▁▁▁▁" else token for token in given["ggml.tokens"]
    ]
    tokens = tokenizer(**given)
    for text in [*TEXTS, "a<turn>b\n\n\n\n\nc         d<turn>"]:
        ids = tokens.encode(text, add_special_tokens=False)
        assert ids == model.encode(text), text
        assert tokens.decode(ids) == text.replace("▁", " ")


OWN = ["<table>", "<|turn>", "<unused7>"]


@pytest.fixture(scope="module")
def gemma4():
    """A tokenizer of transformers' class for Gemma, and the metadata that llama.cpp's
    converter makes of it."""
    from transformers import GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    model = train(add_dummy_prefix=False, user_defined_symbols=OWN)
    tokens = [model.id_to_piece(i) for i in range(model.vocab_size())]
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = {token: model.get_score(i) for token, i in vocab.items()}
    merges = [tuple(merge) for merge in generate_merges(vocab, scores)]
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    none = {"pad_token": None, "mask_token": None}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, **special, **none)
    tokenizer.add_tokens(OWN)
    kinds = {"<unk>": 3, "<s>": 3, "</s>": 3}
    metadata = {
        "ggml.model": "gemma4",
        "ggml.pre": None,
        "ggml.tokens": tokens,
        "ggml.scores": [-1000.0] * len(tokens),
        "ggml.token_type": [
            6 if model.is_byte(i) else kinds.get(token, 1)
            for i, token in enumerate(tokens)
        ],
        "ggml.merges": [" ".join(merge) for merge in merges],
        "ggml.bos_token_id": vocab["<s>"],
        "ggml.eos_token_id": vocab["</s>"],
        "ggml.unknown_token_id": vocab["<unk>"],
        "ggml.add_space_prefix": False,
        "ggml.add_bos_token": True,
    }
    return tokenizer, metadata


def test_gemma4(tokenizer, gemma4):
    """Token for token transformers' class, with the symbols that no merge makes."""
    other, metadata = gemma4
    tokens = tokenizer(**metadata)
    topics = list(pydoc_data.topics.topics.values())
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 14))) for _ in range(200)]
    marked = ["a<table>b", "<|turn>user\n\nHi <unused7> ", "  <table>\n"]
    for text in [*TEXTS, *topics[10:40], *texts, *marked]:
        ids = tokens.encode(text, add_special_tokens=False)
        assert ids == other.encode(text, add_special_tokens=False), text
        assert tokens.decode(ids) == text.replace("▁", " ")
    assert tokens.encode("Hello")[0] == tokens.bos_token_id


def test_llama_cpp_cuts_as_gemma4(tokenizer, gemma4, tmp_path):
    """But for the symbols, which it cuts, and for joined lines."""
    pytest.importorskip("xllamacpp")
    metadata = padded(gemma4[1], 700)
    metadata["ggml.scores"] = [-1000.0] * 700
    tokens = tokenizer(**metadata)
    other = LlamaCpp(tmp_path / "tiny.gguf", 8192)
    topics = list(pydoc_data.topics.topics.values())
    for text in [*TEXTS, *topics[10:40]]:
        assert tokens.encode(text) == other.tokens(text), text


def test_transformers_cuts_the_same(tokenizer, tmp_path):
    """Its own reader of GGUF. It puts no space before one; sentencepiece does."""
    from transformers import AutoTokenizer

    model = train()
    tokens = tokenizer(**sentencepiece(model))
    other = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in (text for text in TEXTS if text[:1] != " "):
        assert tokens.tokenize(text) == other.tokenize(text), text
