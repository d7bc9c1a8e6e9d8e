"""Reads a book once and answers questions about it, with their places in the book.

    python examples/fetch_alice.py alice.txt
    python examples/ask_a_book.py alice.txt "What words were marked on the cake?"

What was read is stored beside the book: the state of the model in ``alice.txt.allmem``,
the text in ``alice.txt.archive``. The next run reads nothing, unless the book is newer.
"""

import argparse
from pathlib import Path

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.archive import Archive
from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.documents import Document
from allmem_mlx.session import Session


def main(args: argparse.Namespace) -> None:
    book = Document(args.book)
    model, tokenizer = load(args.model)
    state = Path(f"{args.book}.allmem")
    archive = Archive.open(f"{args.book}.archive", tokenizer, create=True)
    session = Session(model, tokenizer, archive=archive)

    if state.exists() and state.stat().st_mtime >= args.book.stat().st_mtime:
        session.state = states.load(state, model)
        print(f"{session.state.tokens} tokens were read before")
    else:
        for tokens in session.read(book.pieces(tokenizer)):
            print(f"\r{tokens} tokens read", end="", flush=True)
        states.save(session.state, state, model)
        print(f"\r{session.state.tokens} tokens read")

    for question in args.questions:
        print(f"\n> {question}")
        for response in session.ask(question, max_tokens=args.max_tokens):
            print(response.text, end="", flush=True)
        print()
        for i, source in enumerate(response.sources, 1):
            print(f"[{i}] {source.passage.where}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="ask_a_book.py", description=__doc__.split("\n")[0])
    parser.add_argument("book", type=Path, help="a document of any format")
    parser.add_argument("questions", nargs="+", help="in the words of the book")
    parser.add_argument("--model", help="folder of a chat model; default: the embedded")
    parser.add_argument("--max-tokens", type=int, default=100, help="of an answer")
    run(parser, main)
