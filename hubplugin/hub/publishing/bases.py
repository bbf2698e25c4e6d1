"""Whether variants of a base may be published as a manifest says: its licence, its gate, and who may see it.

Knows what is known of a base, and asks the Hub how it stands now. Knows no variant and no repo that is published to.
"""

from dataclasses import replace

from hubplugin import licences
from hubplugin.errors import HubError
from hubplugin.hub.client import clear_errors, connect
from hubplugin.hub.snapshots import Known
from hubplugin.licences import Derivatives
from hubplugin.manifest.publish import Publish
from hubplugin.report import Base


def as_it_is_now(base: Base | Known) -> Base | Known:
    """What is known of a base, with what the Hub says of its repo at this moment.

    A repo that this token cannot see may be private. So it counts as private where nobody has ever seen it public: a
    folder of the client's cache does not tell.
    """
    if not base.on_hub:
        return base
    api = connect()
    with clear_errors(base.repo):
        info = api.model_info(base.repo) if api.repo_exists(base.repo) else None
    private = bool(info.private) if info else base.private is not False
    gated = base.gated or bool(info and info.gated)
    if isinstance(base, Base):
        return base.model_copy(update={"private": private, "gated": gated})
    return replace(base, private=private, gated=gated)


def check_base(base: Base | Known, publish: Publish) -> None:
    """Raise HubError where variants of a base may not be published as the manifest says."""
    check_licence(base, publish.accept_license)
    if base.private and not publish.private and not publish.accept_private_base:
        raise HubError(
            f"{base.repo}: private",
            "the base is private, or hidden from this token, and the manifest makes public what is made from it",
            "set publish.private: true, or publish.accept_private_base: true",
        )


def check_licence(base: Base | Known, accepted: bool) -> None:
    """Raise HubError where a model made from `base` may not be published.

    A no-derivatives licence forbids it. A gated base, or a licence with duties, must be accepted by the manifest.
    """
    licence, found = (base.licence or "").lower(), licences.derivatives(base.licence)
    if Derivatives.FORBIDDEN in found | licences.derivatives(base.licence_name):
        raise HubError(
            f"{base.repo}: licence {base.licence_name or licence}",
            "a no-derivatives licence forbids publishing a compressed model",
            "remove `publish:` and keep the variants on this machine",
        )
    duties = Derivatives.DUTIES in found
    if (duties or base.gated) and not accepted:
        why = f"its licence ({base.licence_name or licence}) puts duties on derivatives" if duties else "is gated"
        raise HubError(
            f"{base.repo}: licence",
            f"{why}, and the manifest does not accept that",
            "read the licence, then set publish.accept_license: true",
        )
