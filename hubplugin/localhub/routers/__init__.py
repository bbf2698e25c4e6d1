"""The routes of the Hub's API, one module per topic.

The routers translate between HTTP and the modules of `localhub`, which hold the rules.
"""

from hubplugin.localhub.routers import (
    access_requests,
    collections,
    commits,
    discussions,
    files,
    lfs,
    refs,
    repos,
    trees,
    users,
    xet,
)

# The order matters: /api/{kind}/{owner}/{name} of `repos` matches the paths of other routers, so `repos` is last.
ROUTERS = (
    users.router,
    access_requests.router,
    collections.router,
    refs.router,
    discussions.router,
    lfs.router,
    xet.router,
    files.router,
    commits.router,
    trees.router,
    repos.router,
)
