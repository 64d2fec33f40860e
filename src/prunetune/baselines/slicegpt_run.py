"""SliceGPT as a row of a comparison: the recipe's data, tokens, settings and tasks, but another way to make it small.

    summary = slicegpt_run(Recipe.read("recipe.yaml"), Path("runs/slicegpt"))      # the same call again continues
    compare([Path("runs/ptl"), Path("runs/slicegpt")])

The model is cut to at most the size that the recipe's target means, on the sequences that the loop would score, and
gets the whole run's recovery budget at once (see `row.py`). The folder reads like a run folder (`original/`, one stage,
`summary.json`), but has no `final/`: its model is no plain Hugging Face folder (see `sliced.py`); stage.json says so.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prunetune.baselines.row import Row, check_recipe, conclude, make_row
from prunetune.baselines.sliced import ARTEFACT
from prunetune.baselines.sliced_cost import ALIGN, kept_for, sliced_cost
from prunetune.baselines.slicegpt import slice_model, write_sliced
from prunetune.common.progress import Watch
from prunetune.loop.context import free, prepare
from prunetune.loop.control import at_once
from prunetune.loop.loop import begin
from prunetune.models.folders import model_sha, resolve_model
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import Removed
from prunetune.runs.summary import Summary
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
        context = prepare(recipe, source, watch or Watch())
        sizes, config = context.sizes, context.config
        share = sizes.params(*final_shape(recipe.prune, sizes)) / sizes.original
        hidden, kept = config.hidden_size, kept_for(config, share, align)
        rounds = begin(context, run).rounds

        def cut(tmp: Path) -> None:
            tmp.mkdir()
            model = context.load(source)
            with context.watch.bar("slice") as bar:
                write_sliced(slice_model(model, context.scoring, share, align=align, progress=bar), source, tmp)
            del model
            free()

        row = Row(
            index=1,
            name=f"01-slicegpt-{kept}",
            cost=sliced_cost(config, kept),
            why=f"SliceGPT, {kept} of {hidden} places of the residual stream: {ARTEFACT}",
            removed=Removed.model_validate({"neurons": 0, "layers": (), "hidden": hidden - kept}),
            rounds=1,
            key={
                "model": model_sha(source),
                "kept": kept,
                "data": context.stream.sha,
                "samples": context.recipe.score.samples,
            },
            model=source,
            cut=cut,
        )
        whole = recipe.changed(recover=[at_once(m, rounds) for m in recipe.recover])
        stage = make_row(dataclasses.replace(context, recipe=whole), run, row)
        return conclude(context, run, stage, artefact=ARTEFACT)
