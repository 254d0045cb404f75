"""The scores of a row as a digest, to compare them bit for bit."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from scheduler.backends.llama_library import Context, LoadedModel


def score_digest(model: LoadedModel, context: Context, row: int) -> str:
    """Return a digest of a row's scores.

    Args:
        model: The loaded model.
        context: What evaluated the row.
        row: The row's place in what was evaluated last; -1 is its last one.
    """
    scores = model.lib.llama_get_logits_ith(context.pointer, row)
    values = np.ctypeslib.as_array(scores, (model.vocabulary_size,))
    return blake2b(values.tobytes(), digest_size=8).hexdigest()
