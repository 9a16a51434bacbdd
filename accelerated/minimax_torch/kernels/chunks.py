"""Chunked lightning attention with a backward of its own, in plain PyTorch on any device.

With S the state before a chunk of m positions, r = 1 … m, and dS the gradient of the state after it:

    o  = ((q kᵀ) ⊙ M) v + (e^(−s r) q) S            S  ← e^(−s m) S + (e^(−s(m−r)) k)ᵀ v          ascending
    dq = ((do vᵀ) ⊙ M) k + e^(−s r) (do Sᵀ)
    dk = ((do vᵀ) ⊙ M)ᵀ q + e^(−s(m−r)) (v dSᵀ)
    dv = ((q kᵀ) ⊙ M)ᵀ do + (e^(−s(m−r)) k) dS      dS ← e^(−s m) dS + (e^(−s r) q)ᵀ do           descending

Chunks of one length are computed together, some at a time; only the states go from one to the next. Kept for the
backward are the inputs and one state a chunk: memory is linear in the length, and no T × T matrix exists.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops.lightning import _prepare
from ..shapes import Keys, Mask, Outputs, Queries, Slopes, State, Values
from .once import once

TOGETHER = 2**18  # scores, or numbers of q, that exist at one time on a CPU: a megabyte stays in its caches


class Chunked(torch.autograd.Function):
    """(q, k, v, state, slopes, mask, chunk) → (out, state), all in at least float32; slopes get no gradient."""

    @staticmethod
    def forward(ctx, q, k, v, state, slopes, mask, chunk):
        B, H, T, e = v.shape
        out, S, before = v.new_empty(B, T, H, e).transpose(1, 2), state, []  # so that heads are merged where they lie
        for piece, tables in pieces(T, chunk, together(chunk, q), slopes, mask, q):
            qc, kc, vc = (piece.cut(x) for x in (q, k, v))  # (B, H, n, m, ·)
            here, S, states = walk(qc, kc, vc, S, tables)
            piece.paste(out, here)
            before.append(states)
        ctx.save_for_backward(q, k, v, slopes, mask, *before)
        ctx.chunk = chunk
        return out, S if S is not state else state.clone()

    @staticmethod
    @once
    def backward(ctx, do, dS):
        q, k, v, slopes, mask, *before = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        cut = list(pieces(q.shape[2], ctx.chunk, together(ctx.chunk, q), slopes, mask, q))
        with torch.autocast(q.device.type, enabled=False):
            for (piece, tables), states in zip(reversed(cut), reversed(before), strict=True):
                inside, from_state, to_end, whole = tables
                qc, kc, vc, dc = (piece.cut(x) for x in (q, k, v, do))
                dS, after = scan(dS, whole, (qc * from_state).mT @ dc, backwards=True)
                from_v = (dc @ vc.mT).mul_(inside)  # (B, H, n, m, m)
                piece.paste(dq, (from_v @ kc).addcmul_(dc @ states.mT, from_state))
                piece.paste(dk, (from_v.mT @ qc).addcmul_(vc @ after.mT, to_end))
                scores = (qc @ kc.mT).mul_(inside)
                piece.paste(dv, (scores.mT @ dc).add_((kc * to_end) @ after))
        return dq, dk, dv, dS, None, None, None


class Piece:
    """n chunks of m positions each, from a start."""

    def __init__(self, start: int, n: int, m: int):
        self.n, self.m, self.part = n, m, slice(start, start + n * m)

    def cut(self, x: Tensor) -> Tensor:
        """(B, H, T, ·) → (B, H, n, m, ·)."""
        return x[:, :, self.part].unflatten(2, (self.n, self.m)).contiguous()

    def paste(self, x: Tensor, chunks: Tensor) -> None:
        """Put the chunks back where they were."""
        x[:, :, self.part] = chunks.flatten(2, 3)


def walk(qc: Tensor, kc: Tensor, vc: Tensor, S: Tensor, tables: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """Some chunks, (B, H, n, m, ·): what they read, the state after them, and the one that each of them begins with."""
    inside, from_state, to_end, whole = tables
    S, states = scan(S, whole, (kc * to_end).mT @ vc)
    scores = (qc @ kc.mT).mul_(inside)
    here = ((qc * from_state) @ states).flatten(0, 2)
    here.baddbmm_(scores.flatten(0, 2), vc.flatten(0, 2))  # (B · H · n, m, e)
    return here.view_as(vc), S, states


def narrowed(chunk: int, d: int) -> int:
    """A chunk no wider than a head, or than 64: the sum is the same, and narrow ones are quicker on a CPU."""
    return min(chunk, max(d, 64))


def together(chunk: int, like: Tensor) -> int:
    """Chunks computed at one time."""
    B, H, _, d = like.shape
    return max(1, (64 if like.is_cuda else 1) * TOGETHER // max(B * H * chunk * max(chunk, d), 1))


def pieces(
    T: int, chunk: int, some: int, slopes: Tensor, mask: Tensor | None, like: Tensor
) -> Iterator[tuple[Piece, tuple]]:
    """Whole chunks, some at a time, then the short one; with each its decay tables."""
    full = T // chunk
    cuts = [(i * chunk, min(some, full - i), chunk) for i in range(0, full, some)]
    if T % chunk:
        cuts.append((full * chunk, 1, T % chunk))
    known: dict[int, tuple] = {}
    for start, n, m in cuts:
        piece = Piece(start, n, m)
        if mask is not None:
            count = mask[:, piece.part].unflatten(1, (n, m)).cumsum(dim=-1)  # (B, n, m): time is in real tokens
            yield piece, decay_tables(slopes, count, like)
        else:
            if m not in known:
                known[m] = decay_tables(slopes, torch.arange(1, m + 1, device=like.device)[None, None], like)
            yield piece, known[m]


def decay_tables(slopes: Tensor, count: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M, e^(−s r), e^(−s(m−r)) and e^(−s m) of each chunk, from float64; count is (B or 1, n or 1, m)."""
    rate = slopes.to(count.device, torch.float64)[:, None, None]  # (H, 1, 1)
    total = count[..., -1:]

    def decay(tokens: Tensor) -> Tensor:  # (B, n, …) → (B, H, n, …)
        return torch.exp(-rate.reshape(-1, *[1] * (tokens.ndim - 1)) * tokens[:, None])

    lag = (count[..., :, None] - count[..., None, :]).clamp(min=0)  # clipped above the diagonal
    tables = decay(lag).tril(), decay(count)[..., None], decay(total - count)[..., None], decay(total)[..., None]
    inside, from_state, to_end, whole = (table.to(like.dtype) for table in tables)
    return inside, from_state, to_end, whole


def scan(S: Tensor, whole: Tensor, written: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """Hand the state from chunk to chunk: the last one, and what each chunk begins with, (B, H, n, d, e)."""
    n = written.shape[2]
    begins, keep = torch.empty_like(written), whole.expand(-1, -1, n, -1, -1)
    for i in reversed(range(n)) if backwards else range(n):
        begins[:, :, i] = S
        S = torch.addcmul(written[:, :, i], keep[:, :, i], S)
    return S, begins


def lightning_attention(
    q: Queries,
    k: Keys,
    v: Values,
    slopes: Slopes,
    state: State | None = None,
    *,
    chunk: int = 256,
    mask: Mask | None = None,
) -> tuple[Outputs, State]:
    """Compute [lightning_attention_chunked][minimax_torch.ops.lightning.lightning_attention_chunked], and its gradient.

    Chunks are [narrowed][minimax_torch.kernels.chunks.narrowed].

    Raises ValueError where a chunk holds no position, or the shapes do not fit.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; a chunk holds at least one position.")
    out_dtype, narrow = q.dtype, narrowed(chunk, q.shape[3])
    with torch.autocast(q.device.type, enabled=False):  # what is summed into a state is not narrowed on the way
        q, k, v, state = _prepare(q, k, v, state, mask)
        slopes = slopes.to(q.device)
        if q.shape[2] == 1 and mask is None:  # decode: one step needs no tables
            state = torch.exp(-slopes.double()).to(q.dtype)[:, None, None] * state
            state = torch.addcmul(state, k.mT, v) if torch.is_grad_enabled() else state.addcmul_(k.mT, v)
            return (q @ state).to(out_dtype), state
        out, state = Chunked.apply(q, k, v, state, slopes, mask, narrow)
        return out.to(out_dtype), state
