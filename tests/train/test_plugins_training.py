"""docs/plugins.md, the parts of a training: its examples run as they stand; mistakes are told."""

import json
import re
import sys

import pytest
import tiny_runs

from fct_jax import config as configs
from fct_jax import load_model, recipes
from fct_jax.data import open_source
from fct_jax.errors import UserError
from fct_jax.train.loop import train

PAGE = (tiny_runs.REPOSITORY / "docs" / "plugins.md").read_text()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write the page's Python as the module ``mypackage`` to the current folder."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.split("## A data set")[1], re.DOTALL)
    (tmp_path / "mypackage.py").write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mypackage", None)


def config(**changes):
    made = recipes.digits_compatible()
    made.data.name = "mypackage:Stripes"
    made.model.name = "mypackage:Net"
    made.model.embedding_dim, made.model.small_stem, made.model.width = 16, False, 64
    made.base_loss = "mypackage:soft_cosine"
    made.method, made.epochs, made.preprocessing.size = "none", 4, 8
    return tiny_runs.changed(made, changes)


@pytest.mark.slow
def test_all_four_train_together_and_are_found_again(package, capsys):
    train(config(), "runs/old")
    assert "mypackage:Net on 240 images, 4 classes (stripes (train))" in capsys.readouterr().out
    model = load_model("runs/old")
    assert model.dim == 16 and model.description["kwargs"] == {
        "num_classes": 4,
        "embedding_dim": 16,
    }
    source = open_source(configs.compatible().data, "train")  # only the size of the digits matters
    assert source.image_size == (8, 8)
    new = config(method="mypackage:FARTHEST", old="runs/old", model__name="mypackage:WIDE_NET")
    train(new, "runs/new")
    lines = (package / "runs/new/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    pulled = [entry["epoch/farthest"] for entry in entries if "epoch/farthest" in entry]
    assert len(pulled) == 4 and pulled[-1] < pulled[0]
    (top1,) = [entry["validation/top1"] for entry in entries if "validation/top1" in entry]
    assert top1 > 0.9  # stripes in four directions; chance is 0.25


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__name": "mypackage:Stripe"}, "unknown data set of mypackage: 'Stripe'; did you"),
        ({"data__name": "nopackage:Stripes"}, "there is no such module"),
        ({"data__name": "mypackage:np"}, "must be a reader"),
        ({"model__name": "mypackage:soft_cosine"}, "must be a class of flax.linen modules"),
        ({"model__width": 8}, "config.model.width=8: mypackage:Net has no attribute 'width'"),
        ({"base_loss": "mypackage:soft"}, "did you mean 'soft_cosine'"),
        ({"base_loss": "softmx"}, "unknown base loss 'softmx'; did you mean 'softmax'"),
        ({"compute_dtype": "bfloat16"}, "has no attribute 'dtype'; set config.compute_dtype=float"),
        ({"method": "mypackage:Net"}, "must be a .*Method, not"),
        ({"method": "advbt"}, "unknown compatible training method 'advbt'; did you mean 'advbct'"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(package, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        train(config(**changes), "runs/mistake")
    assert "\n" not in str(caught.value)
    assert not (package / "runs/mistake").exists()


def test_a_reader_that_lacks_something_is_told(package):
    with (package / "mypackage.py").open("a") as file:
        file.write(
            "\n\nclass Half:\n    name = 'half'\n    def __init__(self, where, split): ...\n"
        )
    with pytest.raises(UserError, match="lacks class_names, __len__, read, labels, ids, image_"):
        train(config(data__name="mypackage:Half"), "runs/mistake")


@pytest.mark.parametrize(
    "body, message",
    [
        ("return head(images.reshape(len(images), -1), train)", "TypeError.*mypackage.py, line"),
        ("return images.mean((1, 2))", r"must return \(logits \(N, C\), embedding \(N, D\)\)"),
    ],
)
def test_a_model_that_cannot_be_exported_is_told_before_it_trains(package, body, message):
    whole = (package / "mypackage.py").read_text()
    (package / "mypackage.py").write_text(whole.replace("return head(hidden, train)", body))
    with pytest.raises(UserError, match=message):
        train(config(), "runs/mistake")
    assert not (package / "runs/mistake").exists()


def test_the_page_is_right_about_the_table_of_groups():
    from fct_jax import config_values

    for group in ("datasets", "models", "losses", "methods"):
        assert f"`fct_jax.{group}`" in PAGE
    assert set(config_values.TABLES) == {"data.name", "model.name", "method", "base_loss"}
