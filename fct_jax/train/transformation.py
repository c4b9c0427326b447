"""Training FCT (CVPR 2022) or FastFill (ICLR 2023): h(old, side) ≈ new."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fct_jax import losses, models
from fct_jax.errors import UserError
from fct_jax.storage.named import classifier_of, is_run
from fct_jax.train.backbone import model_options, run_options
from fct_jax.train.transformation_inputs import CachedInputs, OnlineInputs, validation_batch


class TransformationTask:
    """A transformation of old embeddings; see ``loop.py`` for what a task offers."""

    def __init__(self, config: ConfigDict, mesh, inputs=None, classifier=None):
        """Load the ``inputs`` and ``classifier`` that the config names, unless they are given."""
        self._config = config
        self._inputs = inputs or (OnlineInputs if config.online else CachedInputs)(config, mesh)
        self.feed = self._inputs.feed
        self._dims = {"side": self._inputs.dims["old"], **self._inputs.dims}
        self._kwargs = model_options(config, {"embedding_dim": self._dims["new"]})
        self._module = models.build(config.model.name, **self._kwargs, **run_options(config))
        if not config.loss.discriminative_weight:
            classifier = None
        elif classifier is None:
            classifier = frozen_classifier(config, self._dims["new"], self._inputs.labels)
        self.frozen = {"models": self._inputs.models, "classifier": classifier}
        self._validation = validation_batch(config)
        self._validation_loss = jax.jit(self._evaluate_batch)

    def init(self, key):
        """Return fresh variables."""
        return self._module.init(
            key, jnp.zeros((2, self._dims["old"])), jnp.zeros((2, self._dims["side"]))
        )

    def freeze_batch_norm(self, epoch: int) -> bool:
        """Return whether BatchNorm uses its running statistics and leaves them as they are."""
        return epoch >= self._config.freeze_batch_norm_from * self._config.epochs

    def warm_start(self, variables):
        """Do nothing: a transformation starts from scratch."""
        return variables

    def export(self, variables):
        """Return all variables: the whole transformation is the model."""
        return variables

    def finish(self, workdir, fingerprint: str, variables) -> None:
        """Do nothing: this task writes no files besides the model."""

    def loss(self, variables, frozen, batch, step, key, freeze_batch_norm):
        """Return the objective of a batch of embeddings (or, online, of images)."""
        del step, key
        return self._objective(
            variables, frozen, self._inputs.embed(frozen["models"], batch), freeze_batch_norm
        )

    def _objective(self, variables, frozen, batch, freeze_batch_norm):
        arguments = (variables, batch["old"], batch.get("side", batch["old"]))
        if freeze_batch_norm:
            output, batch_stats = self._module.apply(*arguments), variables["batch_stats"]
        else:
            output, new = self._module.apply(*arguments, train=True, mutable=["batch_stats"])
            batch_stats = new["batch_stats"]
        embedding, log_variance = output

        weights = self._config.loss
        similarity = losses.alignment(embedding, batch["new"], weights.similarity)
        per_sample = weights.similarity_weight * similarity
        metrics = {"similarity": similarity.mean()}
        if frozen["classifier"] is not None:
            logits = embedding @ frozen["classifier"].T
            discriminative = losses.label_smoothed_cross_entropy(
                logits, batch["label"], weights.label_smoothing
            )
            per_sample += weights.discriminative_weight * discriminative
            metrics["discriminative"] = discriminative.mean()
        if log_variance is None:
            return per_sample.mean(), (batch_stats, metrics)
        metrics["log_variance"] = log_variance.mean()
        loss = losses.uncertainty_weighted(per_sample, log_variance, weights.uncertainty_weight)
        return loss, (batch_stats, metrics)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of ``evaluate``'s metrics."""
        if self._validation is None:
            return ()
        batch = {name: value[:1] for name, value in self._validation.items()}
        variables = jax.eval_shape(self.init, jax.random.key(0))
        return tuple(jax.eval_shape(self._evaluate_batch, variables, self.frozen, batch))

    def evaluate(self, variables) -> dict[str, float]:
        """Return means over the validation split, BatchNorm in inference mode; {} without one."""
        if self._validation is None:
            return {}
        count = len(self._validation["old"])
        sums: dict[str, float] = {}
        for start in range(0, count, self._config.batch_size):
            rows = slice(start, start + self._config.batch_size)
            batch = {name: value[rows] for name, value in self._validation.items()}
            for name, value in self._validation_loss(variables, self.frozen, batch).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch["old"])
        return {name: value / count for name, value in sums.items()}

    def _evaluate_batch(self, variables, frozen, batch):
        loss, (_, metrics) = self._objective(variables, frozen, batch, freeze_batch_norm=True)
        return {"loss": loss, **metrics}

    def summary(self) -> list[str]:
        """Return lines that name the training data and each role's model."""
        lines = [f"{self._config.model.name} on {self._inputs.summary}"]
        for role, fingerprint in self._inputs.fingerprints.items():
            model = f"model {fingerprint}, " if fingerprint else ""
            dim = self._dims[role]
            lines.append(f"{role}: {self._config[role]} ({model}dimension {dim})")
        return lines

    def describe(self) -> dict:
        """Return the entries of ``model.json``."""
        fingerprints = self._inputs.fingerprints
        return {
            "kind": "transformation",
            "name": self._config.model.name,
            "kwargs": self._kwargs,
            "dim": self._dims["new"],
            "old_dim": self._dims["old"],
            "side_dim": self._dims["side"],
            "needs_side": "side" in fingerprints,
            "old_fingerprint": fingerprints["old"],
            "new_fingerprint": fingerprints["new"],
            "side_fingerprint": fingerprints.get("side"),
        }


def frozen_classifier(config: ConfigDict, dim: int, labels: np.ndarray | None) -> jax.Array:
    """Return the new model's classifier (C, D). Raises UserError if it does not fit."""
    where = config.classifier or config.new
    if labels is None:
        raise UserError(
            f"{config.new} has no labels.npy, which the discriminative loss needs; "
            "or set config.loss.discriminative_weight=0"
        )
    if not config.classifier and not is_run(where):
        raise UserError(
            "the discriminative loss needs the new model's classifier: give config.classifier "
            "(a run, or a .npy of shape (C, D)), or set config.loss.discriminative_weight=0"
        )
    weights = classifier_of(where, "config.classifier")
    if weights.shape[1] != dim:
        raise UserError(
            f"the classifier of {where} must have shape (C, {dim}), not {weights.shape}"
        )
    if labels.max() >= len(weights):
        raise UserError(
            f"label {labels.max()} does not fit the classifier of {where}, "
            f"which has {len(weights)} classes"
        )
    return jnp.asarray(weights, jnp.float32)
