"""A model in several GGUF files, and which file is meant."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
from gguf_files import save_gguf, write_gguf
from helpers import assert_close, assert_refused, random_tokens, tiny_base_folder
from llama_cpp import LlamaCpp
from processes import run

from allmem_mlx import load
from allmem_mlx.convert import convert, gguf
from allmem_mlx.convert.gguf.file import read_header
from allmem_mlx.errors import AllMemError
from allmem_mlx.gguf_names import all_parts, model_among
from allmem_mlx.model_folder import read_config

PARTS = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same model in one file and in three."""
    folder = tmp_path_factory.mktemp("parts")
    base = tiny_base_folder(folder / "base", "qwen3")
    save_gguf(base, folder / "whole.gguf")
    save_gguf(base, folder / "tiny.gguf", part=9)
    return folder


@pytest.fixture
def parts(files, tmp_path):
    """The three, to be spoilt."""
    found = sorted(files.glob("tiny-*.gguf"))
    assert [path.name for path in found] == [name(i) for i in (1, 2, 3)]
    for path in found:
        shutil.copy(path, tmp_path)
    return tmp_path


def name(i: int, count: int = PARTS) -> str:
    return f"tiny-{i:05}-of-{count:05}.gguf"


def rewrite(path, tensors=None, new=None, **changed) -> None:
    """A part with other metadata."""
    metadata, stored = read_header(path)
    arrays = {key: x.read(0, x.rows).reshape(x.shape) for key, x in stored.items()}
    arrays = {
        key: x for key, x in {**arrays, **(tensors or {})}.items() if x is not None
    }
    values = {key.replace("_", "."): value for key, value in changed.items()}
    write_gguf(new or path, {**metadata.values, **values}, arrays)


@pytest.mark.parametrize("given", range(1, PARTS + 1))
def test_any_part_will_do(files, tmp_path, given):
    for path, folder in (("whole.gguf", "whole"), (name(given), "parts")):
        (tmp_path / folder).mkdir()
        gguf.unpack(files / path, tmp_path / folder)
    whole, parts = (
        mx.load(str(tmp_path / folder / "model.safetensors"))
        for folder in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(mx.array_equal(parts[key], x) for key, x in whole.items())
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        expected = (tmp_path / "whole" / file).read_bytes()
        assert (tmp_path / "parts" / file).read_bytes() == expected


def test_a_hybrid(files, tmp_path):
    tokens = random_tokens(1, 60)
    logits = []
    for path in ("whole.gguf", name(2)):
        convert(files / path, tmp_path / path, window=64, sinks=4, chunk=64)
        logits.append(load(tmp_path / path)[0](tokens))
    assert mx.array_equal(*logits)


def test_llama_cpp_reads_them(files):
    """From the first."""
    pytest.importorskip("xllamacpp")
    tokens = random_tokens(1, 40)[0].tolist()
    actual, expected = (
        LlamaCpp(files / path).log_probabilities(tokens, 128)
        for path in (name(1), "whole.gguf")
    )
    assert_close("log probabilities", actual, expected, 1e-6)


def test_a_first_part_without_tensors(parts, tmp_path):
    """As llama-gguf-split makes it with --no-tensor-first-split."""
    _, first = read_header(parts / name(1))
    moved = {key: x.read(0, x.rows).reshape(x.shape) for key, x in first.items()}
    rewrite(parts / name(2), moved)
    rewrite(parts / name(1), dict.fromkeys(moved))
    assert not read_header(parts / name(1))[1]
    (tmp_path / "new").mkdir()
    gguf.unpack(parts / name(3), tmp_path / "new")
    assert "model.embed_tokens.weight" in mx.load(
        str(tmp_path / "new" / "model.safetensors")
    )


def missing(parts):
    (parts / name(2)).unlink()


def first_missing(parts):
    (parts / name(1)).unlink()


def renamed(parts):
    (parts / name(2)).rename(parts / "second.gguf")
    for i in (1, 3):
        (parts / name(i)).unlink()


def twice(parts):
    shutil.copy(parts / name(2), parts / name(3))


def swapped(parts):
    (parts / name(2)).rename(parts / "x")
    (parts / name(3)).rename(parts / name(2))
    (parts / "x").rename(parts / name(3))


def of_more(parts):
    rewrite(parts / name(3), split_count=4)


def of_another_size(parts):
    rewrite(parts / name(2), split_tensors_count=99)


def of_another_family(parts):
    rewrite(parts / name(2), general_architecture="llama")


def with_one_tensor_too_many(parts):
    rewrite(parts / name(2), {"blk.0.extra.weight": np.ones(4, np.float32)})


def with_another_s_tensor(parts):
    first = next(iter(read_header(parts / name(1))[1]))
    rewrite(parts / name(2), {first: np.ones(64, np.float32)})


def without_a_number(parts):
    rewrite(parts / name(2), split_no=None)


def without_a_total(parts):
    for i in (1, 2, 3):
        rewrite(parts / name(i), split_tensors_count=None)


def numbered_with_text(parts):
    rewrite(parts / name(2), split_no="one")


def cut_off(parts):
    content = (parts / name(3)).read_bytes()
    (parts / name(3)).write_bytes(content[:-100])


def not_gguf(parts):
    (parts / name(2)).write_bytes(b"hello")


def a_folder(parts):
    (parts / name(2)).unlink()
    (parts / name(2)).mkdir()


@pytest.mark.parametrize(
    "spoil, given, words",
    [
        (missing, 1, ["part 1 of 3", "missing", name(2)]),
        (missing, 3, ["part 3 of 3", "missing", name(2)]),
        (first_missing, 2, ["missing", name(1)]),
        (a_folder, 1, ["missing", name(2)]),
        (renamed, "second.gguf", ["part 2 of 3", "NAME-00001-of-00003.gguf"]),
        (twice, 1, [name(3), name(1), "split.no is 1", "should be 2"]),
        (twice, 3, [name(3), "part 2 of 3", "not what its name says"]),
        (swapped, 1, [name(2), "split.no is 2"]),
        (of_more, 1, [name(3), "split.count is 4", "should be 3"]),
        (of_another_size, 1, [name(2), "split.tensors.count is 99"]),
        (of_another_family, 1, [name(2), "general.architecture is llama"]),
        (with_one_tensor_too_many, 2, [name(1), "24 tensors", "have 25"]),
        (with_another_s_tensor, 1, [name(2), name(1), "have a tensor"]),
        (without_a_number, 1, [name(2), "split.no"]),
        (without_a_total, 1, [name(1), "split.tensors.count"]),
        (numbered_with_text, 1, [name(2), "split.no is one"]),
        (cut_off, 1, [name(3), "after the file's last byte"]),
        (not_gguf, 1, [name(2), "not a GGUF file"]),
    ],
    ids=lambda x: getattr(x, "__name__", str(x) if isinstance(x, int | str) else ""),
)
def test_refused(parts, spoil, given, words):
    """With one line, and before anything is made."""
    spoil(parts)
    before = sorted(parts.iterdir())
    file = given if isinstance(given, str) else name(given)
    with pytest.raises(AllMemError) as error:
        convert(parts / file, parts / "new")
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert sorted(parts.iterdir()) == before


def test_nothing_else_is_looked_at_first(parts, monkeypatch):
    """A missing part is said before the tokenizer is read."""
    missing(parts)
    monkeypatch.setattr(gguf, "Vocabulary", None)
    with pytest.raises(AllMemError, match="missing"):
        convert(parts / name(1), parts / "new")


def test_which_file_is_meant():
    files = [
        "mmproj-F16.gguf",
        "imatrix_unsloth.gguf_file",
        "Q8_0/model-00002-of-00002.gguf",
        "Q8_0/model-00001-of-00002.gguf",
    ]
    assert model_among(files) == files[3]
    assert model_among(files[:1]) == files[0]
    assert model_among(["b.gguf", "MTP/mtp-a.gguf", "c.gguf"]) == "b.gguf"
    assert all_parts(files[3]) == "Q8_0/model-*-of-00002.gguf"
    assert all_parts("model.gguf") is None


def test_folders_are_not_files(files, tmp_path):
    """The line names the file that could be meant."""
    shutil.copy(files / name(1), tmp_path / "mmproj-a.gguf")
    shutil.copy(files / name(1), tmp_path / name(1))
    to = ("--mlx-path", tmp_path / "new")
    file = tmp_path / name(1)
    result = run("convert", "--gguf", tmp_path, *to)
    assert_refused(result, 1, "is a folder", f"--gguf {file}")
    with pytest.raises(AllMemError, match=f"no config.json; .* --gguf {file}"):
        read_config(tmp_path)
    (tmp_path / "empty").mkdir()
    result = run("convert", "--gguf", tmp_path / "empty", *to)
    assert_refused(result, 1, "is a folder", "no GGUF file")
