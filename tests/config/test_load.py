from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.config.load import ConfigError, check_config, load_config

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optm.backbone_lr=1", "optm: unknown key; did you mean 'optim'"),
        ("optim.backbon_lr=1", "optim.backbon_lr: unknown key; did you mean 'backbone_lr'"),
        ("losses.margn=1", "triplet has no key 'margn'; did you mean 'margin'"),
        ("losses.name=tripplet", "unknown loss 'tripplet'; did you mean 'triplet'"),
        ("losses.margin=-3", "margin must not be negative, got -3"),
        ("losses.mining=soft", "mining: .*'batch_hard'.*got 'soft'"),
        ("losses.margin=wide", "margin: .*valid number.*got 'wide'"),
        ("losses=[]", "at least one loss"),
        ("optim.backbone_lr=-1", "optim.backbone_lr: .*greater than 0, got -1"),
        ("train.steps=many", "train.steps: .*valid integer.*got 'many'"),
        ("data.num_streams=7", "num_streams 7 must divide classes_per_batch 40"),
        ("resources.workers=9", "resources.workers is 9, but data.num_streams is 4"),
        ("train.checkpoint_storage_options.anon=true", "train.checkpoint_folder is not set: set it, or leave"),
        ("data.source.name=glyps", "unknown source 'glyps'; did you mean 'glyphs'"),
        ("data.source.sed=1", "did you mean 'seed'"),
        ("data.channels=2", "data.channels: .*1 or 3, got 2"),
        ("run.name=../up", "run.name"),
        ("train", "write an override as key=value"),
        ("model.backbone.depth=3", "'backbone' is a value, not a group"),
        ("losses.3.margin=1", "no position|not a group|unknown|no key"),
    ],
)
def test_each_mistake_is_named_with_its_key_and_value(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(QUICKSTART, [override])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, ["optim.backbone_lr=-1", "train.steps=0", "data.channel=1"])
    text = str(caught.value)
    assert all(key in text for key in ("optim.backbone_lr", "train.steps", "data.channel", str(QUICKSTART)))


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    config = load_config(QUICKSTART, ["optim.backbone_lr=1e-4", "losses.margin=3e-1"])
    assert config.optim.backbone_lr == 1e-4
    assert config.losses[0].options["margin"] == 0.3


def test_one_loss_and_a_list_of_losses(tmp_path: Path) -> None:
    one = load_config(QUICKSTART, ["losses.0.margin=0.5"])
    assert one.losses[0].options["margin"] == 0.5
    two = load_config(QUICKSTART, ["losses=[{name: triplet}, {name: norm_softmax, weight: 0.5}]"])
    assert [(term.name, term.weight) for term in two.losses] == [("triplet", 1.0), ("norm_softmax", 0.5)]


def test_a_resolved_config_is_a_config() -> None:
    config = load_config(QUICKSTART)
    assert check_config(config.model_dump(mode="json"), "here") == config


def test_files_that_are_no_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "absent.yaml")
    for text, message in (("a: [", "is not YAML"), ("- 1", "must hold a mapping"), ("", "must hold a mapping")):
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(file)
