"""The reference of beam search: written from the rules in plain loops, without a cache."""

from __future__ import annotations

import numpy as np
import torch


def log_probabilities(theirs, texts, banned):
    """Log-probability of every next token after whole texts, without a cache; -inf where banned."""
    tokens = np.zeros((len(texts), max(map(len, texts))), int)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits.numpy()
    logits = np.stack([logits[i, len(text) - 1] for i, text in enumerate(texts)])
    for row, tokens in zip(logits, banned, strict=True):
        row[list(tokens)] = -np.inf
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def repeating(generated, size):
    """The tokens that would complete an n-gram which `generated` holds already."""
    if size == 0 or len(generated) < size - 1:
        return set()
    grams = {tuple(generated[i : i + size]) for i in range(len(generated) - size + 1)}
    newest = tuple(generated[len(generated) - size + 1 :])
    return {gram[-1] for gram in grams if gram[:-1] == newest}


def slow_beam_search(theirs, prompt, settings):
    """Best continuation, its score, and the smallest margin by which anything was decided."""
    alive, best, margin = [([], 0.0)], None, np.inf

    def finish(history, total):
        nonlocal best, margin
        score = total / len(history) ** settings.length_penalty
        if best is not None:
            margin = min(margin, abs(score - best[1]))
        if best is None or score > best[1]:
            best = history, score

    # A finished beam has probability 0 and never comes back, so here it just goes away.
    for _ in range(settings.max_tokens):
        if not alive:
            break
        histories = [history for history, _ in alive]
        values = log_probabilities(
            theirs,
            [prompt + h for h in histories],
            [repeating(h, settings.no_repeat_ngram) for h in histories],
        )
        candidates = [
            (total + values[i, token], [*history, token])
            for i, (history, total) in enumerate(alive)
            for token in range(values.shape[1])
            if values[i, token] > -np.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        if len(candidates) > settings.beams:
            kept, dropped = candidates[settings.beams - 1], candidates[settings.beams]
            margin = min(margin, kept[0] - dropped[0])
        alive = []
        for total, history in candidates[: settings.beams]:
            if history[-1] in settings.end_tokens:
                finish(history, total)
            else:
                alive.append((history, total))
    for history, total in alive:
        finish(history, total)
    return *best, margin
