"""How many examples hypothesis draws for a test: a few by default, all of them under the profile `thorough`.

By default they are the same ones in every run, so that a change is what makes a run fail; `thorough` (`make test-all`)
draws new ones every time.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings

SHARE = 5  # the default draws one in so many
FEWEST = 4

settings.register_profile("quick", max_examples=100 // SHARE, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")  # what `--hypothesis-profile` names is loaded after this


def examples(count: int, **options: Any) -> settings:
    """Settings of a test that draws `count` examples when it is thorough."""
    quick = settings.get_current_profile_name() != "thorough"
    return settings(max_examples=min(count, max(FEWEST, count // SHARE)) if quick else count, **options)
