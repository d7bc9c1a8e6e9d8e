"""The generate command and the Python API, run as a user would."""

import json
import os
import re
import signal
import subprocess

import mlx.core as mx
import pytest
from helpers import Generate, assert_close, assert_refused, feed, tiny_base_folder
from processes import Terminal, run

from allmem_mlx import generate, load, stream_generate
from allmem_mlx.convert import convert
from allmem_mlx.documents import Document
from allmem_mlx.errors import AllMemError, SettingError
from allmem_mlx.generate import setup_arg_parser

# Letters the tiny tokenizer knows.
TEXT = "HOW THE RING TURNS! " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    base = tiny_base_folder(path / "base", "qwen3")
    convert(base, path / "tiny", window=64, sinks=4, chunk=64)
    return path / "tiny"


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(TEXT)
    return path


class TestAPI:
    def test_names(self):
        """`allmem_mlx.generate` is the function, also after its module was imported."""
        code = (
            "import allmem_mlx; assert callable(allmem_mlx.generate)\n"
            "import allmem_mlx.generate; assert callable(allmem_mlx.generate)\n"
            "from allmem_mlx import generate, load, stream_generate"
        )
        assert run("-c", code, fresh=True).returncode == 0

    def test_a_stream_is_read_like_a_list(self, tiny, document):
        """Text, ids, an array and a document give the same tokens and counts."""
        model, tokenizer = tiny
        ids = tokenizer.encode(TEXT)
        prompts = {
            "text": TEXT,
            "ids": ids,
            "array": mx.array(ids),
            "document": Document(document, piece=7).pieces(tokenizer),
        }
        responses = {}
        for name, prompt in prompts.items():
            responses[name] = list(stream_generate(model, tokenizer, prompt, 12))
        tokens = {n: [r.token for r in rs] for n, rs in responses.items()}
        assert len(set(map(tuple, tokens.values()))) == 1
        for rs in responses.values():
            last = rs[-1]
            assert last.prompt_tokens == len(ids) == 1200
            assert last.generation_tokens == 12 and last.finish_reason == "length"
            assert last.tokens_read == 1212
            assert last.tokens_in_window == 68
            assert last.state_bytes == rs[0].state_bytes > 0

    def test_it_is_what_the_model_computes(self, tiny):
        """Greedy tokens are the arg max of logits fed by hand."""
        model, tokenizer = tiny
        ids = tokenizer.encode(TEXT)[:300]
        tokens = [r.token for r in stream_generate(model, tokenizer, ids, 8)]
        logits, _ = feed(model, mx.array([ids + tokens[:-1]]), [307])
        assert logits[0, -8:].argmax(-1).tolist() == tokens

    @pytest.mark.parametrize("step", [1, 7, 64, 100, 4096])
    def test_the_step_does_not_matter(self, tiny, step):
        model, tokenizer = tiny
        expected, actual = (
            list(stream_generate(model, tokenizer, TEXT, 5, prefill_step_size=size))
            for size in (None, step)
        )
        assert [r.token for r in actual] == [r.token for r in expected]
        assert_close("logprobs", actual[-1].logprobs, expected[-1].logprobs, 1e-5)

    def test_a_state_goes_on(self, tiny):
        """Reading in two calls with one cache is reading in one."""
        model, tokenizer = tiny
        ids = tokenizer.encode(TEXT)
        cache, answer = model.make_cache(), []
        for part in ids[:500], ids[500:]:
            responses = stream_generate(model, tokenizer, part, 5, prompt_cache=cache)
            answer.append([r.token for r in responses])
        # As in mlx-lm, a state holds the tokens that were generated, the last included.
        assert cache[0][0].offset == len(ids) + 10
        whole = ids[:500] + answer[0] + ids[500:]
        expected = [r.token for r in stream_generate(model, tokenizer, whole, 5)]
        assert answer[1] == expected

    def test_progress_never_goes_back(self, tiny):
        model, tokenizer = tiny
        seen = []
        generate(
            model,
            tokenizer,
            TEXT,
            max_tokens=1,
            prompt_progress_callback=seen.append,
        )
        assert seen == sorted(set(seen)) and seen[-1] == 1199

    def test_generate_prints_what_it_returns(self, tiny, capsys):
        model, tokenizer = tiny
        text = generate(model, tokenizer, "HOW", max_tokens=5, verbose=True)
        out = capsys.readouterr().out
        assert out.startswith("=" * 10 + "\n" + text + "\n" + "=" * 10)
        assert "Generation: 5 tokens" in out and "State: " in out

    @pytest.mark.parametrize("name", ["max_kv_size", "kv_bits", "draft_model"])
    def test_what_cannot_be_obeyed_is_refused(self, tiny, name):
        with pytest.raises(SettingError, match=name):
            next(stream_generate(*tiny, "HOW", **{name: 4}))

    def test_an_empty_prompt_is_refused(self, tiny):
        with pytest.raises(SettingError, match="no tokens"):
            generate(*tiny, [])

    def test_overrides(self, folder):
        model, _ = load(folder, model_config={"window": 20, "chunk": 128})
        config = model.allmem
        assert (config.window, config.sinks, config.chunk) == (20, 4, 128)
        with pytest.raises(SettingError, match="window"):
            load(folder, model_config={"window": 0})

    def test_a_bad_block_is_the_folder_s_fault(self, folder, tmp_path):
        config = json.loads((folder / "config.json").read_text())
        config["allmem"]["chunk"] = 100
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(AllMemError, match="config.json.*fold") as error:
            load(tmp_path)
        assert error.value.exit_code == 1


class TestCommand:
    def test_goes_on_from_a_document(self, command, tiny, document):
        result = command("--prompt-file", document, "-m", "9")
        assert result.returncode == 0 and not result.stderr, result.stderr
        expected = generate(*tiny, tiny[1].encode(TEXT), max_tokens=9)
        lines = result.stdout.decode().split("=" * 10)
        assert lines[1].strip("\n") == expected.strip("\n")
        statistics = lines[2].strip().splitlines()
        assert statistics[0].startswith("Prompt: 1200 tokens, ")
        assert statistics[1].startswith("Generation: 9 tokens, ")
        assert statistics[2].startswith("Peak memory: ")
        assert statistics[3].startswith("State: ")
        assert statistics[3].endswith(
            "(68 in the window, the rest forgotten; memory: none)"
        )

    def test_json_is_the_last_line(self, command, document):
        flags = ["--prompt-file", document, "-m", "3", "--json", "--verbose", "F"]
        result = command(*flags)
        last = json.loads(result.stdout.decode().splitlines()[-1])
        assert list(last) == [
            "prompt_tokens",
            "prompt_tps",
            "generation_tokens",
            "generation_tps",
            "peak_memory",
            "finish_reason",
            "state_bytes",
            "tokens_read",
            "tokens_in_window",
            "memory",
        ]
        assert last["prompt_tokens"] == 1200 and last["finish_reason"] == "length"
        assert b"Peak memory" not in result.stdout

    def test_a_question_goes_into_the_chat_template(self, command, tiny, document):
        """The document and the question are one user message, a blank line between."""
        flags = ["--prompt-file", document, "--prompt", "WHO?\\nHOW?", "-e", "-m", "9"]
        result = command(*flags, "--system-prompt", "BE KIND")
        expected = (
            f"<|im_start|>system\nBE KIND<|im_end|>\n<|im_start|>user\n{TEXT}\n\n"
            "WHO?\nHOW?<|im_end|>\n<|im_start|>assistant\n"
        )
        model, tokenizer = tiny
        ids = tokenizer.encode(expected, add_special_tokens=False)
        text = generate(model, tokenizer, ids, max_tokens=9)
        assert f"Prompt: {len(ids)} tokens" in result.stdout.decode()
        assert text in result.stdout.decode()

    def test_stdin(self, command, document):
        file, piped = (
            command("--prompt-file", source, "-m", "5", "--verbose", "F", **o)
            for source, o in ((document, {}), ("-", {"stdin": TEXT}))
        )
        assert piped.returncode == 0 and piped.stdout == file.stdout

    def test_a_prompt_alone(self, command):
        """As mlx_lm.generate: the chat template, or the raw prompt."""
        chat = command("--prompt", "HOW", "-m", "3").stdout.decode()
        raw = command("-p", "-", "-m", "3", "--ignore-chat-template", stdin="A")
        # <|im_start|>user\nHOW<|im_end|>\n<|im_start|>assistant\n, letter by letter
        assert "Prompt: 22 tokens" in chat
        assert "Prompt: 1 tokens" in raw.stdout.decode()

    def test_a_seed_repeats_a_sample(self, command, document):
        flags = ["--prompt-file", document, "--temp", "1.5", "-m", "30"]
        flags += ["--top-p", "0.95", "--min-p", "0.01", "--verbose", "F", "--seed"]
        one, again, other = (command(*flags, seed).stdout for seed in ("1", "1", "2"))
        assert one == again != other

    def test_text_rules(self, command, tmp_path):
        """BOM, CRLF and bytes that are not UTF-8 (each one U+FFFD, and a warning)."""
        plain, dressed, broken = (tmp_path / name for name in ("a", "b", "c"))
        plain.write_bytes(b"HOW\nTHE\nRING\n" * 9)
        dressed.write_bytes(b"\xef\xbb\xbf" + b"HOW\r\nTHE\rRING\r\n" * 9)
        broken.write_bytes(b"HOW\nTHE\nRING\n" * 99 + b"\x81\xfe!")
        flags = ("-m", "5", "--verbose", "F")
        one, two, three = (
            command("--prompt-file", path, *flags) for path in (plain, dressed, broken)
        )
        assert one.stdout == two.stdout and not one.stderr
        assert three.returncode == 0 and b"2 characters" in three.stderr

    def test_a_chunk_larger_than_the_window_is_said(self, command):
        result = command("-p", "HOW", "--window", "16", "-m", "1")
        assert result.stderr.startswith(b"[WARNING] chunk 64 is larger than window 16")

    def test_refused(self, command, folder, document, tmp_path):
        empty, binary, nowhere = (tmp_path / n for n in ("empty", "binary", "nowhere"))
        empty.write_bytes(b"")
        folder_of_none = tmp_path / "folder"
        folder_of_none.mkdir()
        binary.write_bytes(bytes(range(256)) * 10)
        read = ["--prompt-file", document]
        refused = [
            ([], 2, ["--prompt-file"]),
            (["--prompt-file", nowhere], 1, [nowhere]),
            (["--prompt-file", empty], 1, [empty, "empty"]),
            (["--prompt-file", binary], 1, [binary, "binary"]),
            (["--prompt-file", folder_of_none], 1, [folder_of_none, "no documents"]),
            (["--prompt-file", document, "--prompt-file", nowhere], 1, [nowhere]),
            ([*read, "--window", "0"], 2, ["window"]),
            ([*read, "--window", "many"], 2, ["--window"]),
            ([*read, "--chunk", "0"], 2, ["chunk"]),
            ([*read, "--chunk", "100"], 2, ["chunk", "fold"]),
            ([*read, "--sinks", "-1"], 2, ["sinks"]),
            ([*read, "--max-kv-size", "512"], 2, ["--max-kv-size"]),
            ([*read, "--kv-bits", "4"], 2, ["--kv-bits"]),
            ([*read, "--draft-model", "x"], 2, ["--draft-model"]),
            ([*read, "--max-tokens", "0"], 2, ["--max-tokens"]),
            ([*read, "--prefill-step-size", "0"], 2, ["--prefill-step-size"]),
            ([*read, "--system-prompt", "x"], 2, ["--system-prompt", "--prompt"]),
            (["--prompt-file", "-", "--prompt", "-"], 2, ["stdin"]),
            (["-p", "", "--ignore-chat-template"], 2, ["no tokens"]),
            (["-p", "x", "--chat-template-config", "{"], 2, ["--chat-template-config"]),
            ([*read, "--no-such-flag"], 2, ["--no-such-flag"]),
        ]
        for flags, code, words in refused:
            assert_refused(command(*flags), code, *words)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_file(self, command, document):
        document.chmod(0)
        assert_refused(command("--prompt-file", document), 1, document)

    def test_refused_models(self, folder, tmp_path):
        base = folder.parent / "base"
        refused = [
            (tmp_path / "nowhere", ["nowhere", "no such model folder"]),
            (tmp_path, [tmp_path, "config.json"]),
            (base, [base, "convert"]),
        ]
        for path, words in refused:
            assert_refused(Generate(path)("-p", "HOW"), 1, *words)

    def test_a_truncated_model(self, folder, tmp_path):
        for path in folder.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        assert_refused(Generate(tmp_path)("-p", "HOW"), 1, weights, "incomplete")

    def test_debug_shows_a_traceback(self, folder, tmp_path):
        result = Generate(tmp_path)("-p", "HOW", "--debug")
        assert result.returncode == 1 and b"Traceback" in result.stderr

    def test_help_is_quick(self):
        """It does not import transformers; no time is measured."""
        code = (
            "import runpy, sys; sys.argv = ['generate', '-h']\n"
            "try: runpy.run_module('allmem_mlx.generate', run_name='__main__')\n"
            "except SystemExit: pass\n"
            "assert 'transformers' not in sys.modules and 'mlx_lm' not in sys.modules"
        )
        result = run("-c", code, fresh=True)
        assert result.returncode == 0 and b"--prompt-file" in result.stdout

    def test_flags_are_those_of_mlx_lm(self):
        """Every sampling and prompt flag of mlx_lm.generate, with its default."""
        from mlx_lm.generate import setup_arg_parser as mlx_lm_parser

        ours, theirs = (
            {
                flag: action.default
                for action in parser._actions
                for flag in action.option_strings
            }
            for parser in (setup_arg_parser(), mlx_lm_parser())
        )
        elsewhere = {
            "--image",
            "--prompt-cache-file",
            "--quantize-activations",
            "-qa",
            "--kv-group-size",
            "--quantized-kv-start",
            "--num-draft-tokens",
            "--use-default-chat-template",  # mlx_lm.generate does not use it either
        }
        assert set(theirs) - set(ours) == elsewhere
        changed = {flag for flag in theirs if theirs[flag] != ours.get(flag)}
        sampled = {"--temp", "--top-p"}  # other defaults where a text is written on
        expected = {"--prompt", "-p", "--prefill-step-size"} | sampled
        assert changed - elsewhere == expected


class TestTerminal:
    """On a terminal there is progress, and Ctrl-C ends it."""

    def start(self, folder, *flags, **options) -> Terminal:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        command = ["allmem_mlx.generate", "--model", folder, *flags]
        return Terminal(*command, **streams, **options)

    def interrupt(self, terminal):
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("allmem_mlx generate: interrupted")
        assert "Traceback" not in terminal.seen
        terminal.end(130)

    @pytest.mark.parametrize("archive", [False, True], ids=["streamed", "indexed"])
    def test_ctrl_c_while_reading(self, folder, tmp_path, archive):
        document = tmp_path / "long.txt"
        document.write_text(TEXT * 3000)
        flags = ["--save-state", tmp_path / "long.allmem"] if archive else []
        terminal = self.start(folder, "--prompt-file", document, *flags)
        if archive:
            terminal.until("tokens indexed")
            terminal.until("tokens-per-sec")
        text = terminal.until(" 2%")
        self.interrupt(terminal)
        tokens = [int(n) for n in re.findall(r"(\d+) tokens, \d+ tokens-per-sec", text)]
        percent = [int(n) for n in re.findall(r"(\d+)%", text)]
        assert tokens == sorted(tokens) and percent == sorted(percent)
        assert re.search(r"<\d\d:\d\d\]", text)  # time left

    @pytest.mark.real_model
    def test_ctrl_c_while_generating(self, default_folder):
        flags = ["--prompt", "Tell me a long story.", "-m", "-1"]
        terminal = self.start(default_folder, *flags, fresh=True)
        assert len(terminal.process.stdout.read(30)) == 30
        self.interrupt(terminal)

    @pytest.mark.real_model
    def test_a_closed_pipe_ends_it_quietly(self, default_folder):
        flags = ["--prompt", "Tell me a long story.", "-m", "-1"]
        terminal = self.start(default_folder, *flags, fresh=True)
        terminal.process.stdout.close()
        assert terminal.process.wait(60) == 1
        os.close(terminal.main)
