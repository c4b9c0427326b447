"""A folder of sound files and every kind of broken file, for tests of user inputs."""

import numpy as np
from PIL import Image

from fct_jax.storage.embedding_set import EmbeddingSet


def write_inputs(folder) -> None:
    """Write arrays, sets, runs, Python files and images, few of which are valid."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((200, 8)).astype(np.float32)
    new = old @ rng.standard_normal((8, 6)).astype(np.float32)
    nan = old.copy()
    nan[3, 2] = np.nan
    arrays = {
        "old": old,
        "new": new,
        "short": new[:150],
        "wide": np.hstack([old, old]),
        "nan": nan,
        "constant": np.ones_like(old),
        "one_d": old[0],
        "three_d": old[None],
        "empty": old[:0],
        "text": np.array(["a", "b"]),
        "labels": np.arange(200) % 4,
        "labels_short": np.arange(7),
        "labels_float": np.linspace(0, 1, 200),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name in ("old", "new"):
        made = EmbeddingSet.of(arrays[name], labels=arrays["labels"])
        made.write(folder / f"set_{name}")
    np.save(folder / "pickled.npy", np.array([{}, {}], object), allow_pickle=True)
    (folder / "garbage.npy").write_bytes(b"no array at all")
    (folder / "cut.npy").write_bytes((folder / "old.npy").read_bytes()[:500])
    (folder / "letter.txt").write_text("dear reader")
    (folder / "nothing").mkdir()
    (folder / "no_run").mkdir()
    (folder / "no_run" / "notes.txt").write_text("notes")
    (folder / "stopped").mkdir()
    (folder / "stopped" / "config.json").write_text("{}")
    (folder / "broken_run" / "model").mkdir(parents=True)
    (folder / "broken_run" / "model" / "model.json").write_text('{"kind": ')
    (folder / "no_function.py").write_text("x = 1\n")
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "imports.py").write_text("import no_such_module\n")
    (folder / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "functions.py").write_text(
        "import numpy as np\n"
        "def fails(images): raise KeyError('weights')\n"
        "def flat(images): return np.zeros(len(images))\n"
        "def good(images): return images.reshape(len(images), -1)[:, :8] / 255 + 1\n"
        "good.image_size = 8\n"
        "def nan(vectors): return vectors * np.nan\n"
        "number = 3\n"
    )
    for name in ("sizes", "damaged"):
        for split in ("training", "validation"):
            for label in "ab":
                where = folder / name / split / label
                where.mkdir(parents=True)
                for i in range(3):
                    size = (8 + i, 9) if name == "sizes" else (8, 8)
                    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(where / f"{i}.png")
    (folder / "damaged" / "training" / "a" / "1.png").write_bytes(b"\x89PNG but not really")
    (folder / "list.txt").write_text("training/a/0.png 0\ntraining/b/none.png 1\n")
