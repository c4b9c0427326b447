"""Every configuration key there is, with its default and its meaning.

A config file starts from one of the functions here, sets what differs and
returns the result; ``check`` refuses keys that are not here.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from fct_jax.config_values import check_kind, check_values
from fct_jax.errors import UserError


def backbone() -> ConfigDict:
    """Return the config of an embedding model trained by classification."""
    config = ConfigDict()
    config.task = "backbone"
    config.data = data()
    config.preprocessing = preprocessing()
    config.model = ConfigDict()
    config.model.name = "resnet50"
    config.model.embedding_dim = 128
    config.model.last_nonlin = True  # False: embeddings may be negative
    config.model.normalize_embedding = False
    config.model.small_stem = False  # True: 3×3 stem without pooling, for small images
    config.model.width = 64  # channels of the first stage
    config.pretrained = ""  # torchvision or timm weights to start from, .pth or .safetensors
    config.label_smoothing = 0.1
    config.sampler = sampler()
    config.optimizer = optimizer()
    config.epochs = 100
    _loop(config)
    return config


def compatible() -> ConfigDict:
    """Return the config of a new model that searches an old model's gallery.

    Defaults are those of AdvBCT (CVPR 2023) and of the methods that it compares.
    """
    config = ConfigDict()
    config.task = "compatible"
    # "none" (a model alone), "bct", "bct_ract", "lce", "hot_refresh", "unibct", "advbct",
    # "contrastive", "triplet", "triplet_ract", "l2", "lwf", "focal_distillation", "oca" (needs a
    # larger embedding than the old one's), "bt2" (needs a teacher), "mixbct"; or your own,
    # "module:name"
    config.method = "advbct"
    # Run of the old model, EmbeddingSet of the training images, or a function, "module:function".
    config.old = ""
    # bt2: the same for the new model trained alone (method=none), whose vectors it follows
    config.teacher = ""
    config.callable_embeddings = "embeddings"  # folder that keeps the embeddings of functions
    # class_statistics_KIND.npz or the directory that holds it; "": made of the old run's data
    config.statistics = ""
    config.data = data()
    config.preprocessing = preprocessing()
    config.preprocessing.flip = False
    config.model = ConfigDict()
    config.model.name = "resnet18_projection"
    config.model.embedding_dim = 256
    config.model.small_stem = False  # True: 3×3 stem without pooling, for small images
    config.model.last_stride = 2  # of the last stage; 1 for larger maps in re-identification
    config.model.width = 64  # channels of the first stage
    config.pretrained = ""  # torchvision or timm weights to start from, .pth or .safetensors
    # "softmax", "arcface", "arcface_monotonic" (with the threshold), "cosface", "amsoftmax",
    # "circle" (published with scale 256, margin 0.25)
    config.base_loss = "softmax"
    config.scale = 30.0  # for all base losses but softmax
    config.margin = 0.3
    config.label_smoothing = 0.0
    config.reid = reid()
    config.faces = faces()
    # Path of a .npy with one integer per query; the report shows the gap between the best and worst
    # of these groups. Empty: the test set's own groups (classes, cameras or landmarks).
    config.groups = ""
    config.compatibility = compatibility()
    config.sampler = sampler()
    config.optimizer = optimizer()
    config.optimizer.center_lr = 0.5  # of the centre loss's centres: plain SGD
    config.optimizer.lr = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.name = "multistep"
    config.optimizer.schedule.warmup_epochs = 0
    config.optimizer.schedule.milestones = (5, 10, 20)
    config.epochs = 30
    _loop(config)
    config.batch_size = 256
    return config


def reid() -> ConfigDict:
    """Return the keys of re-identification: augmentation, further losses, and comparison."""
    config = ConfigDict()
    # The old embeddings remain those of the whole image.
    config.pad = 0  # pixels of black on every side, from which the image's size is cropped
    config.erase = 0.0  # probability that a rectangle is erased, published 0.5
    # True: triplet and centre loss see the projection before its BatchNorm (BNNeck)
    config.neck = False
    config.triplet_weight = 0.0  # batch-hard triplet; needs config.sampler.name=identities
    config.triplet_margin = 0.3
    config.triplet_soft = False  # True: softplus instead of the margin
    config.triplet_normalize = False  # True: use directions instead of raw embeddings
    config.center_weight = 0.0  # centre loss, published 0.0005
    config.rerank = False  # comparisons on "market1501": True re-ranks by k-reciprocal neighbours
    return config


def faces() -> ConfigDict:
    """Return the keys of "ijb": how a template's image embeddings become one vector."""
    config = ConfigDict()
    config.flip = False  # True: mean of an image's and its mirror image's embedding
    config.normalize = False  # True: scale to unit length first; False: longer ones weigh more
    # File of "image … score" lines, such as ijbc_name_5pts_score.txt, whose scores are weights;
    # "": all images weigh the same
    config.scores = ""
    return config


def sampler() -> ConfigDict:
    """Return the keys that choose the images of a batch."""
    config = ConfigDict()
    # "": every image once an epoch; "identities": `images` of each of batch_size / `images`
    # identities, for triplets; "balanced": every class equally often
    config.name = ""
    config.images = 4  # identities: K, images of an identity
    config.rounds = 1  # identities: times that one comes in an epoch; 0: until its images are used
    return config


def compatibility() -> ConfigDict:
    """Return the keys of the compatibility losses; each comment names the methods that read it."""
    config = ConfigDict()
    config.weight = 1.0  # weight of the whole compatibility loss, relative to the base loss
    config.scale = 30.0  # unibct: ArcFace against the old class centres
    config.margin = 0.3
    config.temperature = 0.01  # hot_refresh, contrastive
    config.top_k = 10  # hot_refresh, contrastive, triplet(_ract): hardest negatives; 0: all
    config.gather_gradient = False  # hot_refresh, triplet_ract: new negatives get a gradient
    config.triplet_margin = 0.8  # triplet(_ract)
    # lce: K residual blocks that transform old embeddings; if K > 0, RUN/gallery holds this
    # transformation of the old gallery, which is used like one of FCT's
    config.transformation_blocks = 0
    config.radius = "max"  # advbct: "max", or "min" as the published code without elasticity
    config.elastic = True  # advbct: learned radii
    config.threshold = 1.0  # advbct: T, to which elastic radii move
    config.adversarial_weight = 1.0  # advbct: 0 leaves the discriminator out
    config.mix_share = 0.3  # mixbct: share of a batch that old embeddings replace
    config.credible_share = 0.9  # mixbct: of a class's images, those nearest to their old mean
    # bt2: numbers of the new vector beyond the teacher's; 0: a quarter of the old size
    config.extra = 0  # published: 32 of 128
    config.lwf_temperature = 2.0
    config.focal_alpha = 1.0  # focal_distillation
    config.focal_beta = 5.0
    config.focal_temperature = 100.0
    config.focal_kind = "kl"  # "kl", "l2"
    return config


def simclr() -> ConfigDict:
    """Return the config of a model trained without labels, by contrasting two views of each image.

    Its run is the side information of a transformation. Defaults are those of SimCLR (ICML 2020)
    on ImageNet, with the embedding of the backbones.
    """
    config = ConfigDict()
    config.task = "simclr"
    config.data = data()
    config.preprocessing = preprocessing()  # train_crop: where crops are made, see `augmentation`
    config.augmentation = augmentation()
    config.model = backbone().model
    config.pretrained = ""  # torchvision or timm weights to start from, .pth or .safetensors
    config.head = ConfigDict()  # of the projection, which is not exported
    config.head.hidden_dim = 2048
    config.head.output_dim = 128
    config.temperature = 0.1
    config.optimizer = optimizer()
    config.optimizer.name = "lars"
    config.optimizer.lr = 4.8  # 0.3 at a batch of 256
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-6
    config.optimizer.schedule.warmup_epochs = 10
    config.epochs = 100
    _loop(config)
    config.batch_size = 4096
    return config


def augmentation() -> ConfigDict:
    """Return the keys of SimCLR's views; ``config.preprocessing.flip`` says whether to mirror.

    ``config.preprocessing.train_crop`` "none" makes the crops on the device, from small images;
    "random_resized" lets the host make them, from images of any size.
    """
    config = ConfigDict()
    config.crop_area = (0.08, 1.0)  # share of the image that a crop keeps
    config.rotation = 0.0  # largest angle, degrees
    config.jitter_strength = 1.0  # brightness, contrast, saturation ± 0.8, hue ± 0.2 circles
    config.jitter_probability = 0.8
    config.grey_probability = 0.2
    config.blur_probability = 0.5
    config.blur_sigma = (0.1, 2.0)  # pixels
    return config


def transformation() -> ConfigDict:
    """Return the config of FCT or FastFill: old and side embeddings to the new model's space."""
    config = ConfigDict()
    config.task = "transformation"
    # Each is the directory of a run, whose model embeds `data`, or of an EmbeddingSet, or a Python
    # function "module:function" from uint8 images (N, S, S, 3) to embeddings (N, D).
    config.old = ""
    config.new = ""
    config.side = ""  # side information; "": the old embedding is used instead
    config.classifier = ""  # run or .npy (C, D) for the discriminative loss; "": of the new run
    config.callable_embeddings = "embeddings"  # folder that keeps the embeddings of functions
    config.validation_old = ""  # EmbeddingSets to validate on if old and new are not runs
    config.validation_new = ""
    config.validation_side = ""
    config.data = data()
    config.preprocessing = preprocessing()
    config.views = 2  # cached augmented views of an image; a random flip has just two
    config.online = False  # True: recompute the embeddings of every batch, as the original does
    config.model = ConfigDict()
    config.model.name = "fct"
    config.model.inner_dim = 2048
    config.loss = ConfigDict()
    config.loss.similarity = "mse"  # "mse", "l1", "cosine"
    config.loss.similarity_weight = 1.0
    config.loss.discriminative_weight = 0.0  # FastFill: 1.0
    config.loss.label_smoothing = 0.1
    config.loss.uncertainty_weight = 0.5  # used where the model gives an uncertainty
    config.optimizer = optimizer()
    config.optimizer.name = "adam"
    config.optimizer.lr = 5e-4
    config.epochs = 80
    config.freeze_batch_norm_from = 0.5  # share of the epochs; from there BN runs in inference mode
    _loop(config)
    return config


def evaluate() -> ConfigDict:
    """Return the config of an evaluation: retrieval metrics and backfilling curves."""
    config = ConfigDict()
    config.task = "evaluate"
    config.old = ""  # run, EmbeddingSet, or a Python function, "module:function"
    config.new = ""
    config.side = ""  # the same for the side information, if it was used
    config.callable_embeddings = "embeddings"  # folder that keeps the embeddings of functions
    # "NAME=WHERE,NAME=WHERE": runs of transformations, maps (a directory or module:function),
    # transformed vectors, or "identity" for a backward-compatible new model: it searches the old
    # gallery as it is.
    config.transformed = ""
    config.data = data()
    config.split = "validation"
    config.query_old = ""  # a separate query set, embedded by old and new; "": leave-one-out
    config.query_new = ""
    config.metric = "l2"  # "l2", "cosine"
    config.ks = (1, 5)
    config.map_at = 0  # 0: mAP over the full ranking; R: mAP@R and CMC through Faiss
    config.steps = 20  # interior points of a backfilling curve
    config.orders = "random,uncertainty,distance"
    config.random_orders = 3  # random orders to average over
    config.per_class = False
    config.groups = ""  # .npy of N integers: results for each group
    config.seed = 0
    config.batch_size = 256
    return config


def embed() -> ConfigDict:
    """Return the config that embeds images, or transforms an EmbeddingSet."""
    config = ConfigDict()
    config.task = "embed"
    config.model = ""  # a run, or a Python function, "module:function"
    config.data = data()  # name "": the data that the run was trained on
    config.data.name = ""
    config.split = "validation"
    config.class_statistics = False  # True: also class_statistics_euclidean.npz and _angle.npz
    config.old = ""  # EmbeddingSets if `model` is a transformation
    config.side = ""
    config.batch_size = 256  # on each device
    # Work is recorded after this number of rows: a killed run resumes at the next shard.
    config.shard_size = 65_536
    return config


def data() -> ConfigDict:
    """Return the keys that name the images."""
    config = ConfigDict()
    # "digits", "cifar100", "imagenet2012", "tfds:NAME", "folder", "list", "faces", "ms1m",
    # "market1501", "roxford5k", "rparis6k", "gldv2", "ijb"
    config.name = "digits"
    config.dir = ""  # TFDS data directory or the data set's folder
    # Training images, one "path label" per line, paths below `dir`: for "list" and "gldv2"; for
    # "market1501" optional, "path label camera view". For "ijb" the file of images and templates.
    config.list = ""
    config.validation_list = ""  # validation images of "list" and "gldv2", in the same form
    config.query_crop = False  # "roxford5k", "rparis6k": True crops queries to their box
    config.classes = ""  # of the training split: "" all, "first 50", "0-5,10-53"
    # A seeded share for an old model, or everything for a new one, old classes numbered first:
    # "old classes 0.3", "new classes 0.3", "old images 0.3", each "… seed 666"
    config.subset = ""
    config.on_error = "raise"  # for an unreadable image or a dead worker: "raise" or "skip"
    config.workers = 0  # processes that decode images
    config.in_memory = "auto"  # whole data set on the device: "auto", "yes", "no"
    return config


def preprocessing() -> ConfigDict:
    """Return the keys that turn a stored image into the model's input."""
    config = ConfigDict()
    config.size = 224  # side of the model's input, pixels
    config.width = 0  # width of the input if it is not square; 0: equal to its height, `size`
    config.resize = 0  # R: shorter side to R, then centre crop; 0: the whole image squashed
    config.train_crop = "none"  # "none", "random_resized"
    config.flip = True
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    return config


def optimizer() -> ConfigDict:
    """Return the keys of SGD, Adam or LARS: coupled decay, a rate that is constant in an epoch."""
    config = ConfigDict()
    config.name = "sgd"  # "sgd", "adam", "lars" (spares batch norm and biases always)
    config.lr = 1.024
    # lr is meant for this batch: lr · batch_size / lr_reference_batch is used; 0: lr is not scaled
    config.lr_reference_batch = 0
    config.momentum = 0.875
    config.nesterov = False
    config.weight_decay = 2.0**-15
    config.decay_batch_norm = True  # False: no decay on any BatchNorm scale or bias
    config.bias_lr_factor = 1.0  # factor on the learning rate of biases, also those of BatchNorm
    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # "cosine", "constant", "multistep"
    config.schedule.warmup_epochs = 5
    # The warm-up starts from this share of lr; 0: lr / warmup_epochs, as FCT published.
    config.schedule.warmup_start = 0.0
    config.schedule.floor = 0.0  # cosine: share of lr that it falls to
    config.schedule.milestones = ()  # multistep: epochs; () : every `step` epochs
    config.schedule.step = 30
    config.schedule.gamma = 0.1
    return config


def _loop(config: ConfigDict) -> None:
    """Add the keys of the training loop, which every task has."""
    # The global batch, over all devices and micro-batches; 0: as per_device_batch_size says
    config.batch_size = 1024
    config.per_device_batch_size = 0  # of one micro-batch; 0: what batch_size leaves for a device
    # An update adds up this many micro-batches, one after the other, to save memory. The gradient
    # is that of the whole batch if the loss is a mean over samples; BatchNorm, and losses between
    # samples (hot_refresh, contrastive, triplet, NT-Xent, advbct's discriminator), see one
    # micro-batch at a time.
    config.accumulate_steps = 1
    # The images of an epoch that do not fill a batch: "drop" leaves out others in every epoch;
    # "keep" makes a smaller last batch, as the published code does, if the devices divide it.
    config.last_batch = "drop"
    config.remat = False  # True: compute a block's activations again in the backward pass
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: all that "model" leaves
    config.mesh.model = 1  # devices that share a large classifier
    config.compute_dtype = "float32"  # or "bfloat16"; parameters and loss stay float32
    config.seed = 0
    config.log_every_steps = 50
    config.evaluate_every_epochs = 5
    config.checkpoint_every_steps = 0  # 0: at the end of every epoch
    config.keep_checkpoints = 2
    config.keep_best = ""  # "max top1", "min loss": also the best checkpoint by validation
    config.export = "last"  # which state becomes the model: "last" or, of keep_best, "best"


def check(config: ConfigDict) -> None:
    """Check that every key is known, and that every value can be, before anything is loaded.

    Raises UserError with the nearest right key or value.
    """
    _compare(config, defaults(config.get("task", "")), "config")
    check_values(config)


def defaults(task: str) -> ConfigDict:
    """Return the config of a task with all of its defaults. Raises UserError: an unknown task."""
    known = (backbone, simclr, transformation, compatible, evaluate, embed)
    kinds = {function.__name__: function for function in known}
    if task not in kinds:
        raise UserError(f"config.task is {task!r}; known: {', '.join(kinds)}")
    return kinds[task]()


def at_home(config: ConfigDict) -> ConfigDict:
    """Return a copy whose paths have the home directory in place of ``~``, as a shell gives it.

    >>> config = ConfigDict({"old": "~/runs/old", "transformed": "FCT=~/runs/fct,BCT=runs/bct"})
    >>> at_home(config).old == str(Path.home() / "runs/old")
    True
    """
    made = config.copy_and_resolve_references()
    with made.unlocked():
        _expand(made)
    return made


def _expand(section: ConfigDict) -> None:
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            _expand(value)
        elif isinstance(value, str) and "~" in value:
            section[key] = _HOME.sub(lambda found: str(Path(found[0]).expanduser()), value)


# Finds ~ in a path, or in each path of "NAME=PATH,NAME=PATH".
_HOME = re.compile(r"(?<![^=,])~[^/,=]*(?=/|,|$)")


def _compare(config: Mapping, known: Mapping, where: str) -> None:
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
            raise UserError(f"unknown config key {where}.{key}; did you mean {close[0]!r}?")
        default = known[key]
        if isinstance(default, ConfigDict) != isinstance(value, ConfigDict):
            raise UserError(f"{where}.{key} must be of the kind of {default!r}, not {value!r}")
        if isinstance(default, ConfigDict):
            _compare(value, default, f"{where}.{key}")
        else:
            check_kind(value, default, f"{where}.{key}")
    for key in known:
        if key not in config:
            raise UserError(f"config key {where}.{key} is missing")
