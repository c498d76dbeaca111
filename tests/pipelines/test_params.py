"""`params.yaml` is checked strictly, and the message names the field."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.base.errors import UserError
from pipelines.params import load_params

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_shipped_file_parses_with_every_profile() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    assert params.name == "sanguo", "the default runs anywhere, on CPU"
    assert {"sanguo", "wiki-zh", "wiki-zh-published"} <= params.profiles.keys()


def test_the_published_configuration_is_kept() -> None:
    profile = load_params(REPOSITORY / "params.yaml").profiles["wiki-zh-published"]
    model, train = profile.model, profile.train
    assert (model.d, model.num_transformer_layers, model.num_heads) == (512, 6, 8)
    assert (model.num_rev_blocks, model.attention_dropout) == (4, 0.15)
    assert profile.tokenize.sequence_length == 256
    assert (train.ranks, train.batch_size, train.epochs) == (5, 12, 1)
    assert (train.learning_rate, train.weight_decay) == (2e-4, 0.01)
    assert (train.early_stopping_patience, train.evaluate_every_steps) == (3, 1000)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (".profile", "nowhere", "one of sanguo, wiki-zh, wiki-zh-published, got 'nowhere'"),
        (".profile", "x; touch pwned", "profile: String should match pattern"),
        ("train.ranks", 0, "profiles.sanguo.train.ranks"),
        ("train.learning_rate", "2e-4", "valid number, got '2e-4'"),
        ("train.learning_rat", 1e-3, "profiles.sanguo.train.learning_rat: Extra inputs"),
        ("model.d", 130, "multiple of num_heads"),
        ("ingest.source", "../elsewhere/*.parquet", "must stay in the workspace"),
        ("ingest.source", "texts/../../elsewhere", "must stay in the workspace"),
        ("tokenize.vocabulary", "..", "must stay in the workspace"),
        ("clean.split.test_fraction", 0.96, "must be below 1"),
    ],
)
def test_bad_values_name_the_field(
    set_params: Any, name: str, value: object, expected: str
) -> None:
    path = set_params({name: value})
    with pytest.raises(UserError) as error:
        load_params(path)
    assert expected in str(error.value)
    assert "to fix this" in str(error.value)


def floats(node: Any, name: str = "") -> list[str]:
    """The dotted names of all fractional numbers below a node of `params.yaml`."""
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in floats(value, f"{name}.{key}")]
    return [name[1:]] if isinstance(node, float) else []


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_every_number_is_finite(set_params: Any, value: float) -> None:
    shipped = load_params(REPOSITORY / "params.yaml").profile.model_dump(by_alias=True)
    names = floats(shipped)
    assert {"train.weight_decay", "train_flow.energy_weight", "evaluate.min_perplexity"} < {*names}
    path = set_params({**dict.fromkeys(names, value), "sample_flow.temperatures": [value]})
    with pytest.raises(UserError) as error:
        load_params(path)
    for name in [*names, "sample_flow.temperatures.0"]:
        assert f"profiles.sanguo.{name}: Input should be" in str(error.value)


def test_a_missing_field_is_named(workspace: Path) -> None:
    path = workspace / "params.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("      weight_decay: 0.3\n", "", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.weight_decay: Field required"):
        load_params(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="top of the repository"):
        load_params(tmp_path / "params.yaml")


def test_broken_yaml_is_no_traceback(tmp_path: Path) -> None:
    path = Path(shutil.copy(REPOSITORY / "params.yaml", tmp_path))
    path.write_text("profile: [sanguo\n", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_params(path)
    path.write_bytes("profile: 三国\n".encode("gbk"))
    with pytest.raises(UserError, match="not valid YAML in UTF-8"):
        load_params(path)
    with pytest.raises(UserError, match="found no such file"):
        load_params(tmp_path)


def test_a_profile_can_be_named_once_it_is_added(set_params: Any) -> None:
    path = set_params({".profile": "mine"})
    with pytest.raises(UserError, match="got 'mine'") as refusal:
        load_params(path)
    assert "add this one under `profiles:`" in refusal.value.fix
    sanguo = load_params(set_params({".profile": "sanguo"})).profile
    added = sanguo.model_dump(mode="json", by_alias=True)
    assert load_params(set_params({".profile": "mine", ".profiles.mine": added})).profile == sanguo
