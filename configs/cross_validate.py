"""One network over all folds of your own class folders, at 160 px.

python launch.py --config=configs/cross_validate.py --workdir=runs/folds --config.data.path=FOLDER

Every image is tested once, by a network that did not train on it; the results are pooled. Another
network: --config.model.name=resnet18. 13 to 25 minutes a fold of 2,000 training images on one core.
Light augmentation, for slices that resemble each other; half of them stay as sharp as tested ones
are.

Not yet measured: all folds on the code of today.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'classifier'
  config.data.source = 'folders'
  config.data.image_size = 160
  config.data.aspect = 'stretch'
  config.split.folds = 5
  config.split.fold = config_lib.EVERY_FOLD
  config.split.val_fraction = 0.05
  config.augment.shift = 0.03
  config.augment.scale = 0.05
  config.augment.rotate_degrees = 4.0
  config.augment.intensity = 0.05
  config.augment.integer_shift_fraction = 0.5
  config.model.cnn.widths = (32, 48, 96, 192, 256)
  config.model.cnn.stem_stride = 2  # halves the image at once
  config.model.cnn.convs = (1, 2)
  config.model.views = 5
  config.train.epochs = 30
  config.train.eval_every_epochs = 5
  config.train.select_checkpoint = 'last'
  config.train.label_smoothing = 0.1
  return config
