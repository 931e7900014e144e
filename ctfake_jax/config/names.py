"""Names that config values are chosen from."""

# Ways to make a fake from a real image; those of EDITS need no trained generator.
EDITS = ('blended', 'inpainted', 'copied')
METHODS_ON_REALS = ('reconstructions', *EDITS)
GENERATORS = ('gan', 'vae', 'diffusion', 'autoencoder')
TASKS = (
  'classifier',
  *GENERATORS,
  'generate',
  'evaluate',
  'predict',
  'export',
  'study',
  'benchmark',
  'detector',
  'detect',
  'recalibrate',
  'explain',
  'detector_bench',
  'phantom_series',
  'tamper',
  'forensics',
  'forensics_bench',
)
FAMILIES = (
  'dcgan',
  'resize_gan',
  'vae',
  'vae_reconstruction',
  'diffusion',
  'diffusion_reconstruction',
  'autoencoder_reconstruction',
  *EDITS,
)
# Those of the study, and all that can be trained.
CLASSIFIERS = ('cnn', 'resnet18', 'resnet50', 'mobilenetv2')
MODELS = (*CLASSIFIERS, 'resnet101', 'densenet121', 'densenet201', 'vgg19')
# Methods of the detector bench; the first is judged by batches of labelled images.
BENCH_METHODS = (
  *('fall_of_50', 'max_softmax', 'energy', 'mahalanobis', 'neighbours', 'spectrum', 'svm'),
  *('random_forest', 'decision_tree', 'reservoir', 'diffusion_residual', *MODELS, 'detector'),
)
# Ways to each change of a series; the first is usual.
TAMPERING = {
  'inject': ('sculpt', 'transplant'),
  'remove': ('fill', 'copy_move', 'renoise'),
  'copy_move': ('copy_move',),
}
# Kinds of edits that the forensic network learns from; `whole` slices are fakes all over.
EDIT_KINDS = (
  *('sculpt', 'fill', 'copy_move', 'renoise', 'graft', 'lesion', 'resampled', 'decoded'),
  *('smoothed', 'noised', 'whole'),
)
# Scanners of the phantom.
SCANNERS = ('A', 'B', 'C', 'D')
EVERY_FOLD = -1  # of split.fold: each in turn, pooled
# Keys that had another name once, in records and commands of before.
RENAMED = {
  'augment.sharp': 'augment.integer_shift_fraction',
  'train.choose': 'train.select_checkpoint',
  'gan.label_loss': 'gan.aux_classifier_weight',
  'prior_fake': 'fake_prevalence',
  'detection.fakes_to_learn': 'detection.train_fakes_per_family',
  'detection.fakes_per_family': 'detection.eval_fakes_per_family',
  'bench.winners_seeds': 'bench.top_two_seeds',
}
