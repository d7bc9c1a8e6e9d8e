"""Reads a book once and asks five questions, each from the same state after the book.

    python examples/fetch_alice.py alice.txt
    python examples/ask_a_book.py alice.txt

The state is kept beside the book, here in ``alice.txt.allmem``, so that the second run
reads nothing. A book that is newer than its state is read again.

Before its memory is trained, a model knows no more of a book than its last pages.
"""

import argparse
import sys
from pathlib import Path

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.chat_template import Template
from allmem_mlx.conversation import Conversation
from allmem_mlx.documents import Document
from allmem_mlx.errors import AllMemError
from allmem_mlx.session import Session

QUESTIONS = [
    "Who is the main character of this book?",
    "Where does the story begin?",
    "Name another character.",
    "What happens in the last chapter?",
    "Sum the book up in one sentence.",
]


def main(args: argparse.Namespace) -> None:
    book = Document(args.book)
    model, tokenizer = load(args.model)
    template = Template.of_chat(tokenizer)
    session = Session(model, tokenizer)

    kept = Path(f"{args.book}.allmem")
    if kept.exists() and kept.stat().st_mtime >= args.book.stat().st_mtime:
        session.state = states.load(kept, model)
        print(f"{session.state.tokens} tokens were read before, and are in {kept}")
    else:
        reader = Conversation(session, template)
        for tokens in reader.read(book.pieces(tokenizer)):
            print(f"\r{tokens} tokens read", end="", flush=True)
        states.save(session.state, kept, model)
        print(f"\r{session.state.tokens} tokens were read, and are in {kept}")

    for question in QUESTIONS:
        print(f"\n> {question}")
        # A fork does not change the session that it comes from.
        conversation = Conversation(session.fork(), template)
        for response in conversation.ask(question, max_tokens=args.max_tokens):
            print(response.text, end="", flush=True)
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("book", type=Path, help="a text file")
    parser.add_argument("--model", help="folder of a chat model; default: the embedded")
    parser.add_argument("--max-tokens", type=int, default=100, help="of an answer")
    try:
        main(parser.parse_args())
    except AllMemError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
