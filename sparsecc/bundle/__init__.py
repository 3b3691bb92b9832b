"""The folder that a compile writes: files, manifest, signature, recipe and plan as strangers may hand them in."""

from sparsecc.bundle.folder import Bundle

__all__ = ["Bundle"]
