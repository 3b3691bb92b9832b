"""The model in memory: constants, subgraphs, mapped files, edits."""
