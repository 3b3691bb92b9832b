"""What an operator does to numbers whatever axes they have: a column of its row in the table of rules."""

from __future__ import annotations

from enum import Flag, auto


class Trait(Flag):
    """Facts of an operator, each of which some stage asks for. An operator has any number of them."""

    NONE = 0

    SLOTWISE = auto()
    """Computes every element from those at its place in the operands alone."""

    MOVES = auto()
    """Every element of its results is an element of its first operand, at most of another type."""

    KEEPS_SIZE = auto()
    """MOVES, and each element comes out exactly once: another shape or order, never more or fewer."""

    KEEPS_ZEROS = auto()
    """Where its first operand is zero in a slot, its result is: whatever else it reads."""

    ADDS = auto()
    """Where all its operands are zero in a slot, its result is."""

    MULTIPLIES = auto()
    """Where either of its first two operands is zero in a slot, its result is; a third is added (Div: the first)."""

    PRODUCT = auto()
    """A matrix product of its first two operands, perhaps with a bias or an activation."""

    CONVOLUTION = auto()
    """A convolution of its first operand with a kernel."""

    COMPOSITE = auto()
    """Several products as one operator: attention, a mixture of experts."""

    RECURRENT = auto()
    """Two products, with W and with R, over a sequence."""

    NORMALISES = auto()
    """Normalises its first operand; operand 1 scales the result and operand 2 is added to it."""

    COUNTS = auto()
    """Reads how many elements there are, not which."""

    INTEGER = auto()
    """Computes on quantized numbers, or makes or reads them."""

    ROUNDS = auto()
    """Rounds activations to integers on the way: kernels differ in where they round."""

    COMPUTES = PRODUCT | CONVOLUTION | COMPOSITE | RECURRENT
    """Any of those that multiply and accumulate: where the time goes."""


ROUNDED = Trait.INTEGER | Trait.ROUNDS
MOVED = Trait.MOVES | Trait.KEEPS_ZEROS
MOVED_WHOLE = MOVED | Trait.KEEPS_SIZE
