"""Releases: SUIT envelopes made and signed offline, judged on upload, and the images they name.

``author`` and ``sign`` run on the operator's machine; the gateway never holds a release key. ``accept``
is what the gateway does with an upload, ``store`` where images are. Rows about releases are in
``gateway.storage``.
"""

from gateway.release.accept import Inspection, Release, SignatureFact, accept_release, inspect_release
from gateway.release.author import ReleaseContent, author_envelope
from gateway.release.sign import append_signature, sign_envelope
from gateway.release.store import Artifact, ArtifactLimits, ArtifactStore, ArtifactWriter

__all__ = [
    "Artifact",
    "ArtifactLimits",
    "ArtifactStore",
    "ArtifactWriter",
    "Inspection",
    "Release",
    "ReleaseContent",
    "SignatureFact",
    "accept_release",
    "append_signature",
    "author_envelope",
    "inspect_release",
    "sign_envelope",
]
