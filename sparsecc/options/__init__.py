"""The table of options, and what reads it."""

from sparsecc.options.row import are_sizes, rows_of
from sparsecc.options.table import (
    LAYER_CRITERIA,
    NO_SAMPLES,
    SELF,
    SWITCHES,
    SYNTHETIC,
    CompareCall,
    CompileCall,
    CompileOptions,
    InspectCall,
    ProfileCall,
    SearchCall,
    Tried,
)

__all__ = [
    "LAYER_CRITERIA",
    "NO_SAMPLES",
    "SELF",
    "SWITCHES",
    "SYNTHETIC",
    "CompareCall",
    "CompileCall",
    "CompileOptions",
    "InspectCall",
    "ProfileCall",
    "SearchCall",
    "Tried",
    "are_sizes",
    "rows_of",
]
