"""Settings that the experiments share: each data set, and the published hyper-parameters."""

from ml_collections import ConfigDict

from fct_jax import config as defaults

# The first 50 class folders of CIFAR-100 when their numbers are sorted as text, which is how the
# published runs chose the old model's classes. "first 50" would take them in numeric order.
CIFAR100_OLD_CLASSES = "0-5,10-53"


def digits(config: ConfigDict) -> ConfigDict:
    """Return the data keys of scikit-learn's 8×8 handwritten digits, enlarged to 16 px."""
    config.data.name = "digits"
    if "preprocessing" in config:
        config.preprocessing.size = 16
        config.preprocessing.flip = False  # a mirrored digit is not a digit
        config.preprocessing.mean = config.preprocessing.std = (0.5, 0.5, 0.5)
    return config


def cifar100(config: ConfigDict) -> ConfigDict:
    """Return the data keys of CIFAR-100 at 224 px, as published; see tools/prepare_dataset.py."""
    config.data.name = "cifar100"
    return config


def imagenet(config: ConfigDict) -> ConfigDict:
    """Return the data keys of ImageNet-1k, which tools/prepare_dataset.py prepares."""
    config.data.name = "imagenet2012"
    config.data.workers = 16
    if "preprocessing" in config:
        config.preprocessing.resize = 256
        config.preprocessing.train_crop = "random_resized"
    if "views" in config:
        config.views = 8  # random crops are drawn from this many cached views
    return config


def backbone() -> ConfigDict:
    """Return the published training of a backbone: SGD 1.024 at batch 1024, cosine, 100 epochs."""
    return defaults.backbone()


def digits_backbone() -> ConfigDict:
    """Return a short training of a ResNet-18 with an eighth of the width."""
    config = digits(backbone())
    config.model.name = "resnet18"
    config.model.width = 16
    config.model.embedding_dim = 32
    config.model.small_stem = True
    config.batch_size = 100
    config.optimizer.lr = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.warmup_epochs = 2
    config.epochs = 12
    config.evaluate_every_epochs = 6
    return config


def fct() -> ConfigDict:
    """Return FCT as published: squared error, Adam 5e-4, 80 epochs, BN frozen in the last half."""
    return defaults.transformation()


def fastfill() -> ConfigDict:
    """Return FastFill as published: alignment and classification, weighted by an uncertainty."""
    config = defaults.transformation()
    config.model.name = "fastfill"
    config.loss.discriminative_weight = 1.0
    return config


def digits_transformation(config: ConfigDict) -> ConfigDict:
    """Return a narrower and shorter training, for 1,000 images."""
    config = digits(config)
    config.old = "runs/digits/old"
    config.new = "runs/digits/new"
    config.views = 1
    config.model.inner_dim = 256
    config.batch_size = 100
    config.epochs = 40
    config.optimizer.schedule.warmup_epochs = 2
    config.evaluate_every_epochs = 10
    config.checkpoint_every_steps = 100  # an epoch takes less time than a checkpoint
    return config


def compatible() -> ConfigDict:
    """Return compatible training as published with AdvBCT: SGD 0.1 at batch 256, 30 epochs."""
    return defaults.compatible()


def gldv2_compatible() -> ConfigDict:
    """Return the training on Google Landmarks v2: ResNet-18 from ImageNet weights, 224 px."""
    config = compatible()
    config.data.name = "gldv2"
    config.data.dir = "data/gldv2"
    config.data.list = "data/gldv2/train.txt"
    config.data.workers = 16
    config.pretrained = "weights/resnet18.pth"
    return config


def market1501_compatible() -> ConfigDict:
    """Return the training on Market-1501 of "Bag of Tricks and A Strong Baseline" (CVPRW 2019)."""
    config = compatible()
    config.data.name = "market1501"
    config.data.dir = "data/market1501"
    config.data.workers = 8
    config.preprocessing.size = 256
    config.preprocessing.width = 128  # images of persons are upright
    config.preprocessing.flip = True
    config.model.name = "resnet50_projection"
    config.pretrained = "weights/resnet50.pth"
    config.batch_size = 64
    config.sampler.name = "identities"
    config.sampler.images = 4
    config.sampler.rounds = 0  # until the images of an identity are used up
    config.label_smoothing = 0.1
    config.model.last_stride = 1
    config.reid.pad, config.reid.erase, config.reid.neck = 10, 0.5, True
    config.reid.triplet_weight = 1.0
    config.reid.center_weight = 5e-4
    config.optimizer.name = "adam"
    config.optimizer.lr = 3.5e-4
    config.optimizer.schedule.milestones = (40, 70)
    config.optimizer.schedule.warmup_epochs = 10
    config.optimizer.schedule.warmup_start = 0.01
    config.epochs = 120
    return config


def ms1m_compatible() -> ConfigDict:
    """Return the training on MS1M: ArcFace on 112-px faces.

    The published 180,000 steps at batch 512 are 16 epochs.
    """
    config = compatible()
    config.data.name = "ms1m"
    config.data.dir = "data/ms1m"
    config.data.workers = 16
    config.preprocessing.size = 112
    config.preprocessing.flip = True
    config.preprocessing.mean = config.preprocessing.std = (0.5, 0.5, 0.5)
    config.model.name = "resnet50_projection"
    config.model.embedding_dim = 512
    config.model.small_stem = True  # first stage at full resolution, as usual for 112-px faces
    config.base_loss = "arcface_monotonic"
    config.scale = 64.0
    config.margin = 0.5
    config.batch_size = 512
    config.optimizer.schedule.milestones = (9, 14)
    config.epochs = 16
    return config


def published_bases() -> dict[str, dict]:
    """Return config changes by method, for methods that were published with another base loss.

    MixBCT mixes directions of old embeddings into the batch, and only ArcFace compares directions.
    """
    return {"mixbct": {"base_loss": "arcface", "scale": 64.0, "margin": 0.5}}


def compatible_transformation(config: ConfigDict) -> ConfigDict:
    """Return FCT or FastFill between models trained without augmentation: one view."""
    config.views = 1
    config.preprocessing.flip = False
    return config


def digits_compatible() -> ConfigDict:
    """Return a short training of a ResNet with an eighth of the width and an embedding of 32."""
    config = digits(compatible())
    config.model.width = 8
    config.model.embedding_dim = 32
    config.model.small_stem = True
    config.batch_size = 50
    config.optimizer.lr = 0.05
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_epochs = 2
    config.epochs = 12
    config.evaluate_every_epochs = 12
    config.checkpoint_every_steps = 1000  # only at the end
    return config


def evaluate() -> ConfigDict:
    """Return leave-one-out on the validation split, L2 distance, backfilling in 22 points."""
    return defaults.evaluate()
