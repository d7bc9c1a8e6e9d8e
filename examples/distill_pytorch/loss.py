"""Forward KL and next-token loss, a block of positions at a time: the logits of a
whole document never exist at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128


class _ForwardKL(torch.autograd.Function):
    """Its gradient is ``(p_student - p_teacher) W_head``, taken on the way forward."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
        total = student.new_zeros((), dtype=torch.float32)
        grads = []
        for s, t in zip(student.split(BLOCK), teacher.split(BLOCK), strict=True):
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
    """``sum_positions KL(teacher || student)``.

    Args:
        student (Tensor): last hidden states, ``[N, D]``.
        teacher (Tensor): the same.
        head (Tensor): the output matrix, ``[V, D]``, frozen.
    """
    return _ForwardKL.apply(student, teacher, head)


@torch.no_grad()
def next_token_loss(hidden: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """Negative log-likelihoods, ``[N]``."""
    losses = []
    for x, y in zip(hidden.split(BLOCK), targets.split(BLOCK), strict=True):
        losses.append(F.cross_entropy(F.linear(x, head).float(), y, reduction="none"))
    return torch.cat(losses)
