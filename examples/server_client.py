"""Holds a conversation of two turns with mlx-lm's server and prints the answers as they
come. It needs only the standard library.

In one terminal, with a model folder that ``allmem_mlx convert`` made:

    mlx_lm.server --model FOLDER --trust-remote-code

or, with the embedded model:

    FOLDER=$(python -c "import allmem_mlx.default_model as d; print(d.default_model())")
    mlx_lm.server --model "$FOLDER" --trust-remote-code

and in another:

    python examples/server_client.py

The server stores the state after each answer: the second turn reads only what is new.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

MESSAGES = [
    "My name is Ada, and I live in a lighthouse. Please greet me.",
    "What is my name, and where do I live?",
]


def events(url: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the events that the server sends."""
    body = json.dumps(request).encode()
    with urllib.request.urlopen(f"{url}/v1/chat/completions", body) as response:
        for line in response:
            # Other lines are empty, or report that the server is still reading.
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))


def main(args: argparse.Namespace) -> None:
    messages = []
    for text in args.message or MESSAGES:
        print(f"> {text}")
        messages.append({"role": "user", "content": text})
        request = {
            "messages": messages,
            "max_tokens": args.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = ""
        for event in events(args.url, request):
            for choice in event["choices"]:
                piece = choice["delta"].get("content", "")
                print(piece, end="", flush=True)
                answer += piece
            if usage := event.get("usage"):
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                new = usage["prompt_tokens"] - cached
        print(f"\n({new} tokens were read, {cached} were cached)\n")
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("message", nargs="*", help="what to say; default: two messages")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server's")
    parser.add_argument("--max-tokens", type=int, default=100, help="of an answer")
    args = parser.parse_args()
    try:
        main(args)
    except OSError as error:
        sys.exit(f"error: {args.url}: {error}")
