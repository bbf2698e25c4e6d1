"""The routes of the Hub's API, one module per topic.

The routers translate between HTTP and the modules of `localhub`, which hold the rules.
"""

from hubplugin.localhub.routers import unsupported, users
from hubplugin.localhub.routers.community import collections, discussions
from hubplugin.localhub.routers.files import commits, downloads, lfs, lfs_files, trees, xet
from hubplugin.localhub.routers.repos import access_requests, lifecycle, listing, refs

# The order matters: /api/{kind}/{owner}/{name} of `listing` matches the paths of other routers, and `unsupported`
# matches every path.
ROUTERS = (
    unsupported.first,
    users.router,
    access_requests.router,
    collections.router,
    refs.router,
    discussions.router,
    lfs.router,
    lfs_files.router,
    xet.router,
    downloads.router,
    commits.router,
    trees.router,
    lifecycle.router,
    listing.router,
    unsupported.router,
)
