"""The API's own fixtures serve here too."""

from tests.unit.api.conftest import bell as bell
from tests.unit.api.conftest import house as house
from tests.unit.api.conftest import settings as settings
