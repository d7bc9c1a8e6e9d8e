"""Reads the documents of a folder, then answers the lines of standard input as a chat.

    python examples/chat_over_folder.py FOLDER
    echo "What are these texts about?" | python examples/chat_over_folder.py FOLDER

However many documents there are, and however long the chat gets, memory does not grow.
Facts from beyond the window need an archive, see ``ask_a_book.py``.
"""

import argparse
import sys

from allmem_mlx import load
from allmem_mlx.chat_template import Template
from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.conversation import Conversation
from allmem_mlx.documents import Document
from allmem_mlx.session import Session


def main(args: argparse.Namespace) -> None:
    documents = Document(args.folder)
    model, tokenizer = load(args.model)
    conversation = Conversation(Session(model, tokenizer), Template.of_chat(tokenizer))
    for tokens in conversation.read(documents.pieces(tokenizer)):
        print(f"\r{tokens} tokens read", end="", flush=True)

    print("\n> ", end="", flush=True)
    for message in filter(None, map(str.strip, sys.stdin)):
        for response in conversation.ask(message, max_tokens=args.max_tokens):
            print(response.text, end="", flush=True)
        print("\n> ", end="", flush=True)


if __name__ == "__main__":
    description = __doc__.split("\n")[0]
    parser = ArgumentParser(prog="chat_over_folder.py", description=description)
    parser.add_argument("folder", help="a folder of documents, or one document")
    parser.add_argument("--model", help="folder of a chat model; default: the embedded")
    parser.add_argument("--max-tokens", type=int, default=100, help="of an answer")
    run(parser, main)
