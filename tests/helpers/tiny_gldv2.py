"""Small landmarks on disk, as Google Landmarks v2, ROxford5k and RParis6k are released."""

import csv
import pickle
import subprocess
import sys

import numpy as np
import tiny_runs
from patience import LONG
from PIL import Image

SIZE = (44, 36)  # width and height
TRAIN_CLASSES, IMAGES_PER_CLASS = 12, 6
TEST_LANDMARKS = 6

CONFIG = f"""
import runpy, sys
sys.path.append({str(tiny_runs.REPOSITORY)!r})
published = runpy.run_path({str(tiny_runs.REPOSITORY / "configs" / "gldv2_compatible.py")!r})

def small(config, epochs):
    config.preprocessing.size = 32
    config.data.workers = 0
    config.batch_size = 12
    config.epochs = epochs
    return config

def get_config():
    config = small(published["get_config"](), 4)
    config.model.name = {tiny_runs.PROJECTION!r}
    config.model.width, config.model.embedding_dim = 4, 8
    config.pretrained = ""
    config.optimizer.lr = 0.02
    return config

def benchmark():
    plan = published["benchmark"]()
    # The lists of tools/split_dataset.py in place of config.data.subset.
    lists = [{{"data.list": f"data/gldv2/splits/train_{{part}}_class.txt"}}
             for part in ("old_30percent", "new_100percent")]
    fct = small(plan["transformations"]["FCT"], 2)
    fct.model.inner_dim, fct.optimizer.schedule.warmup_epochs = 16, 0
    return {{
        **plan,
        "scenarios": {{**plan["scenarios"], "lists": lists}},
        "transformations": {{"FCT": fct}},
    }}
"""


class Landmarks:
    """Pictures of landmarks, each with its own texture."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self._textures = {}

    def save(self, path, landmark) -> None:
        """Write a JPEG of one landmark."""
        if landmark not in self._textures:
            self._textures[landmark] = self._texture()
        # Half the landmark's texture, half the picture's own: too hard for a model to find all.
        mixed = (self._textures[landmark] + self._texture()) / 2
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mixed.astype(np.uint8)).save(path, quality=95)

    def _texture(self) -> np.ndarray:
        coarse = self._rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize(SIZE), float)


def write_all(root) -> None:
    """Write everything below ``root/data``, and ``root/tiny.py`` with the benchmark's config."""
    images = Landmarks(0)
    write_gldv2(root / "data" / "gldv2", images)
    for number, name in enumerate(("roxford5k", "rparis6k")):
        write_revisited(root / "data" / name, name, images, number)
    (root / "tiny.py").write_text(CONFIG)


def write_gldv2(folder, images: Landmarks) -> None:
    """Write the training list, its splits, ground truth, index list, and images 0/1/2/012….jpg."""
    rng = np.random.default_rng(1)
    lines = []
    for number in range(TRAIN_CLASSES * IMAGES_PER_CLASS):
        path = f"train/{released_path(rng)}"
        images.save(folder / path, ("train", number % TRAIN_CLASSES))
        lines.append(f"{path} {number % TRAIN_CLASSES}\n")
    (folder / "train.txt").write_text("".join(lines))
    split_list(folder)

    index = {}
    for number in range(5 * TEST_LANDMARKS):
        path = released_path(rng)
        index[path[6:-4]] = number % TEST_LANDMARKS
        images.save(folder / "index" / path, ("test", number % TEST_LANDMARKS))
    write_rows(folder / "index.csv", [["id"], *([name] for name in index)])
    rows = [["id", "images", "Usage"]]
    for number in range(3 * TEST_LANDMARKS):
        path = released_path(rng)
        landmark, usage = number % TEST_LANDMARKS, ("Private", "Private", "Public")[number // 6]
        images.save(folder / "test" / path, ("test", landmark))
        right = " ".join(name for name, other in index.items() if other == landmark)
        rows.append([path[6:-4], right, usage])
    rows.append(["0123456789abcdef", "None", "Ignored"])  # its image is not needed
    write_rows(folder / "retrieval_solution_v2.1.csv", rows)


def split_list(folder) -> None:
    """Split the list for extended-class with the command."""
    tool = tiny_runs.REPOSITORY / "tools" / "split_dataset.py"
    command = [sys.executable, tool, "train.txt", "--by", "class", "--out", "splits"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=LONG)


def write_revisited(folder, name: str, images: Landmarks, seed: int) -> None:
    """Write ``gnd_NAME.pkl`` and ``jpg``; a sixth of the gallery is hard, another sixth junk."""
    rng = np.random.default_rng(seed)
    gallery = rng.permutation(6 * TEST_LANDMARKS) % TEST_LANDMARKS
    imlist = [f"{name[:4]}_{row:06d}" for row in range(len(gallery))]
    qimlist, gnd = [], []
    for query in range(2 * TEST_LANDMARKS):
        landmark = query % TEST_LANDMARKS
        right = np.flatnonzero(gallery == landmark).tolist()
        qimlist.append(f"query_{query}")
        images.save(folder / "jpg" / f"query_{query}.jpg", (name, landmark))
        entry = {"easy": right[:4], "hard": right[4:5], "junk": right[5:]}
        gnd.append({"bbx": [2.0, 3.0, 40.5, 30.0], **entry})
    for image, landmark in zip(imlist, gallery.tolist(), strict=True):
        images.save(folder / "jpg" / f"{image}.jpg", (name, landmark))
    truth = {"imlist": imlist, "qimlist": qimlist, "gnd": gnd}
    (folder / f"gnd_{name}.pkl").write_bytes(pickle.dumps(truth, protocol=2))


def released_path(rng) -> str:
    """Return the path of an image whose id is 16 random hexadecimal digits."""
    name = "".join(rng.choice(list("0123456789abcdef"), 16))
    return f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


def write_rows(path, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
