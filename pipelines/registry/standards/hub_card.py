"""The front matter of a model card as Hugging Face reads it, with its `model-index`."""

from pipelines.registry.standards.facts import LANGUAGE, MODEL_LICENSE, Facts

METRICS = {
    "bits_per_character": "Bits per character",
    "perplexity": "Perplexity",
    "test_nll_nats_per_dim": "Negative log-likelihood, nats per dimension",
}


def hub_metadata(facts: Facts) -> str:
    """Return the metadata as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    task = "other" if "flow" in facts.model else "text-generation"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=facts.profile,
            dataset_name=facts.data[0],
            dataset_split="test",
            dataset_revision=facts.tags["shards_root"],
            metric_type=name,
            metric_name=title,
            metric_value=facts.figures[name],
        )
        for name, title in METRICS.items()
        if name in facts.figures
    ]
    data = ModelCardData(
        language=LANGUAGE,
        license=MODEL_LICENSE.lower(),
        library_name="transformers" if task == "text-generation" else "pytorch",
        pipeline_tag=task if task != "other" else None,
        tags=["reversible", "chinese", facts.profile],
        model_name=facts.model,
        eval_results=results,
    )
    return str(data.to_yaml())
