"""What the pages of schedules ask for beside the grid."""

from __future__ import annotations

from typing import Any

from django import forms

from schedules_app.forms import CopyForm


class LocalCopyForm(CopyForm):
    """The days a local day is copied to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["first"].help_text = "The first day that is planned, by the site's clock."
        self.fields[
            "overwrite"
        ].help_text = "Days that are planned already lose their plan. Otherwise nothing is copied if one is."
        for name in ("first", "last"):
            widget = self.fields[name].widget
            assert isinstance(widget, forms.DateInput)
            widget.attrs = {**widget.attrs, "class": "sgm-input"}
