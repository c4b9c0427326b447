"""Sections that the configs of several tasks share, each key with its default and meaning."""

from ml_collections import ConfigDict


def reid() -> ConfigDict:
    """Return the keys of re-identification: augmentation, further losses, and comparison."""
    config = ConfigDict()
    # The old embeddings remain those of the whole image.
    config.pad = 0  # black pixels added on every side before a random crop of the original size
    config.erase = 0.0  # probability that a rectangle is erased; published: 0.5
    # True: triplet and centre loss see the projection before its BatchNorm (BNNeck)
    config.neck = False
    config.triplet_weight = 0.0  # batch-hard triplet; needs config.sampler.name=identities
    config.triplet_margin = 0.3
    config.triplet_soft = False  # True: softplus instead of the margin
    config.triplet_normalize = False  # True: use directions instead of raw embeddings
    config.center_weight = 0.0  # centre loss; published: 0.0005
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
    # "": every image once per epoch; "identities": `images` of each of batch_size / `images`
    # identities, for triplets; "balanced": every class equally often
    config.name = ""
    config.images = 4  # identities: K, images of each identity in a batch
    config.rounds = 1  # identities: occurrences per epoch; 0: until an identity's images are used
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
    # transformation of the old gallery, which is used like an FCT transformation
    config.transformation_blocks = 0
    config.radius = "max"  # advbct: "max", or "min" like the published code without elasticity
    config.elastic = True  # advbct: learned radii
    config.threshold = 1.0  # advbct: T, towards which elastic radii move
    config.adversarial_weight = 1.0  # advbct: 0 leaves the discriminator out
    config.mix_share = 0.3  # mixbct: share of a batch that old embeddings replace
    config.credible_share = 0.9  # mixbct: share of a class's images, those nearest its old mean
    # bt2: dimensions of the new vector beyond the teacher's; 0: a quarter of the old size
    config.extra = 0  # published: 32 of 128
    config.lwf_temperature = 2.0
    config.focal_alpha = 1.0  # focal_distillation
    config.focal_beta = 5.0
    config.focal_temperature = 100.0
    config.focal_kind = "kl"  # "kl", "l2"
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
    config.classes = ""  # classes of the training split: "" for all, "first 50", "0-5,10-53"
    # A seeded share for an old model, or everything for a new one, with old classes numbered first:
    # "old classes 0.3", "new classes 0.3", "old images 0.3", each optionally with "seed 666"
    config.subset = ""
    config.on_error = "raise"  # for an unreadable image or a dead worker: "raise" or "skip"
    config.workers = 0  # processes that decode images
    config.in_memory = "auto"  # keep the whole data set on the device: "auto", "yes", "no"
    return config


def preprocessing() -> ConfigDict:
    """Return the keys that turn a stored image into the model's input."""
    config = ConfigDict()
    config.size = 224  # side of the model's input, pixels
    config.width = 0  # width of the input if it is not square; 0: equal to its height, `size`
    config.resize = 0  # R: scale the shorter side to R, crop the centre; 0: squash the whole image
    config.train_crop = "none"  # "none", "random_resized"
    config.flip = True
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    return config


def optimizer() -> ConfigDict:
    """Return the keys of SGD, Adam or LARS.

    Weight decay is coupled, and the learning rate is constant within an epoch.
    """
    config = ConfigDict()
    config.name = "sgd"  # "sgd", "adam", "lars" (never decays batch norm or biases)
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
    config.schedule.floor = 0.0  # cosine: final learning rate, as a share of lr
    config.schedule.milestones = ()  # multistep: epochs; (): every `step` epochs
    config.schedule.step = 30
    config.schedule.gamma = 0.1
    return config


def add_loop(config: ConfigDict) -> None:
    """Add the keys of the training loop, which every task has."""
    # Global batch, over all devices and micro-batches; 0: determined by per_device_batch_size
    config.batch_size = 1024
    config.per_device_batch_size = 0  # in one micro-batch; 0: determined by batch_size
    # An update accumulates this many micro-batches, one after the other, to save memory. The
    # gradient is that of the whole batch if the loss is a mean over samples; BatchNorm, and losses
    # between samples (hot_refresh, contrastive, triplet, NT-Xent, advbct's discriminator), see one
    # micro-batch at a time.
    config.accumulate_steps = 1
    # Images of an epoch that do not fill a batch: "drop" leaves out different ones in every epoch;
    # "keep" makes a smaller last batch, as the published code does, if the devices divide it.
    config.last_batch = "drop"
    config.remat = False  # True: recompute a block's activations in the backward pass
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: as many as "model" leaves
    config.mesh.model = 1  # devices that share a large classifier
    config.compute_dtype = "float32"  # or "bfloat16"; parameters and loss stay float32
    config.seed = 0
    config.log_every_steps = 50
    config.evaluate_every_epochs = 5
    config.checkpoint_every_steps = 0  # 0: at the end of every epoch
    config.keep_checkpoints = 2
    config.keep_best = ""  # "max top1", "min loss": also keep the best checkpoint by validation
    config.export = "last"  # state that becomes the model: "last", or "best" (needs keep_best)
