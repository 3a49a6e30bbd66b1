"""Yours: the functions that you write in the course, a few per lesson.

Replace each `...` by your own lines and run the lesson again: it says what is right, and what seems
to be wrong. `torch` and `math` are here already. Each lesson's solutions stand folded at its end.
"""

import math

import torch

from minialign.methods.method import Method, spread, sums_and_lengths

# -------------------------------------------------------------------------------- 01: A GPT, opened


def rotate(x, angles):
    """Queries or keys x (L, H, D), turned by angles (L, D/2): the same shape as x.

    In every head, number i (a) and number i + D/2 (b) are a point that angle i turns.
    Hint: a cos φ − b sin φ, and a sin φ + b cos φ; a, b = x.chunk(2, dim=-1).
    """
    return ...


def causal_mask(length):
    """Who may look at whom: bool (length, length), True where token t (row) may see s (column).

    Hint: a token sees itself and what stands before it.
    """
    return ...


# ------------------------------------------------------------------------------------ 02: Log-probs


def log_softmax(z):
    """The log-prob of every token, (L, V), from logits z (L, V), of any size.

    Hint: subtract each row's largest logit; then z − log Σ exp z cannot overflow.
    """
    return ...


def score(z, tokens, is_answer):
    """The log-prob of an answer, one number.

    z (L, V) logits, tokens (L,) int, is_answer (L,) bool: prompt, answer and padding on one row
    Hint: z[:-1] speaks about tokens[1:], and the mask goes with the tokens.
    """
    return ...


# ----------------------------------------------------------------------------------------- 03: Push


def push(z, y, weights):
    """∂loss/∂z (T, V) of loss = −Σ_t weights_t · (log-prob of token y_t).

    z (T, V) logits, y (T,) int, weights (T,), which are 0 on padding
    Hint: weights · (softmax − onehot), and a weight belongs to a whole row.
    """
    return ...


def unlikelihood(logps, wanted):
    """The weights (T,) of L = −Σ_wanted l_t − Σ_unwanted log(1 − e^l_t): minus the slope in l_t.

    logps (T,) log-probs l_t, wanted (T,) bool
    Hint: e^l / (1 − e^l) = 1 / (e^−l − 1), and torch.expm1(x) is e^x − 1 with all its digits.
    """
    return ...


# ------------------------------------------------------------------------------------- 04: Backward


def norm_backward(d_y, x, w, eps):
    """The way back through RMSNorm: d_x (L, C) and d_w (C,).

    d_y (L, C) slope of the loss in the norm's output, x (L, C) its input, w (C,) its weights
    Hint: u = x / r, d_u = d_y · w, and d_x = (d_u − u · mean of d_u · u) / r, a mean per token.
    """
    return ..., ...


def softmax_backward(d_p, p):
    """The way back through softmax: d_s, of the same shape as d_p and p (…, L).

    Hint: p · (d_p − Σ d_p p), and the sum runs over the last axis.
    """
    return ...


def adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    """Update number t = 1, 2, … of AdamW: the new w, m and v. Change nothing in place.

    w a weight tensor, g its gradient, m and v the running means so far, all of one shape
    Hint: m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), and ε is added to the root.
    """
    return ..., ..., ...


# -------------------------------------------------------------------------------------- 05: Imitate


def sft(mask):
    """The weights (B, T) of L = −mean over the answers of (mean log-prob of the answer's tokens).

    mask (B, T) bool: this is a token of that answer
    Hint: 1/(B n_b) on each of the n_b tokens of answer b, and 0 on its padding.
    """
    return ...


def prefix(good, bad):
    """How many tokens of `bad` have the log-probs of the same tokens of `good`, whatever the model.

    good, bad  two answers to one prompt, lists of token ids, each with its end token
    """
    return ...


# ----------------------------------------------------------------------------------- 06: Absolutely


def dpo(l_w, l_l, ref_w, ref_l, beta):
    """−∂L/∂l_w and −∂L/∂l_l, (B,) each, of L = −log σ(m); every pair has a loss of its own.

    l_w, l_l (B,) log-probs of the chosen and of the rejected answers; ref_w, ref_l (B,) the same
    under the reference
    Hint: torch.sigmoid, and the log-probs less those of the reference.
    """
    return ..., ...


def asft(a_w, a_l, lam):
    """−∂L/∂a_w and −∂L/∂a_l, (B,) each, of ASFT's loss; every pair has a loss of its own.

    a_w, a_l (B,) mean log-probs of the chosen and of the rejected answers; lam is λ
    Hint: p/(1 − p) = 1/(1/p − 1) = 1/(e^−a − 1), and torch.expm1(x) is e^x − 1.
    """
    return ..., ...


# --------------------------------------------------------------------------------- 07: Discriminate


def dft(l, ref, log_u, tau, gamma):
    """One visit of DFT: → log u after it (B,), and the push on every answer −∂F/∂s (1+K, B).

    l, ref (1+K, B) log-probs under the policy and under the reference, the wanted answer first;
    log_u (B,) before the visit
    Hint: d, then û, then u, then ω. Only the negatives have a d.
    """
    return ..., ...


def keep(label, negatives):
    """Which examples the filter keeps: those whose label is not among their negatives, (B,) bool.

    label (B,) int, the number of the answer that is the label; negatives (K, B) int
    """
    return ...


def silent_bug(gamma, tau, K):
    """Autograd's push down on a negative, as a multiple of ω_j in eq. 8: one number."""
    return ...


# ------------------------------------------------------------------------------------- 08: The lake


def walk_gradient(z, states, actions):
    """∂(−log P(walk))/∂z (S, 4) of the policy softmax(z), the gradient of SFT on one walk.

    z (S, 4) logits, states (T,) and actions (T,) int: what the walk visits and does
    Hint: n(s) π(·|s) − n(s, ·), and a walk may do the same thing in the same cell twice.
    """
    return ...


def success(P, policy, ends, goals, start):
    """The chance to get from the start to a goal, one number.

    P (S, 4, S) chances of the next cell, policy (S, 4), ends (S,) bool: holes and goals,
    goals (S,) bool, start (S,): 1 where the walk begins, else 0
    Hint: (I − Q) v = r over cells that are no ends; torch.linalg.solve(A, b) finds v.
    """
    return ...


# ------------------------------------------------------------- 09: Live with your guesses: the lake


def residual(E, z, tokens, is_answer, lam):
    """What IFT's policy reads (L, C): (1−λ) E[token] + λ E[guess] in the answer, else E[token].

    E (V, C) embeddings, z (L, V) logits of the next token, tokens (L,) int, is_answer (L,) bool
    Hint: the guess for a place is the argmax of the logits at the place before it.
    """
    return ...


def off_path(mixed, states, actions, optimal):
    """→ share of mixed[1:] that lies off the path; in how much of that the label is right.

    mixed (T, S) what is read, states (T,) and actions (T,) int: the demonstration, optimal (S, 4)
    bool, all False where the goal cannot be reached; such cells do not count for the second number
    Hint: the label of everything in row t is actions[t].
    """
    return ..., ...


# -------------------------------------------------------------- 10: Live with your guesses: the GPT


def pull(weights, logps):
    """How far −∂loss/∂z moves the logit of each token itself: (T,).

    weights (T,), logps (T,) the tokens' log-probs
    """
    return ...


def ift(c, gamma):
    """The weights (T,) of L = Σ_t c_t S_t / Z, with the gradient through S and Z: −∂L/∂logp_t.

    c (T,) the tokens' losses −logp_t; gamma is γ > 0
    Hint: the matrix of γ^(i−t), with zeros where i < t. Its rows give S, its columns P and C.
    """
    return ...


# ------------------------------------------------------------------------------------- 11: The race


def difference(ours, theirs):
    """Mean of the differences between two methods, seed by seed, and its standard error.

    ours, theirs (seeds,): what each of them reached
    """
    return ..., ...


def bug_hunt():
    """The numbers of the bugs in runs A, B and C."""
    return ..., ..., ...


# ------------------------------------------------------------------------------- 12: The big matrix


def head_forward(h, W, targets, chunk):
    """Log-probs (N,) and logsumexps (N,) of targets (N,), from h (N, C) and the head W (V, C).

    Never more than `chunk` rows of logits are alive.
    """
    logps, lse = torch.empty_like(h[:, 0]), torch.empty_like(h[:, 0])
    for i in range(0, len(h), chunk):
        part = slice(i, i + chunk)
        lse[part] = ...
        logps[part] = ...
    return logps, lse


def head_backward(h, W, targets, lse, weights, chunk):
    """d_h (N, C) and d_W (V, C) of loss = −Σ weights · log-prob; targets, lse, weights (N,).

    Never more than a few blocks of `chunk` rows of logits are alive.
    """
    d_h, d_W = torch.zeros_like(h), torch.zeros_like(W)
    for i in range(0, len(h), chunk):
        part = slice(i, i + chunk)
        d_h[part] = ...
        d_W += ...
    return d_h, d_W


# ------------------------------------------------------------------------------------- 13: For real


def n_parameters(config):
    """The number of parameters of a Llama, to 1 %, from the fields of its Config.

    config  vocab_size, n_layer, n_head, n_kv_head, d_head, d_model, d_mlp, tie (one table or two)
    """
    return ...


def peak(config, weight_bytes, moment_bytes):
    """Bytes at the peak of full fine-tuning with AdamW on short answers, to 10 %.

    weight_bytes  of each parameter, and of its gradient
    moment_bytes  of each moment that AdamW keeps
    """
    return ...


# ---------------------------------------------------------------------------------------- 14: Yours


class Mine(Method):
    """A method of your own. Lesson 14 says what `weigh` gets, and which laws it should keep."""

    needs = ("negatives", "reference")
    reads_others = True

    def weigh(self, logps, batch):
        """logps (A, B, T) → loss (), weights (A, B, T) = −∂loss/∂logps, a dict of numbers to log.

        Hint: l, n = sums_and_lengths(logps, batch) are the log-probs (A, B) of the answers and
        their lengths; spread(push, batch) gives a push per answer (A, B) to each of its tokens.
        """
        return ..., ..., {}
