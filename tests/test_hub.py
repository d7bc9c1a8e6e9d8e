"""Models of the hub: the real huggingface_hub against a hub on this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest
from helpers import assert_refused, tiny_base_folder
from hub_server import TOKEN, Hub
from processes import run, start, wait_for

from allmem_mlx.errors import SettingError
from allmem_mlx.hub import check_upload, name_of, origin

TOKENS = {"HF_TOKEN"}
SIZES = ("--window", "48", "--sinks", "4", "--chunk", "64")
NEEDED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
# What a repository of the hub also holds, and nobody here needs.
JUNK = {
    ".gitattributes": b"",
    "consolidated.safetensors": b"junk",
    "model.gguf": b"junk",
    "modeling_tiny.py": b"raise SystemExit('code of a repository was run')",
    "onnx/config.json": b"{}",
    "onnx/model.onnx": b"junk",
    "original/params.json": b"{}",
    "pytorch_model.bin": b"junk",
}
CARD = b"""\
---
license: other
license_name: tiny-1.0
language: [en, eo]
tags: [text-generation, mlx]
---
# Tiny
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tiny_base_folder(tmp_path_factory.mktemp("base") / "base")
    (folder / "README.md").write_bytes(CARD)
    return folder


@pytest.fixture(scope="module")
def large_base(tmp_path_factory) -> Path:
    """25 MB: huggingface_hub keeps what came before a cut in steps of 10 MB."""
    folder = tmp_path_factory.mktemp("large") / "base"
    return tiny_base_folder(folder, intermediate_size=16384)


RESOLVE = """
import json, sys
from allmem_mlx.errors import AllMemError
from allmem_mlx.hub import resolve
for repo, revision in json.loads(sys.argv[1]):
    try:
        print(resolve(repo, revision))
    except AllMemError as error:
        print(error.exit_code, error)
"""


WITHOUT_WAITING = f"""
import time
def sleep(seconds): raise AssertionError(f"waits for {{seconds}} s")
time.sleep = sleep
{RESOLVE}"""


class User:
    """Somebody with an empty cache who runs commands."""

    def __init__(self, folder: Path, home: Path, url: str):
        self.folder, self.cache = folder, home / "hub"
        # Without xet, which is a protocol of its own: files are plain LFS objects.
        self.imports = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
        self.imports["HF_HOME"] = str(home)

    def _options(self, env: dict[str, str]) -> dict:
        """Of a process; huggingface_hub looks at all but the token when it is
        imported."""
        return {"env": env, "imports": self.imports, "fresh": bool(env.keys() - TOKENS)}

    def start(self, *command, **env):
        return start(*command, **self._options(env))

    def run(self, *command, **env) -> subprocess.CompletedProcess:
        return run(*command, **self._options(env))

    def resolve(self, repo: str, revision: str | None = None, **env) -> str:
        """What ``hub.resolve`` returns, or the exit code and what it says."""
        ((line),) = self.resolve_all([(repo, revision)], **env)
        return line

    def resolve_all(self, cases, code: str = RESOLVE, **env) -> list[str]:
        result = self.run("-c", code, json.dumps(list(cases)), **env)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode().splitlines()

    def convert(self, repo: str, *flags, **env):
        """Converts to ``new``."""
        new = ("--mlx-path", self.folder / "new")
        return self.run("convert", "--hf-path", repo, *new, *SIZES, *flags, **env)

    def card(self) -> str:
        return (self.folder / "new" / "README.md").read_text()

    def left(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[int, Path]:
    """The same for all hubs and users, one after the other: the port of a hub, and the
    home of a user's cache."""
    with Hub() as hub:
        return hub.server_port, tmp_path_factory.mktemp("home") / "hf"


@pytest.fixture
def hub(place):
    with Hub(place[0]) as hub:
        yield hub


@pytest.fixture
def user(hub, place, tmp_path):
    shutil.rmtree(place[1], ignore_errors=True)
    (tmp_path / "user").mkdir()
    return User(tmp_path / "user", place[1], hub.url)


def assert_converted(result, user: User, base: Path) -> None:
    assert result.returncode == 0, result.stderr.decode()
    assert user.left() == {"new"}
    weights = mx.load(str(user.folder / "new" / "model.safetensors"))
    for file in base.glob("model*.safetensors"):
        for name, x in mx.load(str(file)).items():
            assert mx.array_equal(weights[name], x), name


class TestConvert:
    def test_only_what_is_needed_is_downloaded(self, hub, user, base):
        hub.add("org/tiny", base)
        commit = hub.add("org/tiny", JUNK)
        assert_converted(user.convert("org/tiny"), user, base)
        wanted = NEEDED | {"README.md", "model.safetensors"}
        assert sorted(set(hub.downloaded())) == sorted(wanted)
        card = user.card()
        assert f"commit `{commit}`" in card and "base_model: org/tiny" in card

    def test_shards(self, hub, user, base, tmp_path):
        sharded = sharded_copy(base, tmp_path / "sharded")
        hub.add("org/tiny", sharded)
        assert_converted(user.convert("org/tiny"), user, sharded)
        assert {name for name in hub.downloaded() if "safetensors" in name} == {
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        }

    def test_pickles(self, hub, user, base, tmp_path):
        """Where there are no safetensors; without network too, and not in vain."""
        import torch
        from safetensors.torch import load_file

        folder = shutil.copytree(base, tmp_path / "pickled")
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        hub.add("org/tiny", folder)
        hub.add("org/tiny", {"training_args.bin": b"junk"})
        command = ("--hf-path", "org/tiny", "--mlx-path", user.folder / "new")
        result = user.run("-c", WITHOUT_TORCH, *command)
        words = "pytorch_model.bin needs PyTorch: pip install 'allmem-mlx[torch]'"
        assert_refused(result, 1, words)
        assert "pytorch_model.bin" not in hub.downloaded()
        result = user.convert("org/tiny", HF_HUB_OFFLINE="1")
        assert_refused(result, 1, "and is not, or not completely, in")

        assert_converted(user.convert("org/tiny"), user, base)
        assert "training_args.bin" not in hub.downloaded()
        assert "base_model: org/tiny" in user.card()
        shutil.rmtree(user.folder / "new")
        assert_converted(user.convert("org/tiny", HF_HUB_OFFLINE="1"), user, base)

    def test_a_private_repository(self, hub, user, base):
        """The server refuses a token that is sent to the host of the large files."""
        hub.add("org/tiny", base, private=True)
        result = user.convert("org/tiny")
        assert_refused(result, 1, "org/tiny", "access", "hf auth login", "HF_TOKEN")
        assert not user.left()
        folder = Path(user.resolve("org/tiny", HF_TOKEN=TOKEN))
        assert (folder / "model.safetensors").exists()

    def test_a_revision(self, hub, user, base):
        old = hub.add("org/tiny", base, branch="v1")
        hub.add("org/tiny", base)
        new = hub.add("org/tiny", JUNK)
        result = user.convert("org/tiny", "--revision", "v1")
        assert_converted(result, user, base)
        assert f"commit `{old}`" in user.card()
        cases = {"v1": old, old: old, "main": new, None: new}
        lines = user.resolve_all([("org/tiny", revision) for revision in cases])
        assert [Path(line).name for line in lines] == list(cases.values())

    def test_a_new_revision_with_the_same_weights(self, hub, user, base):
        """They are not downloaded again, and are in its folder too."""
        hub.add("org/tiny", base)
        user.resolve("org/tiny")
        hub.requests.clear()
        hub.add("org/tiny", {"README.md": b"new"})
        folder = Path(user.resolve("org/tiny"))
        assert NEEDED | {"README.md", "model.safetensors"} == set(os.listdir(folder))
        assert hub.downloaded() == ["README.md"]

    def test_an_unsupported_model_is_refused_before_its_weights_come(self, hub, user):
        files = {"config.json": b'{"model_type": "mamba"}', "model.safetensors": b"x"}
        hub.add("org/mamba", files)
        assert_refused(user.convert("org/mamba"), 1, "'mamba'")
        assert "model.safetensors" not in hub.downloaded()
        assert not user.left()

    def test_impossible_settings_are_too(self, hub, user, base):
        hub.add("org/tiny", base)
        assert_refused(user.convert("org/tiny", "--window", "0"), 2, "window")
        assert "model.safetensors" not in hub.downloaded()


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("convert", run_name="__main__")
"""


def sharded_copy(base: Path, folder: Path) -> Path:
    """As transformers saves a model that is too large for one file."""
    shutil.copytree(base, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    names, where = sorted(weights), {}
    for i, part in enumerate([names[::2], names[1::2]], 1):
        file = f"model-{i:05}-of-00002.safetensors"
        where.update(dict.fromkeys(part, file))
        shard = {name: weights[name] for name in part}
        mx.save_safetensors(str(folder / file), shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


class TestFaults:
    def test_a_cut_connection_is_resumed(self, hub, user, large_base):
        hub.add("org/tiny", large_base)
        hub.cut_after = 15_000_000
        assert_converted(user.convert("org/tiny"), user, large_base)
        asked = [r.headers.get("Range") for r in hub.requests if "/cdn/" in r.path]
        assert asked == [None, f"bytes={10 * 2**20}-"]

    def test_ctrl_c_while_downloading(self, hub, user, large_base):
        """It ends at once, leaves nothing half done, and complete files are kept."""
        hub.add("org/tiny", large_base)
        hub.stall_after = 5_000_000  # the rest does not come
        new = ("--mlx-path", user.folder / "new")
        process = user.start("convert", "--hf-path", "org/tiny", *new, *SIZES)
        wait_for(hub.stalled.is_set, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert err.decode().splitlines()[-1] == "allmem_mlx convert: interrupted"
        assert not user.left() and not list(user.cache.rglob("*.incomplete"))

        hub.stall_after = None
        hub.requests.clear()
        assert_converted(user.convert("org/tiny"), user, large_base)
        assert hub.downloaded() == ["model.safetensors"]

    def test_without_network(self, hub, user, base, tmp_path):
        """What is in the cache works; what is only partly there is refused at once."""
        hub.add("org/tiny", base)
        hub.add("org/partial", sharded_copy(base, tmp_path / "sharded"))
        cached = user.resolve("org/tiny")
        hub.fail["model-00002"] = 404
        assert user.resolve("org/partial").startswith("1 org/partial could not be")
        (Path(cached) / "README.md").unlink()  # mlx-lm does not download it
        cases = [("org/tiny", None), ("org/partial", None)]

        hub.requests.clear()
        tiny, partial = user.resolve_all(cases, HF_HUB_OFFLINE="1")
        assert tiny == cached
        assert re.match("1 org/partial could .* `HF_HUB_OFFLINE`", partial), partial
        assert not hub.requests
        gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
        tiny, partial = user.resolve_all(cases, WITHOUT_WAITING, **gone)
        assert tiny == cached
        assert re.match("1 org/partial .*refused.* check the network", partial), partial
        assert_converted(user.convert("org/tiny", **gone), user, base)

    def test_a_hub_that_does_not_answer(self, hub, user, base):
        hub.add("org/tiny", base)
        hub.silent.set()
        line = user.resolve("org/tiny", HF_HUB_ETAG_TIMEOUT="1")
        assert re.match("1 org/tiny .*timed out.* check the network", line), line

    def test_a_damaged_file_in_the_cache(self, hub, user, base):
        """The message says which file to delete, and that is enough."""
        hub.add("org/tiny", base)
        file = Path(user.resolve("org/tiny")) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        result = user.convert("org/tiny")
        assert_refused(result, 1, file, "damaged or incomplete", "delete")
        Path(re.search(r"delete (\S+) and", result.stderr.decode())[1]).unlink()
        assert_converted(user.convert("org/tiny"), user, base)

    def test_a_full_disk(self, hub, user, large_base):
        """A limit on the size of files stands in for it."""
        hub.add("org/tiny", large_base)
        new = user.folder / "new"
        refused = {
            "org/tiny": f"could not be downloaded to {user.cache} ([Errno 27] File too",
            large_base: f"{new} cannot be written: [write] Unable",
        }
        for source, words in refused.items():
            result = user.run("-c", SMALL_FILES, "--hf-path", source, "--mlx-path", new)
            assert_refused(result, 1, words)
            assert not user.left() and not list(user.cache.rglob("*.incomplete"))


SMALL_FILES = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
runpy.run_module("convert", run_name="__main__")
"""


@pytest.mark.slow
def test_what_is_said_of_bad_repositories(hub, user, base):
    weights = {"config.json": b"{}", "model.safetensors": b""}
    hub.add("org/bin", {"config.json": b"{}", "pytorch_model.bin": b""})
    hub.add("org/ggml", {"config.json": b"{}", "ggml.bin": b""})
    hub.add("org/peft", {"README.md": b"", "adapter_model.safetensors": b""})
    hub.add("org/gguf", {"README.md": b"", "tiny.Q4_0.gguf": b""})
    names = ("mmproj-F16", "Q8/a-00002-of-00002", "Q8/a-00001-of-00002")
    hub.add("org/parts", {f"{name}.gguf": b"" for name in names})
    hub.add("org/data", {"README.md": b"", "train.parquet": b""})
    hub.add("org/gated", weights, gated=True)
    hub.add("org/tiny", weights)
    hub.add("org/broken", weights)
    hub.fail["models/org/broken"] = 503
    cases = {
        ("org/nowhere", None): "1 org/nowhere is neither a local folder nor .* log in",
        ("org/gated", None): "1 org/gated .* ask for access on .*/org/gated if",
        ("org/tiny", "v9"): "1 org/tiny has no revision 'v9'",
        ("org/tiny", "0" * 40): "1 org/tiny has no revision",
        ("org/bin", None): "1 org/bin .*, but pytorch_model.bin: .*convert --hf-path",
        ("org/ggml", None): "1 org/ggml .*, but ggml.bin: .* save_pretrained",
        ("org/peft", None): "1 org/peft .* adapter_model.safetensors: .*merge_and_unl",
        ("org/gguf", None): "1 org/gguf .* `hf download org/gguf tiny.Q4_0.gguf`",
        (
            "org/parts",
            None,
        ): "1 org/parts has no model.*, but Q8/a-00001-of-00002.gguf: "
        r"`hf download org/parts --include 'Q8/a-\*-of-00002.gguf'`, then .* --gguf",
        ("org/data", None): "1 org/data has no weights",
        ("org/broken", None): "1 org/broken could not be downloaded .*503 Service",
        ("tiny", None): "1 tiny: no such model folder, .* ORG/NAME",
        ("../org/tiny", None): "1 ../org/tiny: no such model folder",
        ("org/ti ny", None): "1 org/ti ny: no such model folder",
        (str(base), "main"): "2 .* is a local path; only the hub has revisions",
        (str(base), None): str(base),
    }
    lines = user.resolve_all(cases)
    for line, pattern in zip(lines, cases.values(), strict=True):
        assert re.match(pattern, line), line

    line = user.resolve("org/tiny", HF_TOKEN="hf_wrong")
    assert re.match("1 org/tiny is neither .* a token that has access", line), line
    assert Path(user.resolve("org/gated", HF_TOKEN=TOKEN)).exists()


@pytest.mark.slow
class TestCost:
    """What a model costs is said before its weights are downloaded."""

    def cost(self, user, *flags, **env):
        lengths = ("--lengths", "100")
        return user.run("allmem_mlx.cost", "--model", *flags, *lengths, **env)

    def test_only_its_configuration_is_downloaded(self, hub, user, base):
        old = hub.add("org/tiny", base, branch="v1")
        hub.add("org/tiny", {"config.json": b'{"model_type": "mamba"}'})
        assert_refused(self.cost(user, "org/tiny"), 1, "org/tiny: model_type 'mamba'")
        out = user.folder / "out.json"
        flags = ("--window", "256", "--json", out)
        result = self.cost(user, "org/tiny", "--revision", "v1", *flags)
        assert result.returncode == 0, result.stderr.decode()
        assert set(hub.downloaded()) == {"config.json"}
        said, sizes = result.stdout.decode(), json.loads(out.read_text())["sizes"]
        weights = mx.load(str(base / "model.safetensors")).values()
        assert sizes["all_weights"] == sum(x.nbytes for x in weights)
        command = "convert --hf-path org/tiny --revision v1 --window 256 --mlx-path"
        assert f"Go on with: allmem_mlx {command} NEW_FOLDER\n" in said
        offline = {"HF_HUB_OFFLINE": "1"}
        again = self.cost(user, "org/tiny", "--revision", old, *flags, **offline)
        assert again.stdout.decode().splitlines()[:5] == said.splitlines()[:5]

    def test_refused(self, hub, user, base):
        hub.add("org/gguf", {"README.md": b"", "tiny.Q4_0.gguf": b""})
        hub.add("org/gated", base, gated=True)
        cases = {
            "org/nowhere": "org/nowhere is neither a local folder nor a repository",
            "org/gguf": "org/gguf has no config.json",
            "org/gated": "ask for access on",
        }
        for name, said in cases.items():
            assert_refused(self.cost(user, name), 1, said)
        offline = self.cost(user, "org/tiny", HF_HUB_OFFLINE="1")
        assert_refused(offline, 1, "org/tiny could not be downloaded", "HF_HUB_OFFLINE")


class TestUpload:
    def test_there_and_back(self, hub, user, base):
        """What was uploaded is downloaded by somebody without it, who runs it."""
        result = user.convert(
            base, "--upload-repo", "reader/tiny-allmem", HF_TOKEN=TOKEN
        )
        assert_converted(result, user, base)
        assert b"/reader/tiny-allmem" in result.stdout
        new = user.folder / "new"
        uploaded = hub.repos["reader/tiny-allmem"].commits.popitem()[1]
        files = {path.name: path.read_bytes() for path in new.iterdir()}
        assert uploaded == files
        assert "--model reader/tiny-allmem" in user.card()
        assert str(base) not in user.card()

        hub.add("reader/tiny-allmem", uploaded)
        assert not list(user.cache.rglob("*.safetensors"))
        say = ("--prompt", "Hello", "--max-tokens", "3", "--ignore-chat-template")
        expected = user.run("allmem_mlx.generate", "--model", new, *say)
        model = ("--model", "reader/tiny-allmem")
        result = user.run("allmem_mlx.generate", *model, *say)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout.splitlines()[:3] == expected.stdout.splitlines()[:3]
        assert "allmem.py" not in hub.downloaded()

    def test_a_failure_leaves_the_folder(self, hub, user, base):
        hub.fail["/api/models/.*/commit"] = 403
        result = user.convert(base, "--upload-repo", "reader/x", HF_TOKEN=TOKEN)
        assert result.returncode == 1
        last = result.stderr.decode().splitlines()[-1]
        assert f"{user.folder / 'new'} is complete, but was not uploaded" in last
        assert "hf upload reader/x" in last and "allowed to write" in last
        assert (user.folder / "new" / "model.safetensors").exists()

    def test_what_cannot_succeed_is_refused_before_the_conversion(self, user, base):
        result = user.convert(base, "--upload-repo", "o/x")
        assert_refused(result, 1, "o/x", "needs a token", "hf auth login")
        assert not user.left()
        with pytest.raises(SettingError, match="'x' is not .* ORG/NAME"):
            check_upload("x")


def test_a_base_model_is_not_loaded_as_it_is(hub, user, base):
    """Nor are its weights downloaded."""
    commit = hub.add("org/tiny", base)
    model = ("--model", "org/tiny", "--prompt", "hi")
    result = user.run("allmem_mlx.generate", *model)
    advice = f"allmem_mlx convert --hf-path org/tiny --revision {commit} "
    assert_refused(result, 1, "not an AllMem model", advice)
    assert "model.safetensors" not in hub.downloaded()


# Python reports what it is about to do to audit hooks: a signal at an exact moment.
INTERRUPTED = """
import os, runpy, sys
event, part, number = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
sent = []
def hook(name, args):
    if name == event and part in str(args[0]) and "a/.new-" in str(args[0]):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
sys.addaudithook(hook)
runpy.run_module("convert", run_name="__main__")
"""


@pytest.mark.parametrize(
    "event, part, number",
    [
        ("os.mkdir", "", signal.SIGINT),
        ("open", "safetensors.index.json", signal.SIGTERM),  # the weights are written
        ("open", "README.md", signal.SIGINT),
        ("os.rename", "", signal.SIGTERM),
    ],
)
def test_an_interrupted_conversion_leaves_nothing(user, base, event, part, number):
    new = user.folder / "a" / "new"
    signalled = (event, part, int(number))
    result = user.run(
        "-c", INTERRUPTED, *signalled, "--hf-path", base, "--mlx-path", new
    )
    assert result.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert result.stderr.decode().splitlines()[-1] == "allmem_mlx convert: interrupted"
    assert not user.left()


def test_help_is_quick():
    code = (
        "import runpy, sys; sys.argv[1:] = ['-h']\n"
        "try: runpy.run_module('{}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    for name in ("convert", "allmem_mlx.generate", "allmem_mlx.chat"):
        result = run("-c", code.format(name), fresh=True)
        assert b"--" in result.stdout
        loaded = set(result.stderr.decode().split())
        assert not loaded & {"huggingface_hub", "transformers", "mlx_lm"}, name


class TestCard:
    def test_what_the_source_says_is_carried_over(self, user, base):
        from huggingface_hub import ModelCard

        from allmem_mlx.convert import convert

        new = user.folder / "new"
        convert(base, new, quantize=True, q_bits=8, q_group_size=32, window=48)
        data = ModelCard.load(new / "README.md").data.to_dict()
        assert data == {
            "library_name": "mlx",
            "pipeline_tag": "text-generation",
            "license": "other",
            "license_name": "tiny-1.0",
            "language": ["en", "eo"],
            "tags": ["text-generation", "mlx", "allmem"],
        }
        card = user.card()
        for words in (
            "window of 48 tokens",
            "8 bits (affine, groups of 32)",
            "| family | qwen3 |",
            "alpha is 0",
            "allmem_mlx generate --model new",
        ):
            assert words in card, words
        assert str(base) not in card  # nobody's business

    def test_a_card_that_cannot_be_read(self, user, base, capsys):
        from allmem_mlx.convert import convert

        source = user.folder / "source"
        shutil.copytree(base, source)
        (source / "README.md").write_text("---\n: [\n---\n")
        convert(source, user.folder / "new", window=48)
        assert "licence is not carried over" in capsys.readouterr().err
        assert "license" not in user.card()


def test_the_origin_of_a_cached_folder():
    commit = "0" * 40
    folder = Path(f"/x/hub/models--org--a-b.c/snapshots/{commit}")
    assert origin(folder) == ("org/a-b.c", commit)
    for path in ("/x/models/a", f"/x/models--org--a/{commit}", "."):
        assert origin(Path(path)) is None


def test_the_origin_of_a_file_of_it(tmp_path):
    """Which is a link to somewhere else."""
    folder = tmp_path / "models--org--a" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "blob").touch()
    (folder / "a.gguf").symlink_to(tmp_path / "blob")
    assert origin(folder / "a.gguf") == ("org/a", "1")
    assert name_of(folder / "a.gguf") == "org/a/a.gguf"
    assert name_of(folder) == "org/a" and name_of(tmp_path / "blob") == "blob"
