"""Documents of any format as a stream of text, and text as a stream of tokens."""

from .document import Document, Mark, Piece, Pieces

__all__ = ["Document", "Mark", "Piece", "Pieces"]
