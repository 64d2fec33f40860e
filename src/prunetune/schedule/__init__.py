"""How far a run goes and in which steps: arithmetic on shapes, printable before any work.

Others take `steps.next_step`, `target.final_shape`, `damage.equal_damage`.
To add a way to divide the rounds: one pure function of shapes; nothing here touches a model, a file or a device.
"""
