"""All worked examples of the newer methods to 1e-9, in float64; every entry of each is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from newer_examples import EXAMPLES, Example, close

from fct_jax import losses
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade import confidence
from fct_jax.upgrade.checks import thresholds
from fct_jax.upgrade.maps import common_space, local, unpaired
from fct_jax.upgrade.ways import cascade_depth, interpolation

CHECKS = {}


def check(name):
    """Return a decorator that adds a function to the table of checks."""

    def enter(function):
        CHECKS[name] = function
        return function

    return enter


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name):
    example = Example(name)
    with jax.enable_x64(True):
        CHECKS[name](example)
    assert not example.unread


def integers(values):
    return np.asarray(values).astype(int)


@check("lambda_orth.L_lambda")
def _(e):
    weight = jnp.asarray(e["W"])
    close(jnp.linalg.norm(weight @ weight.T - jnp.eye(2)), e["norm"])
    for case in e["cases"]:
        loss = jax.value_and_grad(losses.lambda_orthogonality)
        value, slope = loss(weight, case["lam"], case["alpha"])
        close(value, case["value"])
        close(slope, case["grad"])
    value, slope = jax.value_and_grad(losses.lambda_orthogonality)(jnp.eye(3), 0.0)
    assert value == 0
    close(slope, 0)


@check("lambda_orth.L_contr")
def _(e):
    own = np.arange(3)
    for labels, name in ((integers(e["labels"]), ""), (own, "unlabelled_")):
        loss = losses.multi_positive_contrastive(e["A"], e["C"], labels, labels, e["tau"])
        close(loss, e[f"{name}per_anchor"])
        close(loss.mean(), e[f"{name}mean"])


@check("hmoe.losses")
def _(e):
    for m, name in ((int(e["m"]), "L_local_m1"), (2, "L_local_m2"), (100, "L_local_m2")):
        loss = losses.distance_preservation(e["src"], e["out"], e["target"], m)
        close(loss.mean(), e[name])
    close(losses.off_axis_share(e["e"], e["u1"]).mean(), e["L_dir_fraction"])


@check("embedding_converter.losses")
def _(e):
    parts = losses.embedding_converter(e["h"], e["g"], neighbours=1)
    means = [part.mean() for part in parts]
    close(means, [e["L_pred"], e["L_global"], e["L_local_k1"]])
    total = sum(w * m for w, m in zip(losses.CONVERTER_WEIGHTS, means, strict=True))
    close(total, e["total_0p1"])
    squared = losses.embedding_converter(e["h"], e["g"], neighbours=1, squared=True)
    close(squared.global_relation.mean(), e["L_global_squared"])


@check("oca.loss")
def _(e):
    z, labels = e["z"], integers(e["labels"])
    close(z[:, :2] / np.linalg.norm(z[:, :2], axis=1, keepdims=True), e["b"])
    parts = losses.oca(z @ e["O"].T @ e["W"].T, z, labels, e["M"])
    means = [part.mean() for part in parts]
    close(means, [e["CE_new"], e["CE_bct"], e["cos"]])
    close(sum(w * m for w, m in zip(losses.OCA_WEIGHTS, means, strict=True)), e["total"])


@check("bt2.forward")
def _(e):
    made = losses.bt2_embedding(e["a"], e["old_branch"], e["O_p"], e["O_o"], extra=1)
    close(made.full, e["new"])
    close(made.compatible, e["bct"])
    close(np.square(made.full).sum(axis=1), e["norm2"])
    # z is the result with the old basis undone.
    close(made.compatible @ e["O_o"], e["z"][:, :2])
    close(made.full[:, 2:], e["z"][:, 2:])


@check("mixbct.credible_mask")
def _(e):
    keep, distance = losses.credible_mask(e["old_unit"], np.zeros(5, int), share=0.8)
    close(distance, e["distance"])
    assert keep.tolist() == e["keep"]


@check("hoc.loss")
def _(e):
    labels, scale = integers(e["labels"]), e["mu"]
    published = losses.hoc(e["f_new"], e["f_old"], labels, scale)
    clean = losses.hoc(e["f_new"], e["f_old"], labels, scale, as_published=False)
    close(published.mean(), e["as_published"])
    close(clean.mean(), e["clean"])
    assert losses.HOC_WEIGHTS == (0.1, 0.9)


@check("dsimplex.K4")
def _(e):
    vertices = losses.simplex_vertices(4)
    close(vertices, e["vertices"])
    gram = np.full((4, 4), e["gram_offdiagonal"])
    np.fill_diagonal(gram, 1)
    close(vertices @ vertices.T, gram)


@check("hoc.metrics")
def _(e):
    close(losses.average_compatibility(e["M"]), e["AC"])
    close(losses.average_accuracy(e["M"]), e["AA"])


@check("lambda_orth.exp_skew")
def _(e):
    skew = e["P"]
    close(common_space.skew_symmetric(skew[np.triu_indices(3, 1)], 3), skew)
    turn = common_space.rotation(skew)
    close(turn, e["B"])
    space = common_space.CommonSpace(turn.T, np.zeros(3), np.zeros((2, 3)), np.zeros(3))
    close(space.moved(e["n"][None])[0], e["B_of_n"])


@check("lambda_orth.closed_form")
def _(e):
    new, old = e["n"], e["o"]
    free = common_space.closed_form_backward(new, old)
    close(free, e["R_O"])
    close(np.linalg.det(free), e["det_R_O"])
    close(common_space.alignment_error(new @ free, old), e["loss_O"])
    proper = common_space.closed_form_backward(new, old, proper=True)
    close(proper, e["R_SO"])
    close(common_space.alignment_error(new @ proper, old), e["loss_SO"])


@check("lambda_orth.unequal_dims")
def _(e):
    close(common_space.alignment_error(e["Bn"], e["o"]), e["truncated"])
    close(common_space.alignment_error(e["Bn"], e["o"], tail="zero"), e["padded"])


@check("lambda_orth.backfill_order")
def _(e):
    vectors, labels = e["F_o"], integers(e["labels"])
    close([vectors[labels == c].mean(axis=0) for c in range(2)], e["class_means"])
    for metric, distance, order in (
        ("l2", "distance", "order"),
        ("cosine", "cosine_distance", "order_cosine"),
    ):
        found = confidence.class_mean_distance(vectors, labels, metric=metric)
        close(found, e[distance])
        assert np.argsort(-found, kind="stable").tolist() == integers(e[order]).tolist()


@check("slerp.equal_dims")
def _(e):
    u, v = e["u"], e["v"]
    close(np.arccos(u @ v), e["theta"])
    for weight, wanted in zip(e["alpha"], e["q"], strict=True):
        close(interpolation.slerp(u[None], v[None], weight)[0], wanted)
        assert np.array_equal(interpolation.slerp(u[None], u[None], weight)[0], u)
        close(interpolation.slerp(u[None], -u[None], weight)[0], u)


@check("slerp.unequal_dims")
def _(e):
    bridge = interpolation.orthogonal_bridge(e["V_support"], e["U_support"])
    close(bridge, e["R0"])
    bridged = unit_rows(e["q_new"][None]) @ bridge
    close(bridged[0], e["v0"])
    close(np.linalg.norm(bridged), e["v0_norm"])
    close(np.arccos(unit_rows(e["q_old"]) @ bridged[0]), e["theta"])
    close(interpolation.slerp(e["q_old"][None], bridged, e["alpha"])[0], e["q"])


@check("la2m.local_procrustes")
def _(e):
    x, y = e["X"], e["Y"]
    found = local.procrustes(x, y, scale="norm ratio")
    close(found.mean_x, e["mx"])
    close(found.mean_y, e["my"])
    close(found.rotation.T, e["R"])
    close(np.linalg.norm(x - found.mean_x), e["nx"])
    close(np.linalg.norm(y - found.mean_y), e["ny"])
    close(found.scale, e["scale_used"])
    close(local.procrustes(x, y).scale, e["scale_least_squares"])
    close(found(e["x"][None])[0], e["f_x"])


@check("la2m.scale_variants_noisy")
def _(e):
    found = local.procrustes(e["X"], e["Y"], scale="norm ratio")
    close(found.rotation.T, e["R"])
    close(found.scale, e["scale_norm_ratio"])
    close(local.procrustes(e["X"], e["Y"]).scale, e["scale_least_squares"])


@check("la2m.confidence_TC")
def _(e):
    train, x = e["train"], e["x"][None]
    between = np.linalg.norm(train[[0, 0, 1]] - train[[1, 2, 2]], axis=1)
    close(between, e["pairwise"])
    close(between.mean(), e["sigma_mean"])
    close(between.std(), e["sigma_std"])
    close(confidence.nearest_distances(x, train, 1)[0, 0], e["delta"])
    for spread, wanted in (("mean", "TC_mean"), ("std", "TC_std"), ("local", "TC_local_k3")):
        close(confidence.translation_confidence(x, train, spread=spread)[0], e[wanted])


@check("cascade.gap")
def _(e):
    names = e["old_ranking"]
    candidates = np.arange(len(names))[None]
    scores = np.array([[e["new_scores"][name] for name in names]])
    native = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    relevant = [names.index(name) for name in e["relevant"]]

    def ndcg3(rows):
        gain = np.isin(rows, relevant) / np.log2(np.arange(2, 2 + rows.shape[1]))
        return gain.sum(axis=1) / (1 / np.log2([2, 3])).sum()

    close(ndcg3(native)[0], e["native_ndcg3"])
    depths = [point["K"] for point in e["curve"]]
    curve = cascade_depth.gap_curve(candidates, scores, native, ndcg3, depths, 3)
    for i, point in enumerate(e["curve"]):
        _, rows = cascade_depth.reranked(candidates[:, : point["K"]], scores[:, : point["K"]], 3)
        assert [names[row] for row in rows[0] if row >= 0] == point["ranking"]
        close(curve.quality[0, i], point["ndcg3"])
        close(curve.gap[0, i], point["G"])
        close(curve.containment[0, i], point["containment3"])
    assert curve.smallest_depth(0.01) == e["K_star_0p01"]


@check("cascade.reuse")
def _(e):
    sets = np.array([["abcde".index(name) for name in names] for names in e["candidate_sets"]])
    close(cascade_depth.candidate_reuse(sets), e["candidate_reuse"])
    close(cascade_depth.embeddings_per_query(sets), e["embeddings_per_query"])


@check("cascade.advantage")
def _(e):
    found = cascade_depth.cascade_advantage(e["gain"], e["retention_at_200"])
    close(found, e["cascade_advantage"])
    single = cascade_depth.cascade_advantage(e["gain"], e["single_stage_retention"])
    close(single, e["bridge_advantage"])
    assert [cascade_depth.worth(a) for a in (found, single)] == ["recommended", "not recommended"]


@check("cascade.t2_rule")
def _(e):
    for case in e["cases"]:
        assert cascade_depth.Stability(**case["f"]).verdict == case["verdict"]


@check("recalibration.isotonic")
def _(e):
    mapped, true, tau = e["mapped"], e["ceiling"], e["tau"]
    fit = thresholds.fit_isotonic(mapped, true)
    calibrated = fit(mapped)
    close(calibrated, e["fitted"])
    close(fit(e["query"]), e["calibrated"])
    for scores, name in ((mapped, "raw"), (calibrated, "cal")):
        close(thresholds.agreement(scores, true, tau), e[f"{name}_agreement"])
        close(thresholds.recall(scores, true, tau), e[f"{name}_recall"])


@check("minivec2vec.qap")
def _(e):
    first, second = e["K1"], e["K2"]
    p, value = unpaired.match_kernels(first, second, restarts=20)
    assert p.tolist() == integers(e["p"]).tolist()
    close(value, e["value"])


@check("minivec2vec.centred_kernel")
def _(e):
    close(unpaired.centred_kernel(e["centres"]), e["kernel"])


@check("minivec2vec.relative_match")
def _(e):
    a, b, anchors = e["XA"], e["XB"], (e["anchors_A"], e["anchors_B"])
    profiles = [unpaired.profiles(*side) for side in zip((a, b), anchors, strict=True)]
    close(profiles[0] @ profiles[1].T, e["profile_similarity"])
    partners = unpaired.relative_partners(a, b, *anchors, 1)
    assert np.array_equal(partners, b[integers(e["match"])])
    close(common_space.nearest_orthogonal(a.T @ partners), e["W"])


@check("minivec2vec.smoothing")
def _(e):
    weight = unpaired.smoothed(e["W_old"], e["W_new"])
    close(weight, e["W"])
    close(np.linalg.svd(weight)[1], e["singular_values"])
    close(common_space.nearest_orthogonal(weight), e["polar"])


def test_every_example_has_a_check():
    assert set(CHECKS) == set(EXAMPLES)
    assert len(EXAMPLES) == 28
