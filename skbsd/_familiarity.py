"""A score of how familiar a sample is to a network, from its logits."""

import torch
from torch import Tensor


def top_log_odds(logits: Tensor) -> Tensor:
    r"""Compute the log-odds of each sample's most probable class.

    That is :math:`\log p / (1 - p)` of the largest probability p. It is computed from
    the logits, so that scores differ between samples whose p rounds to 1:

    .. math:: z_k - \log \sum_{j \ne k} e^{z_j}, \qquad k = \arg\max_j z_j.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Logits of two or more classes.

    Returns
    -------
    Tensor of shape (n,)
        Scores in double precision, at least -log(n_classes - 1).
    """
    z = logits.double()
    top = z.argmax(dim=1, keepdim=True)
    others = z.scatter(1, top, -torch.inf).logsumexp(dim=1)
    return z.gather(1, top)[:, 0] - others
