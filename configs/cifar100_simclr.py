"""Side information of CIFAR-100: ResNet-50 trained by SimCLR on the old model's 50 classes.

  python -m fct_jax.train --config configs/cifar100_simclr.py --workdir runs/cifar100/simclr

Then, with side information:

  python -m fct_jax.train --config configs/cifar100_fct.py --workdir runs/cifar100/fct_side \\
      --config.side=runs/cifar100/simclr

Optimizer, temperature and augmentation are those published with SimCLR for CIFAR-10. Images are
cropped on the device, from the stored 32×32 pixels.
Published, FCT new/old with side information, CMC@1 / CMC@5 / mAP in percent: 50.2 / 73.7 / 32.2
(without it 47.2 / 72.6 / 25.8).
"""

from fct_jax import config as defaults
from fct_jax import recipes


def get_config():
    config = recipes.cifar100(defaults.simclr())
    config.data.classes = recipes.CIFAR100_OLD_CLASSES
    config.augmentation.jitter_strength = 0.5
    config.augmentation.blur_probability = 0.0
    config.temperature = 0.5
    config.batch_size = 512
    config.optimizer.lr = 2.0  # 1.0 · batch_size / 256
    config.optimizer.weight_decay = 1e-4
    config.epochs = 1000
    config.evaluate_every_epochs = 25
    return config
