"""The fields of the EU's public summary of training content (Regulation 2024/1689, art. 53 (1) d).

The template of the AI Office (July 2025) has three sections; there is no schema of it. Fields that
only the provider can answer are named and empty, not guessed.
"""

from typing import Any

from pipelines.registry.standards.facts import LANGUAGE, MODEL_LICENSE, Facts

PROVIDER = "to be filled in by the provider"
# The template's ranges for text, by the tokens below which they apply.
SIZE_RANGES = {10**9: "less than 1 billion tokens", 10**13: "1 billion to 10 trillion tokens"}
LARGEST = "more than 10 trillion tokens"


def size_range(characters: int | None) -> str:
    """Name the template's range; a Chinese character is about one token.

    Example:
        >>> size_range(2_300_000_000)
        '1 billion to 10 trillion tokens'
    """
    if characters is None:
        return PROVIDER
    return next((name for end, name in SIZE_RANGES.items() if characters < end), LARGEST)


def training_content(facts: Facts) -> dict[str, Any]:
    """Return the summary."""
    title, spdx, address = facts.data
    public = {
        "name": title,
        "address": address,
        "identifier": facts.source,
        "license": spdx,
        "modality": "text",
        "shards_root_sha256": facts.tags["shards_root"],
    }
    own = title if not address else None
    return {
        "1_general_information": {
            "1.1_provider": {"name_and_contact": PROVIDER, "authorised_representative": PROVIDER},
            "1.2_model": {
                "name": facts.model,
                "version": facts.tags["content_sha256"],
                "license": MODEL_LICENSE,
                "depends_on_model": facts.tags.get("lm_version"),
                "placed_on_the_market": PROVIDER,
            },
            "1.3_training_data": {
                "modality": ["text"],
                "size_range": size_range(facts.raw.get("characters")),
                "characters": facts.raw.get("characters"),
                "documents": facts.raw.get("rows"),
                "types_of_content": title,
                "languages": [LANGUAGE],
                "latest_acquisition": PROVIDER,
            },
        },
        "2_list_of_data_sources": {
            "2.1_publicly_available_datasets": [public] if address else [],
            "2.2_private_datasets": {"licensed": False, "other": PROVIDER if own else False},
            "2.3_crawled_and_scraped": False,
            "2.4_user_data": False,
            "2.5_synthetic_data": False,
            "2.6_other_sources": own,
        },
        "3_data_processing": {
            "3.1_reservations_of_rights": f"license {spdx}; no crawler of the provider was used",
            "3.2_removal_of_illegal_content": PROVIDER,
            "3.3_other": (
                "exact and near duplicates removed; text that occurs in validation or test removed "
                "from train and certified (certificate.json in the proof)"
            ),
        },
    }
