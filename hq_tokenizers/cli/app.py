"""A generator as a web page."""

from __future__ import annotations

from hq_tokenizers.options.app import AppConfig


def run_app(config: AppConfig) -> None:
    """Serves the page until Ctrl-C, or writes it as a Space.

    Raises:
        OSError: If the port is taken.
        ValueError: If Gradio is not installed, there is no such generator of images, or the folder of the Space holds
            something else.
    """
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("The app needs Gradio: pip install 'hq_tokenizers[app]'") from error
    from hq_tokenizers.app.blocks import build_app, launch_app
    from hq_tokenizers.app.generator_pipeline import load_generator_pipeline, shipped_generator
    from hq_tokenizers.app.space import export_space

    print("Starting the page …", flush=True)
    generator = shipped_generator() if config.generator is None else config.generator
    pipe = load_generator_pipeline(generator)
    if config.export_space is not None:
        folder = export_space(generator, config.export_space)
        print(f"A Space in {folder}. Try it by `python {folder / 'app.py'}`; put it on the Hub by")
        print(f"`hf upload USER/NAME {folder} --repo-type space` (docs/app.md).")
        return
    launch_app(
        build_app(pipe),
        server_name=config.host,
        server_port=config.port,
        share=config.share,
        inbrowser=config.open_browser,
    )
