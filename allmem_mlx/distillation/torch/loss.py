"""Forward KL and next-token loss, over a few positions at a time: the logits of a whole
document never exist at once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import Segment
from .hybrid import TEACHER, Hybrid, State, View

POSITIONS = 128


class _ForwardKL(torch.autograd.Function):
    """The gradient, ``(p_student - p_teacher) W_head``, comes from the forward pass."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
        total = student.new_zeros((), dtype=torch.float32)
        grads = []
        parts = zip(student.split(POSITIONS), teacher.split(POSITIONS), strict=True)
        for s, t in parts:
            s, t = F.linear(s, head).float(), F.linear(t, head).float()
            s, t = s.log_softmax(-1), t.log_softmax(-1)
            p = t.exp()
            total += (p * (t - s)).sum()
            grads.append(F.linear((s.exp() - p).to(head.dtype), head.mT))
        ctx.save_for_backward(torch.cat(grads))
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        (grads,) = ctx.saved_tensors
        return grads * grad.to(grads.dtype), None, None


def forward_kl(student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
    """``sum_positions KL(teacher || student)`` in nats.

    Args:
        student (Tensor): last hidden states, ``[N, D]``.
        teacher (Tensor): the same.
        head (Tensor): the output matrix, ``[V, D]``, frozen.
    """
    return _ForwardKL.apply(student, teacher, head)


def answer_losses(
    hidden: Tensor, segment: Segment, head: Tensor
) -> tuple[Tensor, list[tuple[int, bool]]]:
    """``-log p`` of each token of a segment's answers, and which answers are found.

    Args:
        hidden (Tensor): last hidden states of its tokens, ``[L, D]``.
        segment (Segment): the segment.
        head (Tensor): the output matrix, ``[V, D]``.

    Returns:
        tuple: the losses, and :meth:`Segment.found`.
    """
    places = segment.answer_places
    logits = F.linear(hidden[[i - 1 for i in places]], head).float()
    expected = [segment.tokens[i] for i in places]
    targets = torch.tensor(expected, device=hidden.device)
    right = (logits.argmax(-1) == targets).tolist()
    return F.cross_entropy(logits, targets, reduction="none"), segment.found(right)


class Losses(NamedTuple):
    """The losses of segments, each the mean over them.

    Args:
        text (Tensor): mean divergence from the teacher over the targets, in nats.
        answers (Tensor): mean ``-log p`` of the answers' tokens; ``None`` if there are
            none.
        found (list): see :meth:`Segment.found`.
    """

    text: Tensor
    answers: Tensor | None
    found: list[tuple[int, bool]]


def segment_losses(
    hybrid: Hybrid, segments: list[Segment], view: View, state: State
) -> tuple[Losses, State]:
    """The student's losses in segments of documents that are read together.

    Args:
        hybrid (Hybrid): student and teacher.
        segments (list): of one length, and with contexts of one length.
        view (View): what the student computes.
        state (State): what it has read before.

    Returns:
        tuple: the losses, and what it has read then.
    """
    device, head, share = hybrid.device, hybrid.head, 1 / len(segments)
    tokens = torch.tensor([x.tokens for x in segments], device=device)
    seen = torch.tensor([x.context + x.tokens for x in segments], device=device)
    with torch.no_grad():
        teacher = hybrid.hidden(seen, TEACHER)[:, -tokens.shape[1] :]
    student, after = hybrid.read(tokens, view, state)
    text = answers = 0 * student.float().sum()  # with a gradient, whatever follows
    found: list[tuple[int, bool]] = []
    for row, segment in enumerate(segments):
        s, t, at = student[row], teacher[row], segment.targets
        if at:
            text = text + share * forward_kl(s[at], t[at], head) / len(at)
        if segment.answers:
            losses, right = answer_losses(s, segment, head)
            answers = answers + share * losses.mean()
            found += right
    return Losses(text, answers if found else None, found), after


@torch.no_grad()
def next_token_loss(hidden: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """Negative log-likelihoods, ``[N]``."""
    parts = zip(hidden.split(POSITIONS), targets.split(POSITIONS), strict=True)
    losses = [
        F.cross_entropy(F.linear(x, head).float(), y, reduction="none")
        for x, y in parts
    ]
    return torch.cat(losses)
