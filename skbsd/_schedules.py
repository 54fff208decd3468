"""How the learning rate moves over a call of `fit`."""

import math


def one_cycle(progress: float) -> float:
    warm_up = 0.25
    if progress < warm_up:
        return progress / warm_up
    return cosine((progress - warm_up) / (1 - warm_up))


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    return 1.0


# From the share of training that lies behind, in (0, 1), to a factor of `lr`.
SCHEDULES = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}
