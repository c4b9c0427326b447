"""Backward-compatible training: a new model whose queries search the old model's gallery.

The loss is classification of the new data plus the losses that a method of ``methods.py`` adds.
The old model takes no part in a step: its embeddings of the training images never change, so they
are computed once and looked up.
"""

import shutil

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from fct_jax import losses, models
from fct_jax.data.augment import erase, pad_and_crop
from fct_jax.errors import UserError
from fct_jax.frozen.model import write_model
from fct_jax.runtime import sharding
from fct_jax.train.backbone import Backbone
from fct_jax.train.compatible.methods import Compatibility, Method, Step, find_method
from fct_jax.train.compatible.metric_losses import MetricLosses
from fct_jax.train.compatible.old_model import OldModel, old_model


class Compatible(Backbone):
    """A backbone and a compatibility method; see ``loop.py`` for what a task offers.

    The trained parameters are {"model": …, "method": …, "metric": …}; the latter two belong to the
    losses, and only the model is exported.
    """

    def __init__(self, config: ConfigDict, mesh, old: OldModel | None = None):
        """Load the old model that the config names, unless it is given."""
        method = find_method(config.method)
        _check_reid(config)
        super().__init__(config, mesh)
        if config.method == "none":
            old = OldModel(0)
        elif old is None:
            old = old_model(config, method, self._train)
        if config.method != "none":
            _check_size(config, method, self.dim, old)
        self._old = old
        constants = {
            "embeddings": old.embeddings,
            "classifier": old.classifier,
            "statistics": old.statistics,
            "means": old.means,
            "credible": old.credible,
            "teacher": old.teacher,
        }
        self.frozen = sharding.put_replicated(constants, mesh)
        self._row = method
        self._served_as = config.model.name, self._kwargs
        self._served = self._module
        if method.served is not None:
            options = config.compatibility
            self._served_as = method.served.build(*self._served_as, old.dim, options)
        if self._served_as[0] != config.model.name:
            name, kwargs = self._served_as
            self._served = models.build(name, **kwargs)
        self._method = Compatibility(method, FrozenConfigDict(config.compatibility))
        self._metric = MetricLosses(FrozenConfigDict(config.reid), self._train.num_classes)

    def init(self, key):
        """Return fresh variables of the model and of the losses."""
        model_key, method_key = jax.random.split(key)
        model = super().init(model_key)
        # Only shapes matter: the model need not run.
        outputs = jnp.zeros((2, self._train.num_classes)), jnp.zeros((2, self.dim))
        numbers = jnp.zeros(2, jnp.int32)
        batch = {"label": numbers, "index": numbers, "flip": numbers}
        seen = jax.eval_shape(self.see, model["params"], outputs, self.frozen, batch, 0)
        seen = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), seen)
        method = self._method.init(method_key, seen, self._head(seen), method_key)
        metric = self._metric.init(jax.random.fold_in(key, 2), seen.embedding, numbers)
        parts = {"model": model, "method": method, "metric": metric}
        return {
            kind: {name: part.get(kind, {}) for name, part in parts.items()}
            for kind in ("params", "batch_stats")
        }

    def warm_start(self, variables):
        """Take the weights of ``config.pretrained`` if it is given."""
        model = super().warm_start(_model_of(variables))
        return {part: {**variables[part], "model": model[part]} for part in variables}

    def export(self, variables):
        """Return the variables of the exported model, without those that only training needs."""
        model = _model_of(variables)
        if self._row.served is None:
            return model
        learned = variables["params"]["method"]
        return self._row.served.variables(model, learned, self._config.compatibility)

    def describe(self) -> dict:
        """Return the entries of ``model.json``, with the old model that the new one fits."""
        name, kwargs = self._served_as
        described = {**super().describe(), "name": name, "kwargs": kwargs}
        if self._served is not self._module:
            described["dim"] = self._dim_of(self._served)
        if self._config.method != "none":
            described["compatible"] = {
                "method": self._config.method,
                "old_fingerprint": self._old.fingerprint,
                "old_dim": self._old.dim,
                "old_first": self._row.old_first,
            }
        return described

    def summary(self) -> list[str]:
        """Return lines that name the model, its training data and the old model."""
        config = self._config
        if config.method == "none":
            return [*super().summary(), "no old model (config.method=none)"]
        model = f"model {self._old.fingerprint}, " if self._old.fingerprint else ""
        old = f"old: {config.old} ({model}dimension {self._old.dim})"
        lines = [*super().summary(), f"{old}; method {config.method}, base loss {config.base_loss}"]
        return [*lines, f"teacher: {config.teacher}"] if self._row.teacher else lines

    def finish(self, workdir, fingerprint: str, variables) -> None:
        """Write LCE's transformation of an old gallery as a run below the new model's."""
        learned = {part: variables[part]["method"].get("transformation") for part in variables}
        if learned["params"]:
            description = {
                "kind": "transformation",
                "name": "lce",
                "kwargs": {"blocks": self._config.compatibility.transformation_blocks},
                "dim": self.dim,
                "old_dim": self.dim,
                "side_dim": self.dim,
                "needs_side": False,
                "old_fingerprint": self._old.fingerprint,
                "new_fingerprint": fingerprint,
                "side_fingerprint": None,
            }
            gallery = workdir / "gallery"
            if gallery.is_dir():
                shutil.rmtree(gallery)  # left by a run that was killed before its own model
            write_model(gallery / "model", description, learned)

    def loss(self, variables, frozen, batch, step, key, freeze_batch_norm):
        """Return base loss and compatibility losses of a batch of images."""
        del freeze_batch_norm
        images = self._preprocessing.on_device(batch["image"], batch["flip"])
        mix_key = None if self._row.classified is None else jax.random.fold_in(key, 1)
        batch = {**batch, "label": sharding.for_classes(batch["label"])}
        outputs, new = self._module.apply(
            _model_of(variables),
            self.augmented(images, key),
            train=True,
            mutable=["batch_stats", *(["intermediates"] if self._config.reid.neck else [])],
        )
        seen = self.see(variables["params"]["model"], outputs, frozen, batch, step)
        method = {part: variables[part]["method"] for part in variables}
        (base_logits, terms), learned = self._method.apply(
            method, seen, self._head(seen), mix_key, mutable=["batch_stats"]
        )
        base = losses.label_smoothed_cross_entropy(
            base_logits, batch["label"], self._config.label_smoothing
        ).mean()
        metric = {"params": variables["params"]["metric"]}
        compared = new["intermediates"]["projected"][0] if self._config.reid.neck else outputs[1]
        added = self._metric.apply(metric, compared, seen.labels)
        loss = self._row.base_weight * base + sum(added.values())
        loss += self._config.compatibility.weight * terms.total
        batch_stats = {
            "model": new["batch_stats"],
            "method": learned.get("batch_stats", {}),
            "metric": {},
        }
        logits = seen.logits if self._row.served is None else base_logits
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        metrics = {"base": base, **added, **terms.losses}
        metrics |= {"share": jnp.float32(terms.share), "accuracy": accuracy}
        return loss, (batch_stats, metrics)

    def augmented(self, images, key):
        """Augment normalised images as person re-identification does, if asked for."""
        options = self._config.reid
        if not (options.pad or options.erase):
            return images
        crop_key, erase_key = jax.random.split(key)
        if options.pad:
            black = -jnp.asarray(self._preprocessing.mean) / jnp.asarray(self._preprocessing.std)
            images = pad_and_crop(images, crop_key, options.pad, black)
        return erase(images, erase_key, options.erase) if options.erase else images

    def see(self, params, outputs, frozen, batch, step) -> Step:
        """Return the method's view of a step."""
        logits, embedding = outputs
        credible = frozen["credible"]

        def of_batch(embeddings):
            if embeddings is None:
                return None
            view = batch["flip"].astype(jnp.int32) if len(embeddings) == 2 else 0
            return embeddings[view, batch["index"]]

        per_epoch, epochs = self.feed.steps_per_epoch, self._config.epochs
        return Step(
            embedding=embedding,
            logits=logits,
            classifier=params["classifier"]["kernel"].T,
            labels=batch["label"],
            old_embedding=of_batch(frozen["embeddings"]),
            old_classifier=frozen["classifier"],
            statistics=frozen["statistics"],
            progress=step / (epochs * per_epoch),
            adversarial_weight=losses.adversarial_weight(step // per_epoch, epochs),
            old_means=frozen["means"],
            credible=None if credible is None else credible[batch["index"]],
            teacher=of_batch(frozen["teacher"]),
        )

    def _head(self, seen: Step):
        """Return the function from embeddings to the logits of the base loss."""

        def logits(embedding):
            classifier = seen.classifier[:, : embedding.shape[-1]]
            return self._base_logits(embedding, classifier, seen.labels)

        return logits

    def _base_logits(self, embedding, classifier, labels):
        config, embedding = self._config, sharding.for_classes(embedding)
        return losses.base_logits(
            config.base_loss, embedding, classifier, labels, config.scale, config.margin
        )

    def _class_scores(self, variables, images):
        """Return the base loss's logits without a margin."""
        embedding = self._served.apply(variables, images)[1]
        classifier = variables["params"]["classifier"]["kernel"].T
        return self._base_logits(embedding, classifier, jnp.full(len(images), -1))


def _model_of(variables) -> dict:
    """Return the trained model's own variables."""
    return {part: variables[part]["model"] for part in variables}


def _check_size(config: ConfigDict, method: Method, own: int, old: OldModel) -> None:
    """Raise UserError unless the model's outputs have the size that the method requires."""
    teacher = 0 if old.teacher is None else old.teacher.shape[-1]
    wanted = method.size.of(own, old.dim, teacher)
    if own != wanted:
        sizes = f"the old model's have dimension {old.dim}"
        if teacher:
            sizes += f", the teacher's {teacher}"
        raise UserError(
            f"config.method={config.method} {method.size.why}: {sizes}, so set "
            f"config.model.embedding_dim={wanted}, not {own}"
        )


def _check_reid(config: ConfigDict) -> None:
    """Raise UserError for impossible options of re-identification."""
    options = config.reid
    if options.pad < 0:
        raise UserError(f"config.reid.pad must be 0 or more pixels, not {options.pad}")
    if not 0 <= options.erase <= 1:
        raise UserError(f"config.reid.erase is a probability in [0, 1], not {options.erase}")
    if options.neck and config.model.name in models.RESNETS:
        raise UserError(
            f"config.reid.neck needs a projection before the BatchNorm: set "
            f"config.model.name={config.model.name}_projection"
        )
