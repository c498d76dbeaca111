"""Croissant 1.0 for the raw parquet: https://docs.mlcommons.org/croissant/docs/croissant-spec.html."""

from typing import Any

from pipelines.registry.standards.facts import LANGUAGE, Facts

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
COLUMNS = ("id", "url", "title", "text")


def croissant(facts: Facts) -> dict[str, Any]:
    """Return the raw data set: its parquet files by hash, and their columns."""
    title, spdx, address = facts.data
    files = [entry for entry in facts.raw["files"] if entry["path"].endswith(".parquet")]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": f"enigma-{facts.profile}",
        "description": f"{title}: the documents from which {facts.model} was trained.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": f"https://spdx.org/licenses/{spdx}" if " " not in spdx else spdx,
        "url": address or "https://pypi.org/project/enigma-zh/",
        "inLanguage": LANGUAGE,
        "datePublished": facts.created[:10],
        "version": "1.0.0",
        "citeAs": f"{title}, root sha256:{facts.raw['root']}",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": entry["path"],
                "name": entry["path"],
                "contentUrl": entry["path"],
                "contentSize": f"{entry['bytes']} B",
                "encodingFormat": "application/x-parquet",
                "sha256": entry["sha256"],
            }
            for entry in files
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": f"documents-{number}",
                "name": f"documents-{number}",
                "key": {"@id": f"documents-{number}/id"},
                "field": [_field(number, entry["path"], name) for name in COLUMNS],
            }
            for number, entry in enumerate(files)
        ],
    }


def _field(number: int, file: str, column: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"documents-{number}/{column}",
        "name": column,
        "dataType": "sc:Text",
        "source": {"fileObject": {"@id": file}, "extract": {"column": column}},
    }
