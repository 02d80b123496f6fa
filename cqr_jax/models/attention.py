"""Exact attention with memory linear in the number of pixels.

The full matrix of scores is never materialised. The forward pass computes the scores
in blocks, with a running maximum and sum (Milakov and Gimelshein 2018). The backward
pass recomputes them from the log-sum-exp of each query (Dao et al. 2022,
"FlashAttention").
"""

import functools

import jax
import jax.export
import jax.numpy as jnp

# Blocks gain nothing up to this many scores per image, in a training step or a tile.
_PLAIN_SCORES = 2**20
_QUERY_BLOCK = 1024  # maximum
_KEY_BLOCK = 1024


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Computes softmax(query key^T) value without scaling.

    The softmax is over the keys: the weights of each query sum to 1, as in Wang et al.
    2018 (eq. 1). RNAN's published code instead takes the softmax over dimension 1 of
    its scores, which is that of the queries.

    Args:
      query: (batch, queries, depth).
      key: (batch, keys, depth).
      value: (batch, keys, value_depth).

    Returns:
      (batch, queries, value_depth), with the dtype of `value`. Scores and sums are
      computed in at least float32.
    """
    scores = query.shape[1] * key.shape[1]
    # The dimension is symbolic when the network is exported for any size.
    if jax.export.is_symbolic_dim(scores) or scores <= _PLAIN_SCORES:
        return _attend_plainly(query, key, value)
    return _attend_in_blocks(query, key, value)


@jax.checkpoint
def _attend_plainly(query, key, value):
    weights = jax.nn.softmax(_dot("bqd,bkd->bqk", query, key), axis=-1)
    return _dot("bqk,bkd->bqd", weights.astype(value.dtype), value).astype(value.dtype)


@jax.custom_vjp
def _attend_in_blocks(query, key, value):
    return _forward(query, key, value)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the output and the residuals for the backward pass."""
    keys, values = _blocks(key, _KEY_BLOCK), _blocks(value, _KEY_BLOCK)
    bias = _bias(key)

    def attend_block(block):
        def add(carry, part):
            most, total, out = carry
            key_block, value_block, bias_block = part
            scores = _dot("bqd,bkd->bqk", block, key_block) + bias_block
            new = jnp.maximum(most, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - new[..., None])
            shrink = jnp.exp(most - new)
            total = total * shrink + jnp.sum(weights, axis=-1)
            gained = _dot("bqk,bkd->bqd", weights.astype(value.dtype), value_block)
            return (new, total, out * shrink[..., None] + gained), None

        rows = block.shape[:2]
        start = (
            jnp.full(rows, -jnp.inf, _wide(query)),
            jnp.zeros(rows, _wide(query)),
            jnp.zeros((*rows, value.shape[-1]), _wide(query)),
        )
        (most, total, out), _ = jax.lax.scan(add, start, (keys, values, bias))
        return out / total[..., None], most + jnp.log(total)

    out, log_sum = jax.lax.map(attend_block, _blocks(query, _QUERY_BLOCK))
    out = _whole(out, query.shape[1])
    return out.astype(value.dtype), (query, key, value, out, log_sum)


def _backward(residuals, gradient):
    """Returns the gradients of query, key and value, one block of scores at a time."""
    query, key, value, out, log_sum = residuals
    gradient = gradient.astype(_wide(gradient))
    keys, values = _blocks(key, _KEY_BLOCK), _blocks(value, _KEY_BLOCK)
    bias = _bias(key)
    # The backward pass of softmax subtracts this mean over a query from the gradient
    # of each of its scores.
    mean = jnp.sum(gradient * out, axis=-1, keepdims=True)

    def of_queries(carry, part):
        block, gradient_block, mean_block, log_sum_block = part

        def of_keys(query_gradient, part):
            key_block, value_block, bias_block = part
            scores = _dot("bqd,bkd->bqk", block, key_block) + bias_block
            weights = jnp.exp(scores - log_sum_block[..., None])
            value_gradient = _dot("bqk,bqd->bkd", weights, gradient_block)
            inner = _dot("bqd,bkd->bqk", gradient_block, value_block)
            inner = weights * (inner - mean_block)
            query_gradient += _dot("bqk,bkd->bqd", inner, key_block)
            key_gradient = _dot("bqk,bqd->bkd", inner, block)
            return query_gradient, (key_gradient, value_gradient)

        zero = jnp.zeros(block.shape, _wide(block))
        query_gradient, gained = jax.lax.scan(of_keys, zero, (keys, values, bias))
        return jax.tree.map(jnp.add, carry, gained), query_gradient

    zeros = jnp.zeros(keys.shape, _wide(key)), jnp.zeros(values.shape, _wide(key))
    split = functools.partial(_blocks, longest=_QUERY_BLOCK)
    parts = (split(query), split(gradient), split(mean), log_sum)
    (keys, values), queries = jax.lax.scan(of_queries, zeros, parts)
    return tuple(
        _whole(blocks, x.shape[1]).astype(x.dtype)
        for blocks, x in ((queries, query), (keys, key), (values, value))
    )


_attend_in_blocks.defvjp(_forward, _backward)


def _dot(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=_wide(a))


def _wide(x: jax.Array) -> jnp.dtype:
    """Returns the dtype of sums, which is at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _size(n: int, longest: int) -> int:
    """Returns the block size that divides `n` into the fewest blocks of equal size.

    The size is at most `longest`.
    """
    return -(-n // -(-n // longest))


def _blocks(x: jax.Array, longest: int) -> jax.Array:
    """Splits (batch, n, depth) into (blocks, batch, size, depth), padded with zeros."""
    batch, n, depth = x.shape
    size = _size(n, longest)
    x = jnp.pad(x, ((0, 0), (0, -n % size), (0, 0)))
    return x.reshape(batch, -1, size, depth).swapaxes(0, 1)


def _whole(blocks: jax.Array, n: int) -> jax.Array:
    """Inverts `_blocks`."""
    count, batch, size, depth = blocks.shape
    return blocks.swapaxes(0, 1).reshape(batch, count * size, depth)[:, :n]


def _bias(key: jax.Array) -> jax.Array:
    """Returns a (blocks, size) bias: -inf for the keys that are padding, else 0."""
    n = key.shape[1]
    size = _size(n, _KEY_BLOCK)
    index = jnp.arange(n + -n % size)
    return jnp.where(index < n, 0.0, -jnp.inf).reshape(-1, size)
