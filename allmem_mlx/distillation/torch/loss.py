"""Forward KL and next-token loss, over a few positions at a time: the logits of a whole
document never exist at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import Document
from .hybrid import TEACHER, Hybrid, View

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


def document_loss(
    hybrid: Hybrid, document: Document, view: View, answer_weight: float
) -> Tensor:
    """:meth:`Document.loss` of the forward KL to the model's own full attention."""
    tokens = torch.tensor([document.tokens], device=hybrid.device)
    with torch.no_grad():
        teacher = hybrid.hidden(tokens, TEACHER)[0]
    student = hybrid.hidden(tokens, view)[0]

    def divergence(positions: list[int]) -> Tensor:
        return forward_kl(student[positions], teacher[positions], hybrid.head)

    return document.loss(divergence, view.window, answer_weight)


@torch.no_grad()
def next_token_loss(hidden: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """Negative log-likelihoods, ``[N]``."""
    parts = zip(hidden.split(POSITIONS), targets.split(POSITIONS), strict=True)
    losses = [
        F.cross_entropy(F.linear(x, head).float(), y, reduction="none")
        for x, y in parts
    ]
    return torch.cat(losses)
