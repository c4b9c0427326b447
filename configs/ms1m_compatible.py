"""Compatible training for face recognition: MS1M, ResNet-50 at 112 pixels, tested on IJB-C.

Training uses ArcFace (scale 64, margin 0.5, SGD at 0.1 for batch 512, as published at CVPR 2019)
over all persons. To compare methods:

  fct-jax compare configs/ms1m_compatible.py --workdir runs/ms1m \\
      --methods bct,lce,unibct

It needs data/ms1m with train.rec and train.idx of InsightFace's release (5.8 million aligned faces
of 85,742 persons in MS1M-ArcFace, 5.2 million of 93,431 in MS1M-v3), and data/ijbc with the aligned
faces, ijbc_face_tid_mid.txt, ijbc_template_pair_label.txt, ijbc_1N_gallery_G1.csv,
ijbc_1N_gallery_G2.csv and ijbc_1N_probe_mixed.csv.

Templates are pooled from images and their mirror images. InsightFace also weights images by the
scores of its detector; to do so, add "faces.scores": "data/ijbc/ijbc_name_5pts_score.txt" to the
changes of the test below.

To split the classifier of 512 × 85,742 weights, its momentum and its logits over devices:

  python -m fct_jax.train --config configs/ms1m_compatible.py --workdir runs/ms1m/new \\
      --config.method=none --config.mesh.data=4 --config.mesh.model=2

For this, the number of persons is padded to a multiple of 384, and ``mesh.model`` must divide 384
(2, 3, 4, 6, 8, …). Methods that compare with the old embeddings of all training images
(hot_refresh, advbct, …) hold them on every device: 24 GB here, for both mirror images.
"""

from fct_jax import recipes


def get_config():
    return recipes.ms1m_compatible()


def benchmark():
    """Return the scenarios, test sets and methods of `fct-jax compare`."""
    share, half = "images 0.3", "classes 0.5"
    return {
        # scenario: (changes to the old model's config, changes to the new models' configs)
        "scenarios": {
            "extended-class": ({"data.subset": f"old {half}"}, {"data.subset": f"new {half}"}),
            "extended-data": ({"data.subset": f"old {share}"}, {"data.subset": f"new {share}"}),
        },
        "tests": {  # test set: changes to the config
            "IJB-C": {
                "data.name": "ijb",
                "data.dir": "data/ijbc/images",
                "data.list": "data/ijbc/ijbc_face_tid_mid.txt",
                "faces.flip": True,
            }
        },
        "transformations": {},
    }
