"""SliceGPT as a row of a comparison: the recipe's data, tokens, settings and tasks, but another way to make it small.

    summary = slicegpt_run(Recipe.read("recipe.yaml"), Path("runs/slicegpt"))      # the same call again continues
    compare([Path("runs/ptl"), Path("runs/slicegpt")])

The model is cut to at most the size that the recipe's target means, on the sequences that the loop would score, and
gets the whole run's recovery budget at once (see `row.py`). The folder reads like a run folder (`original/`, one stage,
`summary.json`), but has no `final/`: its model is no plain Hugging Face folder (see `sliced.py`); stage.json says so.
"""

from __future__ import annotations

from pathlib import Path

from prunetune.baselines.row import Row, check_recipe, conclude
from prunetune.baselines.sliced import ARTEFACT
from prunetune.baselines.sliced_cost import ALIGN, kept_for, sliced_cost
from prunetune.baselines.slicegpt import slice_model, write_sliced
from prunetune.common.progress import Watch
from prunetune.loop.bench import Bench, free
from prunetune.loop.summary import Summary
from prunetune.models.folders import model_sha, resolve_model
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder
from prunetune.schedule.target import final_shape


def slicegpt_run(recipe: Recipe, out: Path | str, watch: Watch | None = None, *, align: int = ALIGN) -> Summary:
    """Slice, recover and measure a model as a recipe's loop would prune, recover and measure it.

    Args:
        recipe: As for the loop. What it says of neurons and layers only gives the size to stay within.
        out: A folder of its own; made if it is not there. A killed run goes on.
        watch: Shows lines and bars.
        align: The kept width of the residual stream is a multiple of this.

    Returns:
        What `out/summary.json` holds: the loop's keys, and `artefact`.

    Raises:
        RecipeError: A recipe without a target, or with a launcher (recovery runs in this process).
        UnsupportedModel: A family whose norms cannot be folded.
        OutOfReach: No slice is small enough, or there are too few data.
    """
    check_recipe(recipe)
    source = resolve_model(recipe.model)
    with RunFolder.open(Path(out), recipe, source) as run:
        bench = Bench(recipe, run, watch or Watch())
        bench.check()
        share = bench.sizes.params(*final_shape(recipe.prune, bench.sizes)) / bench.sizes.original
        hidden, kept = bench.config.hidden_size, kept_for(bench.config, share, align)
        bench.original()

        def cut(tmp: Path) -> None:
            tmp.mkdir()
            model = bench.load(source)
            with bench.watch.bar("slice") as bar:
                write_sliced(slice_model(model, bench.scoring, share, align=align, progress=bar), source, tmp)
            del model
            free()

        key = {"model": model_sha(source), "kept": kept, "data": bench.stream.sha, "samples": recipe.score.samples}
        row = Row(
            bench,
            index=1,
            name=f"01-slicegpt-{kept}",
            cost=sliced_cost(bench.config, kept),
            why=f"SliceGPT, {kept} of {hidden} places of the residual stream: {ARTEFACT}",
            removed={"hidden": hidden - kept},
            parts=1,
            cursor=bench.reserved,
            key=key,
            cut=cut,
        )
        return conclude(bench, row.make(), artefact=ARTEFACT)
