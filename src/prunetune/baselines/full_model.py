"""Full-model training, the control of Table 6: the loop without its pruning, on the same tokens in as many rounds.

    summary = full_model_run(Recipe.read("recipe.yaml"), Path("runs/full"))      # the same call again continues

Stage t trains the model of stage t - 1, nothing cut, on the part of the stream that the loop would give round t, and is
measured as that round would be. It tells what the data alone do to the model.
"""

from __future__ import annotations

from pathlib import Path

from prunetune.baselines.row import Row, check_recipe, conclude
from prunetune.common.files import remove
from prunetune.common.progress import Watch
from prunetune.loop.bench import Bench
from prunetune.loop.summary import Summary
from prunetune.models.cost import cost_of
from prunetune.models.folders import resolve_model
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder


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
        bench = Bench(recipe, run, watch or Watch())
        bench.check()
        bench.original()
        rounds = bench.rounds
        model, cursor, stage = source, bench.reserved, run.original
        for t in range(1, rounds + 1):
            row = Row(
                bench,
                index=t,
                name=f"{t:02d}-full-model",
                cost=cost_of(bench.config),
                why="full-model training: nothing is cut (Table 6)",
                removed={},
                parts=rounds,
                cursor=cursor,
                key={"model": stage["model_sha"], "data": bench.stream.sha},
                model=model,
            )
            stage = row.make()
            if t > 1 and recipe.keep != "all":
                remove(model)
            model, cursor = row.at / "tuned", stage["samples"][1]
        return conclude(bench, stage)
