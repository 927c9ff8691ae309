"""The specification: self-attention in NumPy and float64, one formula a line. fastattn is right if it computes this.

Every word looks at all words at once, in five steps:

    1. embed      each word is a row of numbers, x
    2. q, k, v    q = x w_q  what am I asking?    k = x w_k  what can I be compared to?    v = x w_v  what do I have?
    3. score      s = q kᵀ / sqrt(D): how similar is what one word asks to what each word can be compared to
    4. softmax    p = exp(s) / sum of exp(s): scores become percentages, which add up to 100 %
    5. mix        o = p v: the new word is the percentages times the v of all words

The same in NumPy, for four words of three numbers each, which say how much there is in it of people, fruit, technology:

>>> import numpy as np
>>> x = np.array([[2, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 2]])      # I love Apple phones
>>> w_q = w_k = w_v = np.eye(3)                                     # numbers that a model learns
>>> q, k, v = x @ w_q, x @ w_k, x @ w_v
>>> s = q @ k.T / np.sqrt(3)
>>> p = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
>>> o = p @ v

Apple is half fruit, half technology. It looks at phones as much as at itself, and then is more technology than fruit:

>>> print(np.round(100 * p[2]))
[12. 12. 38. 38.]
>>> print(np.round(o[2], 1))
[0.4 0.4 1.1]
>>> np.testing.assert_allclose(attention(q, k, v), o, rtol=1e-15)

Sizes: B batch; Hq, Hkv heads of q, of k and v; Sq, Sk queries and keys; D, Dv channels of k, of v. i a query, j a key.

    Question            Answer
    numbers             float64 throughout; fastattn's results have the dtype of q
    layout              q (B, Hq, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv), o as q with Dv channels; B and H may be
                        missing, or B alone
    heads               head h of q uses head h // (Hq / Hkv) of k and v: 0 0 1 1, not 0 1 0 1
    the order of        s = scale q kᵀ                         scale = 1 / sqrt(D) if None; may be negative
    a score's pieces    s = softcap tanh(s / softcap)
                        s = s - slope abs(i + Sk - Sq - j)     ALiBi, a slope a head; lengths do not change the distance
                        s = s + bias                           a bias of -inf hides; any other number is a number
                        s = -inf where hidden                  last: softcap tanh(-inf / softcap) would be seen again
    sink                one score a head, beside those: of a key that all its queries see and whose v is 0. -inf is none
    masks               True is seen; & is both; they broadcast to (B, Hq, Sq, Sk)
    where i stands      at p = i + Sk - Sq: the last query stands at the last key, as drawn below. Joined with lengths,
                        causal, window and prefix go by each sequence's own, p = i + k_length - q_length, where q_length
                        is Sq if not given. For causal_top_left it is always p = i
    window              keys besides the query's own, from p - left to p + right, both included; None or -1: no end
    lse                 natural logarithm of the sum of exp of all scores that are seen, the sink's too
    a query that        found by counting what is seen, not by the largest score: o = 0 and lse = -inf; with a sink, lse
    sees no key         is the sink. Sk = 0: every query. If it sees keys whose scores are all -inf: o = NaN, lse = -inf
    hidden              is never seen: a NaN or inf there reaches no o and no lse
    NaN                 in q, k, bias, slope or sink: o and lse are NaN for every query that sees it, and for no other;
                        in v: in that channel of o. A score of +inf is inf / inf, so it makes its row NaN, too
    D = 0, Dv = 0       all scores are 0: o is the mean of v; o is empty
    merging             parts weigh exp(lse): parts over disjoint keys make the whole. A part of lse = -inf weighs
                        nothing, whatever its o; one of +inf or NaN makes all NaN. A sink belongs to one part alone
    packed sequences    attention_varlen sees each as if it were alone; what lies behind the last has o = 0, lse = -inf

>>> print(picture(causal, Sq=2, Sk=5))
# # # # .
# # # # #

>>> print(picture(causal, Sq=3, Sk=2))
. .
# .
# #

>>> print(picture(causal_top_left, Sq=2, Sk=5))
# . . . .
# # . . .

>>> print(picture(window(2, 1), Sq=3, Sk=6))
. # # # # .
. . # # # #
. . . # # #

>>> print(picture(lengths([4], [2]), Sq=3, Sk=6))
# # # # . .
# # # # . .
. . . . . .

>>> print(picture(causal & lengths([4], [2]), Sq=3, Sk=6))
# # # . . .
# # # # . .
. . . . . .

>>> print(picture(causal & window(1) & lengths([4]), Sq=3, Sk=6))
# # . . . .
. # # . . .
. . # # . .

>>> print(picture(packed([7, 7, 2, 2, 2]), Sq=5, Sk=5))
# # . . .
# # . . .
. . # # #
. . # # #
. . # # #

>>> print(picture(prefix(3), Sq=5, Sk=5))
# # # . .
# # # . .
# # # . .
# # # # .
# # # # #
"""

from .attention import attention, attention_varlen
from .layers import CrossAttention, SelfAttention
from .loops import attention_by_loops
from .masks import causal, causal_top_left, lengths, packed, picture, prefix, window
from .rotary import rope
from .state import merge_states

__all__ = [
    "CrossAttention",
    "SelfAttention",
    "attention",
    "attention_by_loops",
    "attention_varlen",
    "causal",
    "causal_top_left",
    "lengths",
    "merge_states",
    "packed",
    "picture",
    "prefix",
    "rope",
    "window",
]
