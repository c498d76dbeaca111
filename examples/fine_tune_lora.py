"""Fine-tune a published model with LoRA on 200 lines of a text, and show what changed.

    python examples/fine_tune_lora.py MODEL lines.txt --prompt 却说

MODEL is a directory with a model and its tokenizer, as `dvc repro train` publishes it. Every tenth
line is held out. Printed are the share of parameters that learn, the loss of the lines that were
trained on and of those held out, before and after, and what follows the prompt, before and after.
The adapter, a few per cent of the model's size, is saved in `--out`.

Needs `pip install peft`.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import enigma.modeling_enigma  # noqa: F401 - registers the Auto classes
from enigma.generation import Sampling, continue_text

LINES, HELD_OUT_EVERY = 200, 10
TARGETS = ["query", "key", "value", "out", "mlp_up", "mlp_down"]


def main() -> None:
    """Measure, fine-tune, measure again."""
    arguments = parse()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    texts = tokenize(tokenizer, read_lines(arguments.text), model.config.max_len)
    held_out = texts[::HELD_OUT_EVERY]
    trained = [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY]

    settings = LoraConfig(r=arguments.rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    learning, all_parameters = adapted.get_nb_trainable_parameters()
    print(f"parameters that learn: {learning:,} of {all_parameters:,}")

    def report(when: str) -> None:
        adapted.eval()
        losses = [loss_per_token(adapted, part) for part in (trained, held_out)]
        print(f"{when}: nats per token, trained lines {losses[0]:.3f}, held out {losses[1]:.3f}")
        sampling = Sampling(max_new_tokens=40, seed=arguments.seed)
        print(f"{when}: {arguments.prompt}", end="")
        print(continue_text(adapted, tokenizer, arguments.prompt, sampling))

    report("before")
    fine_tune(adapted, trained, arguments)
    report("after")
    adapted.save_pretrained(arguments.out)
    print(f"the adapter is in {arguments.out}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory of a model and its tokenizer")
    parser.add_argument("text", type=Path, help=f"UTF-8 text; its first {LINES} lines are used")
    parser.add_argument("--prompt", default="", help="what to continue")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="lines per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/lora"))
    return parser.parse_args()


def read_lines(path: Path) -> list[str]:
    """Return the first lines that are not empty."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line][:LINES]
    if len(lines) < HELD_OUT_EVERY:
        raise SystemExit(f"{path}: expected at least {HELD_OUT_EVERY} lines, got {len(lines)}")
    return lines


def tokenize(tokenizer: PreTrainedTokenizerBase, lines: list[str], length: int) -> list[list[int]]:
    """Return the ids of every line, which starts and ends with the end of a document."""
    end = tokenizer.eos_token_id or tokenizer.sep_token_id
    ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
    return [[end, *line[: length - 2], end] for line in ids]


def padded(texts: list[list[int]]) -> dict[str, Tensor]:
    """Return a batch, padded on the right, whose padding has no target."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@torch.no_grad()
def loss_per_token(model: PeftModel, texts: list[list[int]]) -> float:
    """Return the mean loss over all targets of the texts, in nats."""
    total = sum(model(**padded([text])).loss.item() * (len(text) - 1) for text in texts)
    return total / sum(len(text) - 1 for text in texts)


def fine_tune(model: PeftModel, texts: list[list[int]], arguments: argparse.Namespace) -> None:
    """Train the adapters; the weights of the model stay as they are."""
    model.train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=arguments.learning_rate, weight_decay=0.0)
    for _ in range(arguments.epochs):
        for batch in torch.randperm(len(texts)).split(arguments.batch):
            loss = model(**padded([texts[i] for i in batch])).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


if __name__ == "__main__":
    main()
