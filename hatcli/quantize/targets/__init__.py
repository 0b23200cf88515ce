"""Targets: whose integers a model becomes; one file each, which says all there is to say of it.

A new target is one new file here (or any module that a config's ``imports`` names) with a
function that is registered under the target's name and returns a `Target`. Its arguments are what
``quantize.target_options`` may set; their names and plain types are checked from the source.

    @TARGETS.register
    def my_chip(multiplier_bits: int = 24) -> Target:
        \"\"\"One line on what it is.\"\"\"
        return Target(
            name="my_chip",
            grid=symmetric_grid,              # a range becomes scale and zero point
            shared=frozenset({"Concat"}),     # layers whose inputs and result have one grid
            arithmetic=MyArithmetic(multiplier_bits),
            rule={"type": "my_chip", "multiplier_bits": multiplier_bits},
        )

An arithmetic has two methods, `multipliers` and `rounded` (see `hatcli.quantize.target`). Every
operation of an integer graph is a sum of integers times exact ratios of scales, so that these two
are the arithmetic of all of them: no operation has to be written anew.
"""
