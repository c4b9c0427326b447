"""Values of config keys are checked against tables, kinds and ranges before anything is loaded."""

from pathlib import Path

import pytest
import tiny_runs
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax import config_values
from fct_jax.errors import UserError
from fct_jax.runtime.config_files import packaged_configs, read_config
from fct_jax.train.loop import train

TASKS = (configs.backbone, configs.simclr, configs.transformation, configs.compatible)
ALL = (*TASKS, configs.evaluate, configs.embed)


@pytest.mark.parametrize("make", ALL)
def test_defaults_are_allowed(make):
    configs.check(make())


@pytest.mark.parametrize("name", sorted(packaged_configs()))
def test_packaged_configs_are_allowed(name):
    configs.check(read_config(packaged_configs()[name]))


def test_every_rule_is_of_a_key_that_there_is():
    for rules in (config_values.CHOICES, config_values.TABLES, config_values.RANGES):
        for key in rules:
            assert any(config_values._value(make(), key) is not None for make in ALL), key


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__on_error": "skipp"}, "unknown config.data.on_error 'skipp'; did you mean 'skip'"),
        ({"data__name": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"model__name": "resnet18_projectio"}, "did you mean 'resnet18_projection'"),
        ({"model__name": "fct"}, "unknown model 'fct'"),
        ({"optimizer__schedule__name": "cosin"}, "did you mean 'cosine'"),
        ({"last_batch": "kep"}, "unknown config.last_batch 'kep'; did you mean 'keep'"),
        ({"epochs": 0}, "config.epochs must be 1 or more, not 0"),
        ({"evaluate_every_epochs": 0}, "config.evaluate_every_epochs must be 1 or more, not 0"),
        ({"label_smoothing": 1.5}, "config.label_smoothing must be from 0 to 1, not 1.5"),
        ({"compute_dtype": "bfloat"}, "did you mean 'bfloat16'"),
    ],
)
def test_a_wrong_value_is_told_with_the_nearest_right_one(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        train(tiny_runs.backbone(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("label_smoothing", "0.1", "config.label_smoothing must be a number, not '0.1'"),
        ("epochs", 2.5, "config.epochs must be an integer, not 2.5"),
        ("epochs", True, "config.epochs must be an integer, not True"),
        ("remat", 1, "config.remat must be True or False, not 1"),
        ("pretrained", None, "config.pretrained must be text, not None"),
    ],
)
def test_a_value_of_another_kind(key, value, message):
    """A config file can set such a value if it builds the config itself."""
    config = ConfigDict({**configs.backbone().to_dict(), key: value})
    with pytest.raises(UserError, match=message):
        configs.check(config)


def test_a_transformation_is_not_a_model_of_images():
    with pytest.raises(UserError, match="unknown model 'fastfil'; did you mean 'fastfill'"):
        configs.check(tiny_runs.transformation("a", "b", model__name="fastfil"))
    with pytest.raises(UserError, match="unknown model 'resnet18'"):
        configs.check(tiny_runs.transformation("a", "b", model__name="resnet18"))


def test_the_home_directory_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = ConfigDict(
        {
            "old": "~/runs/old",
            "transformed": "FCT=~/fct,BCT=runs/~x,C=~",
            "data": {"dir": "~", "list": "a~/b", "classes": "0-5"},
        }
    )
    found = configs.at_home(config)
    home = str(tmp_path)
    assert found.old == f"{home}/runs/old" and config.old == "~/runs/old"
    assert found.transformed == f"FCT={home}/fct,BCT=runs/~x,C={home}"
    assert found.data.to_dict() == {"dir": home, "list": "a~/b", "classes": "0-5"}


def test_a_workdir_at_home_and_one_that_is_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    for where in ("~/file", "~/file/run"):
        with pytest.raises(UserError, match=f"--workdir={where}: .*file is a file; name a folder"):
            train(tiny_runs.backbone(), where)
    assert sorted(path.name for path in Path().iterdir()) == ["file"]
