"""Stock mlx-lm commands that keep states, with an active memory: the server's prompt
cache, and prompt cache files."""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from helpers import active_folder
from processes import run, start

from allmem_mlx import generate, load
from allmem_mlx.streaming import reading

# Two conversations, in letters the tiny tokenizer knows. After the first turn, which is
# longer than window and sinks, they say the same: only what the server holds of what
# was said before can make the answers differ.
TURNS = ["WHO IS IT?", "WHAT DOES IT EAT?", "AND WHERE IS IT NOW?"]
RING = ["HOW THE RING TURNS! " * 6, *TURNS]
FISH = ["MY CAT ATE ALL FISH. " * 6, *TURNS]
OTHER = "IS IT BLUE?"  # asked in place of the last turn

# Answers consist of letters that a client can send back as the same tokens, and some
# of them end before max_tokens.
BIAS = {str(token): -1e4 for token in (68, *range(94, 122), 124, 125, 127)}
BIAS["126"] = 1.0


def talking_folder(path):
    """A model whose answers are no repetitions."""
    return active_folder(path, scale=0.2, chunk=32, fold=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talking_folder(tmp_path_factory.mktemp("model"))


@contextlib.contextmanager
def serving(*folders):
    """The addresses of one new server for each folder."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_server(folder)) for folder in folders]
        for server in servers:
            _wait(*server)
        yield [address for address, *_ in servers]


@contextlib.contextmanager
def _server(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ["--trust-remote-code", "--model", folder, "--port", port]
    command = ["mlx_lm", "server", *flags, "--log-level", "ERROR"]
    with tempfile.TemporaryFile() as log:
        process = start(*command, stdout=subprocess.DEVNULL, stderr=log.fileno())
        try:
            yield f"http://127.0.0.1:{port}", process, log
        finally:
            process.kill()
            process.wait()


def _wait(address, process, log):
    deadline = time.monotonic() + 60
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            pytest.fail(f"no server: {log.read().decode()}")
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{address}/health", timeout=10):
                return
        time.sleep(0.1)


def post(address, messages, **options):
    """An open response to a conversation."""
    options = {"max_tokens": 24, "logit_bias": BIAS, **options}
    body = json.dumps({"messages": messages, **options}).encode()
    return urllib.request.urlopen(
        urllib.request.Request(f"{address}/v1/chat/completions", body), timeout=60
    )


def ask(address, messages):
    """The answer's text, why it ended and the numbers of tokens."""
    with post(address, messages) as response:
        reply = json.load(response)
    (choice,) = reply["choices"]
    return choice["message"]["content"], choice["finish_reason"], reply["usage"]


def message(text, role="user"):
    return {"role": role, "content": text}


def turns(address, texts):
    """Holds a conversation, and yields what :func:`ask` returns in each turn."""
    messages = []
    for text in texts:
        messages.append(message(text))
        reply = ask(address, messages)
        yield reply
        messages.append(message(reply[0], "assistant"))


def history(texts, replies):
    """The messages of a conversation up to the last of the texts."""
    messages = []
    for text, (answer, *_) in zip(texts, replies, strict=False):
        messages += [message(text), message(answer, "assistant")]
    return [*messages[: 2 * len(texts) - 2], message(texts[-1])]


def cached(usage):
    return usage["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(scope="module")
def alone(folder):
    """Each conversation as held on a server of its own."""
    with serving(folder, folder) as (one, two):
        return [*turns(one, RING)], [*turns(two, FISH)]


@pytest.fixture(scope="module")
def fresh(folder, alone):
    """What a server that has read nothing before answers to the other last turn."""
    with serving(folder) as (server,):
        return ask(server, history([*RING[:-1], OTHER], alone[0]))


@pytest.fixture(scope="module")
def server(folder):
    """One for many tests: none sees what others left there."""
    with serving(folder) as (address,):
        yield address


def turn_about(server):
    """Both conversations on one server, turn about."""
    pairs = zip(turns(server, RING), turns(server, FISH), strict=True)
    return tuple(map(list, zip(*pairs, strict=True)))


def at_once(server):
    """Both conversations on one server, by two clients that do not wait for each
    other."""
    with ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(lambda texts: [*turns(server, texts)], (RING, FISH)))


def another_last_turn(server):
    """The answer to another last turn, once the conversation was held to its end."""
    replies = [*turns(server, RING)]
    return ask(server, history([*RING[:-1], OTHER], replies))


def test_a_stream_is_the_same_text(server):
    """With the counts of tokens, if they are asked for."""
    answer, reason, usage = ask(server, [message(RING[0])])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with post(server, [message(RING[0])], **options) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        lines = [line.decode().rstrip("\n") for line in response]
    events = [line[6:] for line in lines if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    *chunks, last = map(json.loads, events)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(c["delta"].get("content", "") for c in choices) == answer
    assert [c["finish_reason"] for c in choices[-2:]] == [None, reason]
    assert len(chunks) > 10
    assert last["usage"] == usage
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_answer_is_ours(folder, alone):
    """The server says what this package says of the same messages."""
    model, tokenizer = load(folder)
    ids = tokenizer.apply_chat_template([message(RING[0])], add_generation_prompt=True)
    bias = mx.array([float(BIAS.get(str(token), 0)) for token in range(128)])
    text, reason, usage = alone[0][0]
    options = {"max_tokens": 24, "logits_processors": [lambda _, x: x + bias]}
    assert generate(model, tokenizer, ids, **options) == text
    assert usage["prompt_tokens"] == len(ids)


def test_the_answers_say_something(alone, fresh):
    """They differ, do not repeat one letter, and end for either reason: else the tests
    of this file would show nothing."""
    replies = [*alone[0], *alone[1], fresh]
    texts = [text for text, *_ in replies]
    assert len(set(texts)) == len(texts)
    assert all(len(set(text)) > 3 for text in texts)
    assert {reason for _, reason, _ in replies} == {"stop", "length"}


def test_a_turn_reads_only_what_is_new(folder, alone):
    """The server goes on from the state after the last answer, its end included; a new
    server that reads the whole conversation answers the same."""
    with serving(folder) as (server,):
        for texts, replies in zip((RING, FISH), alone, strict=True):
            read = 0
            for _, _, usage in replies:
                assert cached(usage) == read
                read = usage["total_tokens"]
            text, reason, usage = ask(server, history(texts, replies))
            assert cached(usage) == 0
            assert (text, reason) == replies[-1][:2]
            assert usage["prompt_tokens"] == replies[-1][2]["prompt_tokens"]


@pytest.mark.parametrize("hold", [turn_about, at_once])
def test_conversations_do_not_see_each_other(hold, server, alone):
    """Answers and counts are those of two servers."""
    assert hold(server) == alone


def test_a_turn_can_be_changed(server, alone, fresh):
    """The state after each answer stays as it was, whatever was said after it. No state
    is kept before an answer: a first turn that is asked again is read again."""
    text, reason, usage = another_last_turn(server)
    assert (text, reason) == fresh[:2]
    assert cached(usage) == alone[0][-2][2]["total_tokens"]
    assert ask(server, history(RING, alone[0])) == alone[0][-1]
    assert ask(server, [message(RING[0])]) == alone[0][0]


def test_a_client_that_leaves(server, alone):
    """What a client did not wait for is in nobody's conversation."""
    with post(server, [message(FISH[0])], stream=True, max_tokens=4000) as response:
        for _ in range(5):
            response.readline()
    assert [*turns(server, RING)] == alone[0]
    assert ask(server, [message(FISH[0])]) == alone[1][0]


# Model files whose memory, and nothing else, leaks from one client to another.
LEAKY = """
import copy
from allmem_mlx.cache import HybridCache
from allmem_mlx.model import Model as AllMem, ModelArgs
"""
ONE_FOR_ALL = """
first = []

class Model(AllMem):
    def make_cache(self):
        cache = super().make_cache()
        first.extend(cache[len(first) :])
        return [HybridCache(own[0], shared[1]) for own, shared in zip(cache, first)]
"""
NOT_COPIED = """
class Shared(HybridCache):
    def __deepcopy__(self, memo):
        return Shared(copy.deepcopy(self[0], memo), self[1])

class Model(AllMem):
    def make_cache(self):
        return [Shared(*layer.caches) for layer in super().make_cache()]
"""


def test_a_leak_would_be_seen(folder, alone, fresh, tmp_path):
    """If new states shared their memory, or the copies of a kept state did, the tests
    above would fail."""
    for name, text in (("one", ONE_FOR_ALL), ("copies", NOT_COPIED)):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "allmem.py").write_text(LEAKY + text)
    with serving(tmp_path / "one", tmp_path / "copies") as (one, copies):
        ring, fish = turn_about(one)
        assert ring[0] == alone[0][0]
        assert ring[1:] != alone[0][1:] and fish[0] != alone[1][0]
        assert turn_about(copies) == alone
        assert another_last_turn(copies)[0] != fresh[0]


def test_prompt_cache_file(folder, tmp_path):
    """A document cached by one command answers in another as if read in one go, by the
    memory that is in the file."""
    document, question = RING[0], TURNS[0]
    file = tmp_path / "document.safetensors"
    flags = ["--model", folder, "--trust-remote-code", "--prompt-cache-file", file]
    for command in (
        ["cache_prompt", "--prompt", document],
        ["generate", "--prompt", question, "-m", "16", "--verbose", "false"],
    ):
        result = run("mlx_lm", *command, *flags)
        assert result.returncode == 0, result.stderr.decode()

    model, tokenizer = load(folder)
    read = tokenizer.apply_chat_template(
        [message(document)], continue_final_message=True
    )
    text = tokenizer.apply_chat_template(
        [message(question)], tokenize=False, add_generation_prompt=True
    )
    asked = tokenizer.encode(text[text.index(question) :], add_special_tokens=False)
    expected = generate(model, tokenizer, read + asked, max_tokens=16)
    assert result.stdout.decode() == f"{expected}\n"

    cache = model.make_cache()
    with reading(model) as read_into:
        read_into(read, cache)
    for layer in cache:
        layer[1].cache = [None] * len(layer[1].cache)
    forgotten = generate(model, tokenizer, asked, max_tokens=16, prompt_cache=cache)
    assert forgotten != expected
