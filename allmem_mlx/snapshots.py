"""Earlier states of a session, to go back to."""

from .errors import AllMemError
from .state import State

TURNS = 4  # snapshots where turns begin
CHUNKS = 2  # snapshots at the last ends of chunks


class Snapshots:
    """A bounded number of earlier states: the beginnings of the last turns, and the
    last ends of chunks with the tokens that came after them.

    Args:
        state (State): what was read before, the first state to go back to.
    """

    def __init__(self, state: State):
        self.turns: list[State] = []
        self.chunks = [without_waiting(state)]
        self.tokens = list(state.waiting)  # since the first of the chunks

    @property
    def nbytes(self) -> int:
        """Size in bytes; arrays that several snapshots share are counted once."""
        arrays = {
            id(x): x.nbytes
            for state in (*self.turns, *self.chunks)
            for x in state.arrays.values()
        }
        return sum(arrays.values())

    def add_turn(self, state: State) -> None:
        """Keeps the beginning of a turn."""
        self.turns = [*self.turns, state][-TURNS:]

    def add_chunk(self, state: State) -> None:
        """Keeps the end of a chunk."""
        first = self.chunks[0].read
        self.chunks = [*self.chunks, without_waiting(state)][-CHUNKS:]
        self.tokens = self.tokens[self.chunks[0].read - first :]

    def until(self, state: State) -> "Snapshots":
        """The snapshots before a state, which is one of them or made of them."""
        earlier = Snapshots(state)
        earlier.turns = [turn for turn in self.turns if turn.tokens <= state.tokens]
        first = self.chunks[0].read
        if chunks := [chunk for chunk in self.chunks if chunk.read <= state.read]:
            earlier.chunks = chunks
            earlier.tokens = self.tokens[: state.tokens - first]
        return earlier

    def at(self, tokens: int) -> State:
        """The state after ``tokens`` tokens. At least one of them waits, for the model
        to answer, and at most a block.

        Raises:
            AllMemError: if that is further back than the snapshots go.
        """
        start = self.chunks[0].read
        first, last = start and start + 1, start + len(self.tokens)
        if not first <= tokens <= last:
            raise AllMemError(
                f"cannot go back to token {tokens}; {first} to {last} are possible"
            )
        earlier = [x for x in self.chunks if x.read < tokens or tokens == 0]
        state = earlier[-1].fork()
        state.waiting = self.tokens[state.read - start : tokens - start]
        return state


def without_waiting(state: State) -> State:
    """The same state without the tokens that wait to be read."""
    state = state.fork()
    state.waiting, state.logprobs = [], None
    return state
