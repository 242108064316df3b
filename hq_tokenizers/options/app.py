"""Options of the command `app`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Annotated

from hq_tokenizers.checks import Name, Range, check_fields


@dataclass(kw_only=True)
class AppConfig:
    """Options of `app`.

    Raises:
        ValueError: If the port is none.
    """

    generator: Annotated[
        Name | None, "folder or Hub id of a generator, or a name of pretrained(); null takes the package's, of clothes"
    ] = None
    host: Annotated[Name, "address to serve at; 0.0.0.0 lets other machines in, who may then use this one's time"] = (
        "127.0.0.1"
    )
    port: Annotated[
        Annotated[int, Range(1, 65_535)] | None, "port to serve at; null takes the first free one from 7860 on"
    ] = None
    share: Annotated[bool, "also make a public link, through servers of Gradio's makers; needs the internet"] = False
    open_browser: Annotated[bool, "open the page in this machine's browser"] = False
    export_space: Annotated[
        Name | None, "serve nothing; write the page into this folder, as a Space of the Hugging Face Hub"
    ] = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def output_dir(self) -> str:
        """Where files are written: the Space, or what Gradio keeps of uploads."""
        return self.export_space or tempfile.gettempdir()
