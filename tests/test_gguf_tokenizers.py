"""Tokenizers from the metadata of GGUF files."""

import io
import pydoc_data.topics

import pytest
from gguf_files import save_gguf
from helpers import tiny_base_folder

from allmem_mlx.convert.gguf import unpack
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
def base(tmp_path_factory):
    return tiny_base_folder(tmp_path_factory.mktemp("base"), "llama", vocab_size=600)


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


def test_transformers_cuts_the_same(tokenizer, tmp_path):
    """Its own reader of GGUF. It puts no space before one; sentencepiece does."""
    from transformers import AutoTokenizer

    model = train()
    tokens = tokenizer(**sentencepiece(model))
    other = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in (text for text in TEXTS if text[:1] != " "):
        assert tokens.tokenize(text) == other.tokenize(text), text
