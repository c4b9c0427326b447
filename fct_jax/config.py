"""Every configuration key, with its default and its meaning.

`config_sections` has the keys that several tasks share.

A config file starts from one of the functions here, sets the keys that differ and returns the
result; ``check`` rejects keys that are not defined here.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from fct_jax.config_sections import (
    add_loop,
    augmentation,
    compatibility,
    data,
    faces,
    optimizer,
    preprocessing,
    reid,
    sampler,
)
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
    add_loop(config)
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
    # class_statistics_KIND.npz or the directory that holds it; "": computed from the old run's data
    config.statistics = ""
    config.data = data()
    config.preprocessing = preprocessing()
    config.preprocessing.flip = False
    config.model = ConfigDict()
    config.model.name = "resnet18_projection"
    config.model.embedding_dim = 256
    config.model.small_stem = False  # True: 3×3 stem without pooling, for small images
    config.model.last_stride = 2  # stride of the last stage; 1: larger maps (re-identification)
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
    config.optimizer.center_lr = 0.5  # plain SGD on the centre loss's centres
    config.optimizer.lr = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.name = "multistep"
    config.optimizer.schedule.warmup_epochs = 0
    config.optimizer.schedule.milestones = (5, 10, 20)
    config.epochs = 30
    add_loop(config)
    config.batch_size = 256
    return config


def simclr() -> ConfigDict:
    """Return the config of a model trained without labels, by contrasting two views of each image.

    Its run is the side information of a transformation. Defaults are those of SimCLR (ICML 2020)
    on ImageNet, with the embedding of the backbones.
    """
    config = ConfigDict()
    config.task = "simclr"
    config.data = data()
    config.preprocessing = preprocessing()  # for train_crop see `augmentation`
    config.augmentation = augmentation()
    config.model = backbone().model
    config.pretrained = ""  # torchvision or timm weights to start from, .pth or .safetensors
    config.head = ConfigDict()  # the projection, which is not exported
    config.head.hidden_dim = 2048
    config.head.output_dim = 128
    config.temperature = 0.1
    config.optimizer = optimizer()
    config.optimizer.name = "lars"
    config.optimizer.lr = 4.8  # equals 0.3 per 256 images of the batch
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-6
    config.optimizer.schedule.warmup_epochs = 10
    config.epochs = 100
    add_loop(config)
    config.batch_size = 4096
    return config


def transformation() -> ConfigDict:
    """Return the config of FCT or FastFill: old and side embeddings to the new model's space."""
    config = ConfigDict()
    config.task = "transformation"
    # Each names the directory of a run, whose model embeds `data`, or of an EmbeddingSet, or a
    # Python function "module:function" from uint8 images (N, S, S, 3) to embeddings (N, D).
    config.old = ""
    config.new = ""
    config.side = ""  # side information; "": the old embedding is used instead
    config.classifier = ""  # run or .npy (C, D) for the discriminative loss; "": the new run's
    config.callable_embeddings = "embeddings"  # folder that keeps the embeddings of functions
    config.validation_old = ""  # EmbeddingSets to validate on if old and new are not runs
    config.validation_new = ""
    config.validation_side = ""
    config.data = data()
    config.preprocessing = preprocessing()
    config.views = 2  # cached augmented views per image; a random flip has just two
    config.online = False  # True: recompute every batch's embeddings, as the published code does
    config.model = ConfigDict()
    config.model.name = "fct"
    config.model.inner_dim = 2048
    config.loss = ConfigDict()
    config.loss.similarity = "mse"  # "mse", "l1", "cosine"
    config.loss.similarity_weight = 1.0
    config.loss.discriminative_weight = 0.0  # FastFill: 1.0
    config.loss.label_smoothing = 0.1
    config.loss.uncertainty_weight = 0.5  # used if the model returns an uncertainty
    config.optimizer = optimizer()
    config.optimizer.name = "adam"
    config.optimizer.lr = 5e-4
    config.epochs = 80
    config.freeze_batch_norm_from = 0.5  # share of the epochs; from there BN runs in inference mode
    add_loop(config)
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
    # transformed vectors, or "identity" for a backward-compatible new model, which searches the old
    # gallery unchanged.
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
    config.groups = ""  # .npy of N integers, to report results for each group
    config.seed = 0
    config.batch_size = 256
    return config


def embed() -> ConfigDict:
    """Return the config that embeds images, or transforms an EmbeddingSet."""
    config = ConfigDict()
    config.task = "embed"
    config.model = ""  # a run, or a Python function, "module:function"
    config.data = data()  # with name "", the data that the run was trained on
    config.data.name = ""
    config.split = "validation"
    config.class_statistics = False  # True: also class_statistics_euclidean.npz and _angle.npz
    config.old = ""  # EmbeddingSets if `model` is a transformation
    config.side = ""
    config.batch_size = 256  # on each device
    # Work is recorded after this number of rows: a killed run resumes at the next shard.
    config.shard_size = 65_536
    return config


def check(config: ConfigDict) -> None:
    """Check that every key is known and every value is allowed, before anything is loaded.

    Raises UserError that gives the nearest valid key or value.
    """
    _compare(config, defaults(config.get("task", "")), "config")
    check_values(config)


def defaults(task: str) -> ConfigDict:
    """Return a task's config with all of its defaults. Raises UserError if the task is unknown."""
    known = (backbone, simclr, transformation, compatible, evaluate, embed)
    kinds = {function.__name__: function for function in known}
    if task not in kinds:
        raise UserError(f"config.task is {task!r}; known: {', '.join(kinds)}")
    return kinds[task]()


def at_home(config: ConfigDict) -> ConfigDict:
    """Return a copy in whose paths ``~`` is replaced by the home directory, as in a shell.

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
