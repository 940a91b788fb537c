"""Triton kernels for packed tokens: the tokens of many windows are concatenated in one array, without padding.

T is the number of tokens, H the model's hidden size, V the size of its vocabulary. `bounds` (windows + 1,) int32 holds
the start of each window and the end of the last one. Matrices are row-major float16; sums are float32. Tensor
descriptors use Hopper's bulk copies (TMA); on older GPUs Triton compiles them to ordinary loads.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

QUERIES = 64  # tokens of one window for which a program of `attention` computes the output
KEYS = 64
DEPTH = 64  # numbers of a row that the head loads in one step
TOKENS = 256  # of any windows, whose logits a program of `max_logits` computes
GROUP = 32  # tiles of tokens that stay in the L2 cache while the products with all terms are computed


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def _head_tiles(device: torch.device) -> dict[str, int]:
    """The fastest tiles of an H100 where they fit into shared memory; otherwise tiles that fit on any GPU."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
        if memory >= 150 * 1024:
            return {"TERMS": 128, "num_warps": 8, "num_stages": 3}
    return {"TERMS": 64, "num_warps": 4, "num_stages": 2}


# Sums and norms


@triton.jit
def _norm(x, mask, scale, shift, columns, H: tl.constexpr, eps):
    mean = tl.sum(x, 0) / H
    centred = tl.where(mask, x - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 0) / H + eps)
    return centred / deviation * tl.load(scale + columns, mask).to(tl.float32) + tl.load(shift + columns, mask).to(
        tl.float32
    )


@triton.jit
def _add_norm(x, bias, scale, shift, out, eps, H: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * H
    columns = tl.arange(0, BLOCK)
    mask = columns < H
    total = tl.load(x + row + columns, mask).to(tl.float32) + tl.load(bias + columns, mask).to(tl.float32)
    tl.store(out + row + columns, _norm(total, mask, scale, shift, columns, H, eps), mask)


def add_norm(x: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm of x (T, H) + bias (H,)."""
    out = torch.empty_like(x)
    tokens, size = x.shape
    _add_norm[(tokens,)](x, bias, scale, shift, out, eps, size, triton.next_power_of_2(size), num_warps=2)
    return out


@triton.jit
def _embed_norm(ids, places, words, positions, scale, shift, out, eps, H: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    word, place = tl.load(ids + token).to(tl.int64) * H, tl.load(places + token).to(tl.int64) * H
    columns = tl.arange(0, BLOCK)
    mask = columns < H
    total = tl.load(words + word + columns, mask).to(tl.float32) + tl.load(positions + place + columns, mask).to(
        tl.float32
    )
    tl.store(out + token * H + columns, _norm(total, mask, scale, shift, columns, H, eps), mask)


def embed_norm(
    ids: torch.Tensor,
    places: torch.Tensor,
    words: torch.Tensor,
    positions: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Layer norm of words (V, H) at `ids` (T,) + positions (longest, H) at `places` (T,)."""
    out = words.new_empty(len(ids), words.shape[1])
    _embed_norm[(len(ids),)](
        ids, places, words, positions, scale, shift, out, eps,
        words.shape[1], triton.next_power_of_2(words.shape[1]), num_warps=2,
    )  # fmt: skip
    return out


# Attention


@triton.jit
def _attend(
    q, keys, values, n, end, column, largest, total, out,
    KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, keys.load([n, column]).T)
    if MASKED:
        scores = tl.where((n + tl.arange(0, KEYS) < end)[None, :], scores, float("-inf"))
    now = tl.maximum(largest, tl.max(scores, 1))
    weights = tl.math.exp2(scores - now[:, None])
    shrunk = tl.math.exp2(largest - now)
    loaded = values.load([n, column])
    out = tl.dot(weights.to(loaded.dtype), loaded, out * shrunk[:, None])
    return now, total * shrunk + tl.sum(weights, 1), out


@triton.jit
def _attention(
    queries, keys, values, out, bounds, window_of, start_of,
    HEADS: tl.constexpr, SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    H: tl.constexpr = HEADS * SIZE
    column = tl.program_id(0) * SIZE
    tile = tl.program_id(1)
    start, window = tl.load(start_of + tile), tl.load(window_of + tile)
    first, end = tl.load(bounds + window), tl.load(bounds + window + 1)
    q = queries.load([start, column])
    largest = tl.full((QUERIES,), -1e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    attended = tl.zeros((QUERIES, SIZE), tl.float32)
    whole = first + (end - first) // KEYS * KEYS
    for n in range(first, whole, KEYS):
        largest, total, attended = _attend(
            q, keys, values, n, end, column, largest, total, attended, KEYS=KEYS, MASKED=False
        )
    if whole < end:
        largest, total, attended = _attend(
            q, keys, values, whole, end, column, largest, total, attended, KEYS=KEYS, MASKED=True
        )
    tokens = start + tl.arange(0, QUERIES)
    places = tokens[:, None].to(tl.int64) * H + column + tl.arange(0, SIZE)[None, :]
    tl.store(out + places, (attended / total[:, None]).to(out.dtype.element_ty), (tokens < end)[:, None])


def attention(
    qkv: torch.Tensor, bounds: torch.Tensor, window_of: torch.Tensor, start_of: torch.Tensor, heads: int
) -> torch.Tensor:
    """Each token attends to the tokens of its window; returns (T, H).

    qkv is (T, 3H); its queries are already multiplied by log2(e) / sqrt(H / heads). `window_of` and `start_of` (tiles,)
    hold the window and the first token of each tile of up to `QUERIES` tokens.
    (FlashAttention: Dao et al. 2022, arXiv 2205.14135.)
    """
    queries, keys, values = qkv.chunk(3, 1)
    size = queries.shape[1]
    out = qkv.new_empty(len(qkv), size)
    _attention[(heads, len(start_of))](
        TensorDescriptor.from_tensor(queries, [QUERIES, size // heads]),
        TensorDescriptor.from_tensor(keys, [KEYS, size // heads]),
        TensorDescriptor.from_tensor(values, [KEYS, size // heads]),
        out, bounds, window_of, start_of,
        heads, size // heads, QUERIES, KEYS, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


# The head


@triton.jit
def _max_logits(
    rows, terms, bias, out, bounds, owners, first_of, last_of, T, V, PROGRAMS,
    H: tl.constexpr, TERMS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    token_tiles, term_tiles = tl.cdiv(T, TOKENS), tl.cdiv(V, TERMS)
    for n in range(tl.program_id(0), token_tiles * term_tiles, PROGRAMS):
        group = n // (GROUP * term_tiles) * GROUP
        inside = n % (GROUP * term_tiles)
        width = tl.minimum(token_tiles - group, GROUP)
        tile, block = group + inside % width, inside // width
        logits = tl.zeros((TERMS, TOKENS), tl.float32)
        for k in range(tl.cdiv(H, DEPTH)):
            logits = tl.dot(terms.load([block * TERMS, k * DEPTH]), rows.load([tile * TOKENS, k * DEPTH]).T, logits)
        token, term = tile * TOKENS + tl.arange(0, TOKENS), block * TERMS + tl.arange(0, TERMS)
        known = term < V
        shift = tl.load(bias + term, known, other=0.0)
        first, last = tl.load(first_of + tile), tl.load(last_of + tile)
        if first == last and (tile + 1) * TOKENS <= tl.load(bounds + last + 1):  # all tokens are of one window
            largest = tl.max(logits, 1) + shift
            place = out + tl.load(owners + first).to(tl.int64) * V + term
            tl.atomic_max(place, largest, known & (largest > 0.0), sem="relaxed")
        else:
            for window in range(first, last + 1):
                inner = (token >= tl.load(bounds + window)) & (token < tl.load(bounds + window + 1))
                largest = tl.max(tl.where(inner[None, :], logits, float("-inf")), 1) + shift
                place = out + tl.load(owners + window).to(tl.int64) * V + term
                tl.atomic_max(place, largest, known & (largest > 0.0), sem="relaxed")


def max_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    bounds: torch.Tensor,
    owners: torch.Tensor,
    first_of: torch.Tensor,
    last_of: torch.Tensor,
) -> None:
    """Raises out (texts, V) float32 to the largest of hidden (T, H) @ weight (V, H)ᵀ + bias (V,) of each text.

    The logits are never in memory: a program keeps those of `TOKENS` tokens in registers, terms as rows, so that one
    thread computes the maximum over tokens. `owners` (windows,) is each window's text; `first_of` and `last_of`
    (tiles,) are the first and the last window of each tile of `TOKENS` tokens. The old values of `out` count too.
    """
    tokens, size = hidden.shape
    tiles = _head_tiles(hidden.device)
    programs = _processors(hidden.device)
    _max_logits[(programs,)](
        TensorDescriptor.from_tensor(hidden, [TOKENS, DEPTH]),
        TensorDescriptor.from_tensor(weight, [tiles["TERMS"], DEPTH]),
        bias, out, bounds, owners, first_of, last_of, tokens, len(weight), programs,
        size, TOKENS=TOKENS, DEPTH=DEPTH, GROUP=GROUP, **tiles,
    )  # fmt: skip
