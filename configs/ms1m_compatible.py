"""Compatible training for face recognition: MS1M, ResNet-50 at 112 pixels, tested on IJB-C.

ArcFace (scale 64, margin 0.5, SGD 0.1 at batch 512, as published in CVPR 2019) over all persons:

  fct-jax compare configs/ms1m_compatible.py --workdir runs/ms1m \\
      --methods bct,lce,unibct

It needs data/ms1m with train.rec and train.idx of InsightFace's release (5.8 million aligned faces
of 85,742 persons in MS1M-ArcFace, 5.2 million of 93,431 in MS1M-v3), and data/ijbc with the aligned
faces, ijbc_face_tid_mid.txt, ijbc_template_pair_label.txt, ijbc_1N_gallery_G1.csv,
ijbc_1N_gallery_G2.csv and ijbc_1N_probe_mixed.csv.

Templates are pooled from images and their mirror images; InsightFace also weighs images by their
detector's scores: "faces.scores": "data/ijbc/ijbc_name_5pts_score.txt" among the changes of the
test below.

The classifier of 512 × 85,742 weights, its momentum and its logits are split over devices:

  python -m fct_jax.train --config configs/ms1m_compatible.py --workdir runs/ms1m/new \\
      --config.method=none --config.mesh.data=4 --config.mesh.model=2

The number of persons is padded for it to a multiple of 384, which ``mesh.model`` must divide
(2, 3, 4, 6, 8, …). Methods that compare with the old embeddings of all training images
(hot_refresh, advbct, …) hold them on every device: 24 GB here, for both mirror images.
"""

from fct_jax import recipes


def get_config():
    return recipes.ms1m_compatible()


def benchmark():
    """Return what `fct-jax compare` trains and tests on."""
    share, half = "images 0.3", "classes 0.5"
    return {
        # scenario: (changes of the old model's config, changes of the new models')
        "scenarios": {
            "extended-class": ({"data.subset": f"old {half}"}, {"data.subset": f"new {half}"}),
            "extended-data": ({"data.subset": f"old {share}"}, {"data.subset": f"new {share}"}),
        },
        "tests": {  # test set: changes of the config
            "IJB-C": {
                "data.name": "ijb",
                "data.dir": "data/ijbc/images",
                "data.list": "data/ijbc/ijbc_face_tid_mid.txt",
                "faces.flip": True,
            }
        },
        "transformations": {},
    }
