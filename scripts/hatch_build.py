"""Build hook: pack the catalogue `models/` into the wheel as `infer_align/_models`."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Copies the catalogue into a real wheel; an editable install reads `models/` in place."""

    def initialize(self, version, build_data):
        """Add the folder unless the build is an editable one."""
        if version != "editable":
            build_data["force_include"]["models"] = "infer_align/_models"
