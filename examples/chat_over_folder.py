"""Reads every text file of a folder into one conversation, then answers the lines of
standard input, turn by turn.

    python examples/chat_over_folder.py FOLDER
    echo "What are these texts about?" | python examples/chat_over_folder.py FOLDER

However many files there are, and however long the chat gets, memory does not grow.
Before its memory is trained, a model knows no more of them than what came last.
"""

import argparse
import sys
from itertools import chain
from pathlib import Path

from allmem_mlx import load
from allmem_mlx.chat_template import Template
from allmem_mlx.conversation import Conversation
from allmem_mlx.documents import Document
from allmem_mlx.errors import AllMemError
from allmem_mlx.session import Session


def main(args: argparse.Namespace) -> None:
    files = sorted(args.folder.glob("*.txt"))
    if not files:
        raise AllMemError(f"{args.folder} has no text files (*.txt)")
    model, tokenizer = load(args.model)
    session = Session(model, tokenizer)
    conversation = Conversation(session, Template.of_chat(tokenizer))

    for file in files:
        # The model is told which file it is.
        title = tokenizer.encode(f"{file.name}:\n", add_special_tokens=False)
        text = Document(file).pieces(tokenizer)
        for _ in conversation.read(chain([title], text)):
            print(f"\r{file.name}: {session.state.tokens} tokens", end="", flush=True)
        print(f"\r{file.name}: {session.state.tokens} tokens")

    prompt = "> " if sys.stdin.isatty() else ""
    print(prompt, end="", flush=True)
    for line in sys.stdin:
        if message := line.strip():
            for response in conversation.ask(message, max_tokens=args.max_tokens):
                print(response.text, end="", flush=True)
            print()
        print(prompt, end="", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder of text files")
    parser.add_argument("--model", help="folder of a chat model; default: the embedded")
    parser.add_argument("--max-tokens", type=int, default=100, help="of an answer")
    try:
        main(parser.parse_args())
    except AllMemError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
