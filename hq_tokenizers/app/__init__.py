"""The web page of a generator, built with Gradio, which only the modules of this folder import."""
