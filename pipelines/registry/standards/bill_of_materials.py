"""CycloneDX 1.6 with a model card (ML-BOM): https://cyclonedx.org/capabilities/mlbom/."""

import uuid
from typing import Any

from pipelines.registry.standards.facts import MODEL_LICENSE, Facts


def bill_of_materials(facts: Facts) -> dict[str, Any]:
    """Return the model, its data and its packages as a bill of materials."""
    weights = facts.tags["weights_sha256"]
    title, spdx, address = facts.data
    metrics = [{"type": name, "value": f"{value:g}"} for name, value in facts.figures.items()]
    model = {
        "type": "machine-learning-model",
        "bom-ref": facts.model,
        "name": facts.model,
        "version": facts.tags["content_sha256"][:12],
        "description": facts.summary,
        "licenses": [{"license": {"id": MODEL_LICENSE}}],
        "hashes": [{"alg": "SHA-256", "content": weights}],
        "modelCard": {
            "modelParameters": {
                "task": "density-estimation" if "flow" in facts.model else "text-generation",
                "architectureFamily": "reversible network",
                "datasets": [{"ref": "data"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
            "considerations": {"technicalLimitations": [facts.summary]},
        },
    }
    data = {
        "type": "data",
        "bom-ref": "data",
        "name": title,
        "version": facts.tags["shards_root"][:12],
        "licenses": [{"expression": spdx}],
        "hashes": [{"alg": "SHA-256", "content": facts.tags["shards_root"]}],
    }
    if address:
        data["externalReferences"] = [{"type": "distribution", "url": address}]
    packages = [
        {"type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name,
         "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in sorted(facts.packages.items())
    ]  # fmt: skip
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same content has the same number.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, facts.tags['content_sha256'])}",
        "version": 1,
        "metadata": {"timestamp": facts.created, "component": model},
        "components": [data, *packages],
    }
