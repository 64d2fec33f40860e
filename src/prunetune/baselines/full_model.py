"""Full-model training, the control of Table 6: the loop without its pruning, on the same tokens in as many rounds.

    summary = full_model_run(Recipe.read("recipe.yaml"), Path("runs/full"))      # the same call again continues

Stage t trains the model of stage t - 1, nothing cut, on the part of the stream that the loop would give round t, and is
measured as that round would be. It tells what the data alone do to the model.
"""

from __future__ import annotations

from pathlib import Path

from prunetune.baselines.row import Row, check_recipe, conclude, make_row
from prunetune.common.files import remove
from prunetune.common.progress import Watch
from prunetune.loop.context import prepare
from prunetune.loop.loop import begin
from prunetune.models.cost import cost_of
from prunetune.models.folders import resolve_model
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import Removed
from prunetune.runs.summary import Summary


def full_model_run(recipe: Recipe, out: Path | str, watch: Watch | None = None) -> Summary:
    """Train the whole model as a recipe's loop would recover the pruned one.

    Args:
        recipe: As for the loop; its schedule only gives the number of rounds.
        out: A folder of its own; made if it is not there. A killed run goes on.
        watch: Shows lines and bars.

    Returns:
        What `out/summary.json` holds: the loop's keys. The last stage's model is in its folder `tuned/`.

    Raises:
        RecipeError: A recipe without a target, or with a launcher (training runs in this process).
        OutOfReach: Too few data.
    """
    check_recipe(recipe)
    source = resolve_model(recipe.model)
    with RunFolder.open(Path(out), recipe, source) as run:
        context = prepare(recipe, source, watch or Watch())
        case = begin(context, run)
        model, stage = source, case.original
        for t in range(1, case.rounds + 1):
            row = Row(
                index=t,
                name=f"{t:02d}-full-model",
                cost=cost_of(context.config),
                why="full-model training: nothing is cut (Table 6)",
                removed=Removed(neurons=0, layers=()),
                rounds=case.rounds,
                key={"model": stage.model_sha, "data": context.stream.sha},
                model=model,
            )
            stage = make_row(context, run, row)
            if t > 1 and recipe.keep != "all":
                remove(model)
            model = run.folder(row.name) / "tuned"
        return conclude(context, run, stage)
