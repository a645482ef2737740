"""From the scores of a pass to the tokens that a sequence takes, its drafts verified.

Shapes: N tokens scored in a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codecria.data.errors import UserError

from .decoding import Decoding, TokenScore
from .draft_gate import Gate
from .drafting import LONGEST_DRAFT, Draft
from .runner import Scores
from .sampling import distribution


def allowed(scores: Scores, decodings: Sequence[Decoding]) -> Scores:
    """The scores, -inf for what must not be drawn: banned ids, and what contradicts an opening.

    Args:
        scores: (N,V), changed in place.
        decodings: whose they are, one a row.

    Raises:
        UserError: they are not finite.
    """
    if not np.isfinite(scores).all():
        raise UserError(
            "the model's scores are not finite (NaN or infinity)",
            hint="weights may be damaged (`codecria inspect --verify`), or values overflow: try"
            " --dtype float32",
        )
    for row, decoding in enumerate(decodings):
        if decoding.banned is not None:
            scores[row, decoding.banned] = -np.inf
        if decoding.opening is not None and decoding.left:
            fits = np.zeros(scores.shape[1], dtype=np.bool_)
            fitting = decoding.opening.allowed(decoding.left)
            fits[: len(fitting)] = fitting  # the model may have rows that no piece has
            if not np.isfinite(scores[row, fits]).any():  # nothing continues it: give it up
                decoding.left, decoding.hidden = b"", 0
            else:
                scores[row, ~fits] = -np.inf
    return scores


def draft_of(decoding: Decoding, gate: Gate, others: int) -> Draft:
    """What a sequence's next tokens may be, as far as verifying it pays.

    Args:
        decoding: the sequence.
        gate: of its engine.
        others: sequences that are decoded beside it.
    """
    drafter = decoding.drafter
    room = decoding.limit - len(decoding.ids) - 1
    if drafter is None or room < 1 or decoding.left or decoding.undecided:
        decoding.undecided = False
        return Draft()
    draft = drafter.draft(min(room, LONGEST_DRAFT))
    if not draft.tokens:
        return draft
    return draft.cut(gate.length(decoding.acceptance, draft, others))


def take(
    decoding: Decoding, draft: Draft, scores: Scores, greedy: Sequence[int], tolerance: float
) -> tuple[int, str]:
    """Draw tokens until one differs from the draft, or the sequence ends.

    Each token is drawn from its own scores and random number, as without a draft.

    Args:
        decoding, draft: the sequence, and what was drafted.
        scores: (len(draft) + 1, V) after its last token, and after each drafted one.
        greedy: the best token of each.
        tolerance: how far scores of several tokens at once may be from those of single ones. Where
            the two best are as close as that, a greedy token is scored again by itself.

    Returns:
        (positions of the pass that stay, text that became certain).
    """
    kept, accepted, text = 0, 0, ""
    for place, token in enumerate(greedy):
        if decoding.generator is not None:
            found = distribution(scores[place], decoding.sampling)
            token = found.token_at(decoding.generator.random())
        elif draft.tokens and _is_close(scores[place], tolerance):
            decoding.undecided = True
            break
        if decoding.top_scores is not None:
            decoding.scores.append(score_of(scores[place], token, decoding.top_scores))
        if decoding.drafter is not None:
            decoding.drafter.push((token,))
        text += decoding.take(token)
        kept = place + 1
        right = draft.tokens[place : place + 1] == (token,)
        accepted += right
        if decoding.finish_reason is not None or not right:
            break
    if draft.tokens:
        decoding.acceptance.record(draft, accepted)
    return kept, text


def score_of(scores: Scores, token: int, top: int) -> TokenScore:
    """How likely a token was, and which were the likeliest.

    Args:
        scores: (V,), -inf for tokens that are not allowed.
        token: what was drawn.
        top: how many of the likeliest are reported.
    """
    shifted = scores - scores.max()
    logs = shifted - np.log(np.exp(shifted, dtype=np.float64).sum())
    best: list[int] = []
    if top:
        few = np.argpartition(-logs, min(top, len(logs) - 1))[:top]
        best = few[np.lexsort((few, -logs[few]))].tolist()
    return TokenScore(token, float(logs[token]), tuple((t, float(logs[t])) for t in best))


def _is_close(scores: Scores, tolerance: float) -> bool:
    """Whether the two best scores differ by no more than rounding may change."""
    if tolerance <= 0:
        return False
    second, first = np.partition(scores, len(scores) - 2)[-2:]
    return bool(first - second <= tolerance)
