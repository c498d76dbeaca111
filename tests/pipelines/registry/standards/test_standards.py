"""What a version says in published formats, checked by the official validator of each."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.registry.names import FLOW, LM
from pipelines.registry.standards.facts import MODEL_LICENSE, SOURCES, UNKNOWN
from pipelines.registry.versions import downloaded
from pipelines.tracking.store import connect


@pytest.fixture(params=[LM, FLOW])
def card(store: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with downloaded(connect(), request.param, "1") as version:
        return (version.artifacts / "card").rename(tmp_path / "card")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_bill_of_materials_is_strict_cyclonedx(card: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (card / "bom.cdx.json").read_text(encoding="utf-8")
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    bill = json.loads(text)
    model = bill["metadata"]["component"]
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert any(part["name"] == "torch" for part in bill["components"])
    # It can fail.
    model["type"] = "a kind that CycloneDX does not know"
    assert validator.validate_str(json.dumps(bill)) is not None


# mlcroissant's own use of rdflib 7.6.
@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
def test_the_data_set_is_croissant(card: Path) -> None:
    import mlcroissant

    found = read(card / "croissant.json")
    dataset = mlcroissant.Dataset(jsonld=found)
    issues = dataset.metadata.ctx.issues
    assert not issues.errors | issues.warnings
    [file] = dataset.metadata.distribution
    assert re.fullmatch("[0-9a-f]{64}", file.sha256)
    # It can fail.
    del found["recordSet"][0]["field"][0]["source"]["fileObject"]
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(jsonld=found)


def test_the_model_card_has_a_model_index(card: Path) -> None:
    from huggingface_hub import ModelCard

    loaded = ModelCard.load(card / "MODEL_CARD.md")
    results = loaded.data.eval_results
    assert results
    assert all(result.dataset_name == SOURCES["packaged:sanguo"][0] for result in results)
    assert loaded.data.license == MODEL_LICENSE.lower()
    front = (card / "MODEL_CARD.md").read_text(encoding="utf-8").split("---")[1]
    assert YAML(typ="safe").load(front)["model-index"][0]["name"] in {LM, FLOW}


def test_licenses_are_spdx_expressions() -> None:
    from license_expression import get_spdx_licensing

    known = get_spdx_licensing()
    for expression in (MODEL_LICENSE, UNKNOWN[1], *(spdx for _, spdx, _ in SOURCES.values())):
        assert known.validate(expression, strict=True).errors == [], expression
    assert known.validate("Public Domain").errors


def test_the_training_content_has_the_fields_of_the_template(card: Path) -> None:
    found = read(card / "training_content.json")
    sections = {number: sorted(name[:3] for name in found[key]) for number, key in enumerate(found)}
    assert sections == {
        0: ["1.1", "1.2", "1.3"],
        1: ["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"],
        2: ["3.1", "3.2", "3.3"],
    }
    [source] = found["2_list_of_data_sources"]["2.1_publicly_available_datasets"]
    assert source["license"] == SOURCES["packaged:sanguo"][1]


def test_every_document_is_made_from_the_same_facts(card: Path) -> None:
    bill, summary = read(card / "bom.cdx.json"), read(card / "training_content.json")
    data = next(part for part in bill["components"] if part["type"] == "data")
    [source] = summary["2_list_of_data_sources"]["2.1_publicly_available_datasets"]
    assert data["hashes"][0]["content"] == source["shards_root_sha256"]
    assert data["licenses"][0]["expression"] == source["license"]
    version = summary["1_general_information"]["1.2_model"]["version"]
    assert bill["metadata"]["component"]["version"] == version[:12]
