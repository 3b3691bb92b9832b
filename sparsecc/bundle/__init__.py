"""The folder that a compile writes: files, manifest, signature, recipe and plan as strangers may hand them in."""
