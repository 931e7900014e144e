"""Real against fake: small patches and a wider view, the image's score weighs features of both.

Enters f[b, h, w, 1] in [-1, 1], sides multiples of 16. Beside the grey values the network sees what
smoothing takes away, at two widths: traces of synthesis live there, anatomy does not (residuals:
Fridrich & Kodovsky 2012, doi:10.1109/TIFS.2012.2190402; patches: Chai et al. 2020,
arXiv:2008.10588). Squares of four pixels are folded into channels, so that nothing is lost and no
layer runs at the full resolution: half the time on a CPU, at equal AUROC. Where such squares begin
matters, so an image is tested on two grids. Two stages of two 3x3 convolutions see 28 pixels each
way: their logits are the patch map. Two more see the whole slice.
An image's features are logarithms of mean and standard deviation over the slice of every stage's
channels: texture shows in how much it varies, and at another site, whose pictures have more or less
of it, by about the same factor. The logit, with the patches' votes, teaches them; a discriminant
fitted on them afterwards takes its place.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from ctfake_jax.models import layers
from ctfake_jax.models.ops.pooling import max_pool

STRIDE = 4  # of the patch map
STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
LAST_COMMON_STAGE = 'stage2'  # that both the patches and the wider view pass
RESIDUAL_GAIN = 4.0  # residuals are small beside grey values
LEAST_VARIANCE = 1e-4  # a standard deviation needs a slope where nothing varies
LEAST_MOMENT = 1e-2  # and its logarithm a bound
BINOMIAL = (1 / 4, 1 / 2, 1 / 4)
DISCRIMINANT = 'discriminant'  # collection of variables: centre f32[d], directions f32[k, d]


class Tower(nn.Module):
  """From images to the named features of `PatchNet`, on one grid of squares."""

  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w 1'], *, train: bool) -> layers.Features:
    features: layers.Features = {}

    def stage(x, i: int, width: int, convs: int = 2):
      for j in range(convs):
        x = layers.Conv(width, dtype=self.dtype, name=f'stage{i}_conv{j + 1}')(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name=f'stage{i}_bn{j + 1}')(x, train=train))
      return layers.stage(self, features, f'stage{i}', x)

    def halved(x):
      return max_pool(x, window=2, stride=2)

    x = stage(folded(with_residuals(x)), 1, self.width)
    x = stage(halved(x), 2, 2 * self.width)
    dense = layers.Dense(1, dtype=jnp.float32, name='patch_logit')
    features['patches'] = dense(x.astype(jnp.float32))[..., 0]
    x = stage(halved(x), 3, 2 * self.width, convs=1)
    stage(halved(x), 4, 2 * self.width, convs=1)
    features['pre_logits'] = jnp.concatenate([log_moments(features[s]) for s in STAGES], -1)
    return features


class PatchNet(nn.Module):
  """Real-against-fake network.

  Attributes:
    width: channels of the first stage, at half the resolution; doubled once.
    dropout: rate before the last dense layer.
    dtype: compute dtype.
  """

  width: int = 48
  dropout: float = 0.2
  dtype: DTypeLike = jnp.float32

  def setup(self):
    self.tower = Tower(self.width, self.dtype)
    nn.share_scope(self, self.tower)
    self.drop = nn.Dropout(self.dropout)
    self.fc = layers.Dense(1)

  def __call__(
    self, x: Float[Array, 'b h w 1'], *, train: bool
  ) -> tuple[Float32[Array, ' b'], layers.Features]:
    """Scores, higher for fake; features `patches` f32[b, h/4, w/4] and `pre_logits`.

    The score is the logit, or where the variables hold a discriminant, what that says. Outside of
    training both features are means over two grids; stages are those of the first.
    """
    features = self.tower(x, train=train)
    if not train:
      again = self.tower(on_the_other_grid(x), train=False)
      features |= {name: (features[name] + again[name]) / 2 for name in ('patches', 'pre_logits')}
    if self.has_variable(DISCRIMINANT, 'directions'):
      centre: jax.Array = self.get_variable(DISCRIMINANT, 'centre')
      directions: jax.Array = self.get_variable(DISCRIMINANT, 'directions')
      return distance_towards_fakes(features['pre_logits'], centre, directions), features
    patches = features['patches']
    votes = jnp.stack([patches.mean((1, 2)), _strongest(patches)], -1)
    hidden = self.drop(features['pre_logits'], deterministic=not train)
    return self.fc(jnp.concatenate([hidden, votes], -1))[:, 0], features


def distance_towards_fakes(
  features: Float[Array | np.ndarray, 'b d'],
  centre: Float[Array | np.ndarray, ' d'],
  directions: Float[Array | np.ndarray, 'k d'],
) -> Float32[Array, ' b']:
  """How far features lie from the centre along the directions.

  A soft maximum: an unknown kind of fake lies a little along several directions.
  """
  along = jnp.matmul(features - centre[None], directions.T, precision='highest')
  return jax.nn.logsumexp(along, axis=1) - jnp.log(len(directions))


@functools.partial(jax.jit, static_argnums=0)
def scores_of_parts(
  model: PatchNet, variables: dict, image: Float[Array, 'h w 1'], kept: Bool[Array, 'n h w']
) -> Float32[Array, ' n']:
  """Scores of the stages of an image at the places kept.

  Elsewhere they become a typical original's: a stage's moments are those of the kept places and,
  for the missing share, of the discriminant's centre. All places kept give the image's score, none
  give 0. It is the network's maps that lose places, not the image, whose black or blurred places
  would look synthetic themselves; a kept place has seen its neighbours before they went.
  """
  centre, kept = variables[DISCRIMINANT]['centre'], kept[..., None].astype(jnp.float32)
  found = []
  for pixels, weights in ((image[None], kept), map(on_the_other_grid, (image[None], kept))):
    stages = model.apply(variables, pixels, train=False)[1]
    widths = [2 * stages[name].shape[-1] for name in STAGES]
    usual = jnp.split(centre, np.cumsum(widths[:-1]))
    parts = [_moments_of_parts(stages[n][0], weights[..., 0], u) for n, u in zip(STAGES, usual)]
    found.append(jnp.concatenate(parts, -1))
  return distance_towards_fakes((found[0] + found[1]) / 2, **variables[DISCRIMINANT])


def _moments_of_parts(x: jax.Array, kept: jax.Array, usual: jax.Array) -> jax.Array:
  """As `log_moments` f32[n, 2c] of x f[h, w, c] at kept f32[n, h', w'], and `usual` f32[2c]."""
  height, width, _ = x.shape
  shares = kept.reshape(len(kept), height, kept.shape[1] // height, width, -1).mean((2, 4))
  missing = 1 - shares.mean((1, 2))[:, None]
  usual_mean, usual_deviation = jnp.split(jnp.exp(usual) - LEAST_MOMENT, 2)
  usual_power = jnp.square(usual_deviation) - LEAST_VARIANCE + jnp.square(usual_mean)
  x = x.astype(jnp.float32)
  mean, power = (
    jnp.einsum('nhw,hwc->nc', shares, values, precision='highest') / (height * width)
    + missing * elsewhere[None]
    for values, elsewhere in ((x, usual_mean), (jnp.square(x), usual_power))
  )
  deviation = jnp.sqrt(jnp.maximum(power - jnp.square(mean), 0) + LEAST_VARIANCE)
  return jnp.log(jnp.concatenate([mean, deviation], -1) + LEAST_MOMENT)


def folded(x: Float[Array, 'b h w c']) -> Float[Array, 'b h//2 w//2 4*c']:
  """Each square of four pixels one behind the other."""
  b, height, width, c = x.shape
  squares = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return squares.reshape(b, height // 2, width // 2, 4 * c)


def on_the_other_grid(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Moved down and right by one pixel, so that other pixels share a square."""
  return jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), mode='edge')[:, :-1, :-1]


def with_residuals(x: Float[Array, 'b h w 1']) -> Float[Array, 'b h w 3']:
  """Grey values with two residuals of smoothing behind them."""
  once = smoothed(x, 1)
  twice = smoothed(once, 2)
  return jnp.concatenate([x, RESIDUAL_GAIN * (x - once), RESIDUAL_GAIN * (once - twice)], -1)


def smoothed(x: Float[Array, 'b h w c'], step: int) -> Float[Array, 'b h w c']:
  """By a binomial filter with taps `step` pixels apart, the edge repeated outside."""
  for axis in (1, 2):
    pad = [(0, 0)] * 4
    pad[axis] = (step, step)
    wide, length = jnp.pad(x, pad, mode='edge'), x.shape[axis]
    taps = [
      jax.lax.slice_in_dim(wide, i * step, i * step + length, axis=axis)
      for i in range(len(BINOMIAL))
    ]
    x = jnp.tensordot(jnp.asarray(BINOMIAL), jnp.stack(taps), 1)
  return x


def log_moments(x: Float[Array, 'b h w c']) -> Float32[Array, 'b 2*c']:
  """Log mean and log standard deviation over the places of x >= 0."""
  x = x.astype(jnp.float32)
  mean = x.mean((1, 2))
  variance = jnp.square(x - mean[:, None, None]).mean((1, 2))
  deviation = jnp.sqrt(variance + LEAST_VARIANCE)
  return jnp.log(jnp.concatenate([mean, deviation], -1) + LEAST_MOMENT)


def _strongest(patches: jax.Array) -> jax.Array:
  """f[b]: a smooth maximum of f[b, h, w] that does not grow with their number."""
  flat = patches.reshape(len(patches), -1)
  return jax.nn.logsumexp(flat, axis=1) - jnp.log(flat.shape[1])
